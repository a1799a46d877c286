"""COCO from wherever it is onto the disk, as a plan says: captions, images, smaller copies.

Whatever ends a call, the same call goes on: what has its final name is whole.
"""

import hashlib
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from clipcoco.data.annotations import annotation_file
from clipcoco.data.captions import CaptionTable
from clipcoco.data.false_captions import FOLDER
from clipcoco.data.manifest import Entry, Manifest, copies_folder, copies_manifest, read_manifest
from clipcoco.data.split import check_files, missing_files
from clipcoco.disk.files import (
    link,
    need_room,
    remove_leftovers,
    sync_folder,
    take_name,
    write_atomically,
    write_temporary,
)
from clipcoco.disk.links import allow, own_folder
from clipcoco.errors import DataError, EnvironmentProblem
from clipcoco.events import ReportTask
from clipcoco.prepare.download import Archive, download, is_published
from clipcoco.prepare.lock import lock
from clipcoco.prepare.own_found import STATE
from clipcoco.prepare.plan import (
    FOLDERS,
    WORK,
    Plan,
    Request,
    choose_part,
    has_captions,
    missing_false_captions,
    still_missing,
)
from clipcoco.prepare.resize import CopyStore, make_copies
from clipcoco.prepare.single_images import RemoteImage, fetch_images
from clipcoco.prepare.threads import in_threads
from clipcoco.prepare.unpack import unpack

_CAPTIONS = re.compile(r"annotations/captions_(train|val)2017\.json")


@dataclass(frozen=True)
class Prepared:
    tables: dict[str, CaptionTable]  # by split
    copies: int  # made by this call
    bytes_before: int  # of the originals of these
    bytes_after: int
    note: str  # where the file system has no locks
    without: str = ""  # why there are no false captions, which a training does without


def originals_manifest(root: Path) -> Path:
    return root / WORK / "originals.jsonl"


def allow_source(source: Path, root: Path) -> None:
    """The user named it, so links below `root` may lead there. Its folders may themselves be links to another volume.

    Where that can't be kept it is asked for by name, once a link turns out to be no hard one.
    """
    folders = [source, *(source / name for name in (*FOLDERS, "annotations"))]
    with suppress(EnvironmentProblem):
        allow(root, folders)
        allow(source, folders)


def prepare(request: Request, plan: Plan, report: ReportTask) -> Prepared:
    """Do what `plan` says, that of `request`. Raises DataError or EnvironmentProblem; the same call then goes on."""
    root = request.root
    try:
        with lock(root) as note, Manifest(originals_manifest(root), {"images": "originals"}) as originals:
            return _Preparation(request, report, originals).run(plan, note)
    except OSError as error:  # what a full or broken disk raises names no file
        raise EnvironmentProblem(
            f"{error.strerror or error} ({error.filename or root}). Make room or check the permissions, "
            "then run the same command again: it goes on where it was"
        ) from error


