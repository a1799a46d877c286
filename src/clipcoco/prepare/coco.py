"""COCO from wherever it lies onto the disk, as a plan says: captions, images, smaller copies.

Whatever ends a call, the same call goes on: what has its final name is whole.
"""

import hashlib
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from clipcoco.cores import usable_cores
from clipcoco.data.annotations import annotation_file
from clipcoco.data.captions import CaptionTable
from clipcoco.data.manifest import Entry, Manifest, copies_folder, copies_manifest, read_manifest
from clipcoco.data.split import check_files, missing_files
from clipcoco.disk.files import link, sync_folder, take_name, write_temporary
from clipcoco.disk.links import own_folder
from clipcoco.errors import DataError, EnvironmentProblem
from clipcoco.events import ReportTask, TaskProgress
from clipcoco.prepare import carried
from clipcoco.prepare.download import download
from clipcoco.prepare.lock import lock
from clipcoco.prepare.network import Patience
from clipcoco.prepare.own import STATE
from clipcoco.prepare.plan import (
    COCO,
    FOLDERS,
    WORK,
    Archive,
    Coco,
    Plan,
    Wish,
    choose_part,
    has_captions,
    remote_file,
    remote_images,
    still_missing,
    wanted,
)
from clipcoco.prepare.resize import CopyStore, make_copies
from clipcoco.prepare.single_images import RemoteImage, fetch_images
from clipcoco.prepare.unpack import unpack

_CHUNK = 2**20
_CAPTIONS = re.compile(r"annotations/captions_(train|val)2017\.json")


@dataclass(frozen=True)
class Prepared:
    tables: dict[str, CaptionTable]  # by split
    copies: int  # made by this call
    bytes_before: int  # of the originals of these
    bytes_after: int
    note: str  # where the file system has no locks


def originals_manifest(root: Path) -> Path:
    return root / WORK / "originals.jsonl"


def prepare(
    wish: Wish,
    plan: Plan,
    report: ReportTask,
    coco: Coco = COCO,
    patience: Patience = Patience(),  # noqa: B008
) -> Prepared:
    """Do what `plan` says, that of `wish`. Raises DataError or EnvironmentProblem; the same call then goes on."""
    try:
        return _prepare(wish, plan, report, coco, patience)
    except OSError as error:  # what a full or broken disk raises names no file
        raise EnvironmentProblem(
            f"{error.strerror or error} ({error.filename or wish.root}). Make room or check the permissions, "
            "then run the same command again: it goes on where it was"
        ) from error


def _prepare(wish: Wish, plan: Plan, report: ReportTask, coco: Coco, patience: Patience) -> Prepared:
    with lock(wish.root) as note, Manifest(originals_manifest(wish.root), {"images": "originals"}) as originals:
        _sweep(wish.root)
        check_room(plan, wish)
        _get_captions(wish, coco, report, patience)
        tables = {split: wanted(wish, split) for split in FOLDERS}
        copied = before = after = 0
        for split, table in tables.items():
            _get_images(wish, coco, split, table, originals, report, patience)
            if not wish.only_prepared:
                check_files(table)
            if wish.prepared_size:
                there = sorted(set(table.files) - set(missing_files(table))) if wish.only_prepared else table.files
                made = make_copies(wish.root, there, wish.prepared_size, report)
                copied, before, after = copied + made.made, before + made.bytes_before, after + made.bytes_after
            if not wish.only_prepared:
                _note_originals(wish, table, originals, report)
        return Prepared(tables, copied, before, after, note)


def check_room(plan: Plan, wish: Wish) -> None:
    """Raise EnvironmentProblem when the plan needs more than is free."""
    if plan.room > plan.free:
        other = "" if wish.only_prepared else ", or keep smaller copies alone: --only-prepared"
        raise EnvironmentProblem(
            f"{plan.room / 1e9:.1f} GB are needed, {plan.free / 1e9:.1f} GB are free on the volume of {wish.root} "
            f"(--root). Free space, or give another --root{other}"
        )


def _get_captions(wish: Wish, coco: Coco, report: ReportTask, patience: Patience) -> None:
    if has_captions(wish.root):
        _drop_archive(wish.root, coco.annotations)
        return
    if wish.source and has_captions(wish.source):
        own_folder(wish.root / "annotations")
        for split in FOLDERS:
            link(annotation_file(wish.source, split), annotation_file(wish.root, split))
        return
    archive, ours = _archive(wish, coco.annotations, coco, report, patience)
    unpack(archive, wish.root, _CAPTIONS, coco.captions_bytes, report, lambda entry: None)
    if ours:
        _drop_archive(wish.root, coco.annotations)


def _drop_archive(root: Path, archive: Archive) -> None:
    """Once all of it is unpacked; in a later call, when a kill came in between."""
    for name in (archive.name, f"{archive.name}.part", f"{archive.name}.part.json"):
        (root / WORK / name).unlink(missing_ok=True)
    shutil.rmtree(root / WORK / f"unpacking-{Path(archive.name).stem}", ignore_errors=True)


def _is_whole(wish: Wish, coco: Coco, split: str) -> bool:
    """Whether there is nothing left of the split that its archive could bring."""
    folder = (copies_folder(wish.root, wish.prepared_size) if wish.only_prepared else wish.root) / split
    return folder.is_dir() and len(os.listdir(folder)) >= coco.counts[split][0]


def _archive(wish: Wish, archive: Archive, coco: Coco, report: ReportTask, patience: Patience) -> tuple[Path, bool]:
    """The verified archive, and whether it was fetched here and may go once it is unpacked."""
    if wish.source and (carried := wish.source / archive.name).is_file():
        size = carried.stat().st_size
        if size != archive.size or _sha256(carried, report) != archive.sha256:
            raise DataError(
                f"{carried} is not the published {archive.name}: {size:,} bytes of {archive.size:,}, or another "
                f"SHA-256 (--source). Fetch it anew"
            )
        return carried, False
    return download(remote_file(archive, coco, wish), wish.root / WORK, report, patience), True


def _get_images(
    wish: Wish,
    coco: Coco,
    split: str,
    table: CaptionTable,
    originals: Manifest,
    report: ReportTask,
    patience: Patience,
) -> None:
    missing = still_missing(wish, table)
    if missing and wish.source:
        there = carried.take(wish.source, wish, missing, report)
        if len(there) < len(missing) and (wish.source / coco.images[split].name).is_file():
            archive, _ = _archive(wish, coco.images[split], coco, report, patience)
            if wish.only_prepared:
                carried.copy_members(archive, wish, missing, report)
            else:
                _unpack_images(archive, wish, coco, split, originals, report)
        missing = still_missing(wish, table)
    if not missing:
        if _is_whole(wish, coco, split):
            _drop_archive(wish.root, coco.images[split])
        return
    if (wish.root / STATE).is_file():
        raise DataError(
            f"{len(missing):,} pictures of your own are missing in {wish.root} (--root), first {missing[0]}. "
            "Give the command that brought them again: prepare-data --captions FILE --images DIR --root DIR"
        )
    images = remote_images(table, missing, coco, wish)
    if wish.only_prepared:
        import clipcoco.data.images  # noqa: F401  here, as Ctrl-C can't end what a thread imports

        with CopyStore(wish.root, wish.prepared_size) as copies:
            fetch_images(images, lambda image, data: copies.store(image.file, data), report, patience=patience)
    elif choose_part(replace(wish, source=None), coco, split, len(table.files), len(missing)).way == "archive":
        archive, ours = _archive(wish, coco.images[split], coco, report, patience)
        _unpack_images(archive, wish, coco, split, originals, report)
        if ours:
            _drop_archive(wish.root, coco.images[split])
    else:
        own_folder(wish.root / split)
        incoming = _incoming(wish.root)
        incoming.mkdir(exist_ok=True)

        def store(image: RemoteImage, data: bytes) -> None:
            # Noted first: a kill in between leaves a line without a file, which is then fetched anew.
            originals.add(Entry(image.file, len(data), hashlib.sha256(data).hexdigest()))
            arrived = incoming / image.file.replace("/", "-")
            take_name(write_temporary(arrived, lambda file: file.write(data)), wish.root / image.file)

        fetch_images(images, store, report, patience=patience)
        sync_folder(wish.root / split)


def _incoming(root: Path) -> Path:
    return root / WORK / "incoming"


def _sweep(root: Path) -> None:
    """Remove what a killed call had not finished; the caller holds the lock."""
    shutil.rmtree(_incoming(root), ignore_errors=True)
    for path in (*(root / WORK).glob(".*.tmp"), *root.glob("prepared-*/.*.tmp")):
        path.unlink()


def _unpack_images(archive: Path, wish: Wish, coco: Coco, split: str, originals: Manifest, report: ReportTask) -> None:
    members = re.compile(rf"{split}/\d{{12}}\.jpg")
    unpack(archive, wish.root, members, coco.images[split].size, report, originals.add)


def _note_originals(wish: Wish, table: CaptionTable, originals: Manifest, report: ReportTask) -> None:
    """Note what came otherwise than over the network, so that a later change of it is seen."""
    new = [file for file in table.files if file not in originals.entries]
    _, copies = read_manifest(copies_manifest(wish.root, wish.prepared_size))

    def note(file: str) -> None:
        path = wish.root / file
        known = copies[file].source if file in copies else ""
        originals.add(Entry(file, path.stat().st_size, known or hashlib.sha256(path.read_bytes()).hexdigest()))

    name = f"noting {table.files[0].split('/')[0]}"
    with ThreadPoolExecutor(usable_cores()) as pool:
        for done, _ in enumerate(pool.map(note, new), start=1):
            report(TaskProgress(name, done, len(new), "images"))
    sync_folder(wish.root)


def _sha256(path: Path, report: ReportTask) -> str:
    digest, done, size = hashlib.sha256(), 0, path.stat().st_size
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            report(TaskProgress(path.name, done, size, "bytes"))
    return digest.hexdigest()