class _Preparation:
    """A call that holds the lock of data.root, and in `originals` the manifest of the images there."""

    def __init__(self, request: Request, report: ReportTask, originals: Manifest) -> None:
        self.request, self.root, self.coco = request, request.root, request.coco
        self.report, self.originals = report, originals
        self.incoming = self.root / WORK / "incoming"

    def run(self, plan: Plan, note: str) -> Prepared:
        request, root = self.request, self.root
        # What a killed call had not finished goes first: it takes room.
        shutil.rmtree(self.incoming, ignore_errors=True)
        for path in (*(root / WORK).glob(".*.tmp"), *root.glob("prepared-*/.*.tmp")):
            path.unlink()
        other = "" if request.only_prepared else ", or keep smaller copies alone: --only-prepared"
        need_room(root, plan.room, "the images need", "--root", f"give another --root{other}")
        self._get_captions()
        tables = {split: request.table(split) for split in FOLDERS}
        copied = before = after = 0
        for split, table in tables.items():
            self._get_images(split, table)
            if not request.only_prepared:
                check_files(table)
            if request.prepared_size:
                there = sorted(set(table.files) - set(missing_files(table))) if request.only_prepared else table.files
                made = make_copies(root, there, request.prepared_size, self.report)
                copied, before, after = copied + made.made, before + made.bytes_before, after + made.bytes_after
            if not request.only_prepared:
                self._note_originals(table)
        return Prepared(tables, copied, before, after, note, self._get_false_captions())

    def _get_captions(self) -> None:
        source, archive = self.request.source, self.coco.annotations
        if has_captions(self.root):
            self._drop(archive)
        elif source and has_captions(source):
            own_folder(self.root / "annotations")
            for split in FOLDERS:
                link(annotation_file(source, split), annotation_file(self.root, split))
        else:
            self._unpack(archive, _CAPTIONS, lambda entry: None)

    def _get_false_captions(self) -> str:
        """From the source, or over the network where none was given; or why that was not possible, in a sentence."""
        request, folder = self.request, self.root / FOLDER
        retries = replace(request.retries, attempts=2, timeout=20)  # nobody should wait long for it
        for file in missing_false_captions(request):
            own_folder(folder)
            remove_leftovers(folder / file.name)  # of a kill
            if request.source is None:
                urls = [f"{request.coco.false_host}/{file.name}"] if not request.mirror else request.urls(file.path)
                try:
                    download(file, urls, folder, self.report, retries)
                except (DataError, EnvironmentProblem) as error:
                    return f"no {file.path}, so eval measures recall alone: {error}"
            elif not (path := request.source / file.path).is_file() or not is_published(path, file, self.report):
                return f"the published {file.path} is not in {request.source}, so eval measures recall alone"
            else:
                write_atomically(folder / file.name, path.read_bytes())
        return ""

    def _get_images(self, split: str, table: CaptionTable) -> None:
        request, archive = self.request, self.coco.images[split]
        members = re.compile(rf"{split}/\d{{12}}\.jpg")
        missing = still_missing(request, table)
        # What the source holds: first what is unpacked, then what its archive has.
        if missing and request.source:
            there = request.in_source(missing)
            self._take(request.source, split, there)
            if len(there) < len(missing) and request.source_archive(archive):
                if request.only_prepared:
                    self._copy_members(archive, missing)
                else:
                    self._unpack(archive, members, self.originals.add)
            missing = still_missing(request, table)
        if not missing:
            # An archive that an earlier call left here goes when there is nothing more that it could bring.
            folder = (copies_folder(self.root, request.prepared_size) if request.only_prepared else self.root) / split
            if folder.is_dir() and len(os.listdir(folder)) >= self.coco.counts[split][0]:
                self._drop(archive)
            return
        if (self.root / STATE).is_file():
            raise DataError(
                f"{len(missing):,} pictures of your own are missing in {self.root} (--root), first {missing[0]}. "
                "Give the command that brought them again: prepare-data --captions FILE --images DIR --root DIR"
            )
        # The rest over the network: as copies alone, by the archive where that is fewer bytes, or image by image.
        images = request.images(table, missing)
        if request.only_prepared:
            import clipcoco.data.images  # noqa: F401  here, as Ctrl-C can't end what a thread imports

            with CopyStore(self.root, request.prepared_size) as copies:
                fetch_images(images, lambda image, data: copies.store(image.file, data), self.report, request.retries)
        elif choose_part(replace(request, source=None), split, len(table.files), len(missing)).way == "archive":
            self._unpack(archive, members, self.originals.add)
        else:
            own_folder(self.root / split)
            self.incoming.mkdir(exist_ok=True)
            fetch_images(images, self._store, self.report, request.retries)
            sync_folder(self.root / split)

    def _take(self, source: Path, split: str, files: list[str]) -> None:
        """Link these of the source, or keep their smaller copies alone."""
        if self.request.only_prepared:
            size = self.request.prepared_size
            make_copies(self.root, files, size, self.report, source=source, task=f"copies of {split}")
            return
        for file in files:
            own_folder((self.root / file).parent)
            link(source / file, self.root / file)

    def _copy_members(self, archive: Archive, files: list[str]) -> None:
        """Smaller copies of those `files` that the source's archive holds."""
        with zipfile.ZipFile(self._verified(archive)) as members:
            there, size = sorted(set(files) & set(members.namelist())), self.request.prepared_size
            source, task = zipfile.Path(members), f"copies of {archive.name}"
            make_copies(self.root, there, size, self.report, source=source, task=task)

    def _unpack(self, archive: Archive, members: re.Pattern[str], keep: Callable[[Entry], None]) -> None:
        path = self._verified(archive)
        unpack(path, self.root, members, self.report, keep)
        if path.parent != self.request.source:
            self._drop(archive)

    def _verified(self, archive: Archive) -> Path:
        """The published archive to the bit, of the source, or fetched into data.root."""
        path = self.request.source_archive(archive)
        if path is None:
            urls, folder = self.request.urls(archive.path), self.root / WORK
            return download(archive, urls, folder, self.report, self.request.retries)
        if not is_published(path, archive, self.report):
            size = path.stat().st_size
            raise DataError(
                f"{path} is not the published {archive.name}: {size:,} bytes of {archive.size:,}, or another "
                f"SHA-256 (--source). Fetch it again"
            )
        return path

    def _drop(self, archive: Archive) -> None:
        """Once all of it is unpacked; in a later call, when a kill came in between."""
        for name in (archive.name, f"{archive.name}.part", f"{archive.name}.part.json"):
            (self.root / WORK / name).unlink(missing_ok=True)
        shutil.rmtree(self.root / WORK / f"unpacking-{Path(archive.name).stem}", ignore_errors=True)

    def _store(self, image: RemoteImage, data: bytes) -> None:
        # Noted first: a kill in between leaves a line without a file, which is then fetched again.
        self.originals.add(Entry(image.file, len(data), hashlib.sha256(data).hexdigest()))
        arrived = self.incoming / image.file.replace("/", "-")
        take_name(write_temporary(arrived, lambda file: file.write(data)), self.root / image.file)

    def _note_originals(self, table: CaptionTable) -> None:
        """Note what came otherwise than over the network, so that a later change of it is seen."""
        new = [file for file in table.files if file not in self.originals.entries]
        _, copies = read_manifest(copies_manifest(self.root, self.request.prepared_size))

        def note(file: str) -> None:
            path = self.root / file
            known = copies[file].source if file in copies else ""
            self.originals.add(Entry(file, path.stat().st_size, known or hashlib.sha256(path.read_bytes()).hexdigest()))

        in_threads(note, new, f"noting {table.files[0].split('/')[0]}", self.report)
        sync_folder(self.root)
