"""COCO from wherever it lies onto the disk, as a plan says: captions, images, smaller copies.

Whatever ends a call, the same call goes on: what has its final name is whole.
"""

import hashlib
import os
import re
import socket
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from clipcoco.data.captions import CaptionTable, check_files, missing_files
from clipcoco.data.manifest import Entry, Manifest, copies_folder, copies_manifest, read_manifest
from clipcoco.errors import DataError, EnvironmentProblem
from clipcoco.events import ReportTask, TaskProgress
from clipcoco.files import sync_folder, write_atomically
from clipcoco.prepare.download import Patience, RemoteImage, download, fetch_images
from clipcoco.prepare.plan import (
    COCO,
    SPLITS,
    WORK,
    Archive,
    Coco,
    Plan,
    Wish,
    choose_part,
    make_plan,
    remote_file,
    remote_images,
    still_missing,
    wanted,
)
from clipcoco.prepare.resize import make_copies, settings, write_copy
from clipcoco.prepare.unpack import unpack

_CHUNK = 2**20
_CAPTIONS = re.compile(r"annotations/captions_(train|val)2017\.json")


@dataclass(frozen=True)
class Prepared:
    tables: dict[str, CaptionTable]  # by split
    copies: int  # made by this call
    bytes_before: int  # of the originals of these
    bytes_after: int


def originals_manifest(root: Path) -> Path:
    return root / WORK / "originals.jsonl"


def prepare(wish: Wish, report: ReportTask, coco: Coco = COCO, patience: Patience = Patience()) -> Prepared:
    """Do what `make_plan` says. Raises DataError or EnvironmentProblem; the same call then goes on."""
    try:
        (wish.root / WORK).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentProblem(f"{wish.root} can't be made: {error.strerror} (--root). Give another") from error
    with lock(wish.root), Manifest(originals_manifest(wish.root), {"images": "originals"}) as originals:
        check_room(make_plan(wish, coco), wish.root)
        _get_captions(wish, coco, report, patience)
        tables = {split: wanted(wish, split) for split in SPLITS}
        copied = before = after = 0
        for split, table in tables.items():
            _get_images(wish, coco, split, table, originals, report, patience)
            if wish.prepared_size:
                there = sorted(set(table.files) - set(missing_files(table))) if wish.only_prepared else table.files
                made = make_copies(wish.root, there, wish.prepared_size, report)
                copied, before, after = copied + made.made, before + made.bytes_before, after + made.bytes_after
            if not wish.only_prepared:
                check_files(table)
                _note_originals(wish, table, originals, report)
        return Prepared(tables, copied, before, after)


@contextmanager
def lock(root: Path) -> Iterator[None]:
    """One `prepare-data` at a time for a folder; the system takes the lock back when its holder dies."""
    path = root / WORK / "lock"
    held, holder = FileLock(path), "another process"
    try:
        held.acquire(timeout=0)
    except Timeout:
        with suppress(OSError):
            holder = (root / WORK / "holder").read_text().strip()
        raise EnvironmentProblem(
            f"{root} is being prepared by {holder} ({path}). Wait for it, or stop it with Ctrl-C there"
        ) from None
    try:
        write_atomically(root / WORK / "holder", f"process {os.getpid()} on {socket.gethostname()}\n")
        yield
    finally:
        held.release()


def check_room(plan: Plan, root: Path) -> None:
    """Raise EnvironmentProblem when the plan needs more than is free."""
    if plan.room > plan.free:
        raise EnvironmentProblem(
            f"{plan.room / 1e9:.1f} GB are needed, {plan.free / 1e9:.1f} GB are free on the volume of {root} (--root). "
            "Free space, give another --root, or keep smaller copies alone: --only-prepared"
        )


def _get_captions(wish: Wish, coco: Coco, report: ReportTask, patience: Patience) -> None:
    names = [f"captions_{split}.json" for split in SPLITS]
    if all((wish.root / "annotations" / name).is_file() for name in names):
        return
    if wish.source and all((wish.source / "annotations" / name).is_file() for name in names):
        for name in names:
            link(wish.source / "annotations" / name, wish.root / "annotations" / name)
        return
    archive, ours = _archive(wish, coco.annotations, coco, report, patience)
    unpack(archive, wish.root, _CAPTIONS, coco.captions_bytes, report, lambda entry: None)
    if ours:
        archive.unlink()


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
        _take_from_source(wish, coco, split, missing, originals, report, patience)
        missing = still_missing(wish, table)
    if not missing:
        return
    way = choose_part(replace(wish, source=None), coco, split, len(table.files), len(missing)).way
    if way == "archive":
        archive, _ = _archive(wish, coco.images[split], coco, report, patience)
        _unpack_images(archive, wish, coco, split, originals, report)
        archive.unlink(missing_ok=True)
    elif wish.only_prepared:
        with _storing_copies(wish) as store:
            fetch_images(
                remote_images(table, missing, coco, wish), lambda image, data: store(image.file, data), report,
                patience=patience,
            )  # fmt: skip
    else:
        (wish.root / split).mkdir(exist_ok=True)

        def store_original(image: RemoteImage, data: bytes) -> None:
            # Noted first: a kill in between leaves a line without a file, which is then fetched anew.
            originals.add(Entry(image.file, len(data), hashlib.sha256(data).hexdigest()))
            write_atomically(wish.root / image.file, data)

        fetch_images(remote_images(table, missing, coco, wish), store_original, report, patience=patience)


@contextmanager
def _storing_copies(wish: Wish) -> Iterator[Callable[[str, bytes], None]]:
    """A function that keeps an original's smaller copy, and nothing else."""
    folder = copies_folder(wish.root, wish.prepared_size)
    with Manifest(copies_manifest(wish.root, wish.prepared_size), settings(wish.prepared_size)) as copies:
        yield lambda file, data: copies.add(write_copy(folder, file, data, wish.prepared_size))
        os.sync()


def _take_from_source(
    wish: Wish,
    coco: Coco,
    split: str,
    missing: list[str],
    originals: Manifest,
    report: ReportTask,
    patience: Patience,
) -> None:
    """What a person carried here: an archive, or a folder of images that is linked, never copied needlessly."""
    assert wish.source is not None
    here = [file for file in missing if (wish.source / file).is_file()]
    if wish.only_prepared:
        with _storing_copies(wish) as store:
            for done, file in enumerate(here):
                store(file, (wish.source / file).read_bytes())
                report(TaskProgress(split, done + 1, len(here), "images"))
    else:
        for file in here:
            link(wish.source / file, wish.root / file)
    if len(here) < len(missing) and (wish.source / coco.images[split].name).is_file():
        archive, _ = _archive(wish, coco.images[split], coco, report, patience)
        if wish.only_prepared:
            _copies_from_archive(archive, wish, set(missing) - set(here), report)
        else:
            _unpack_images(archive, wish, coco, split, originals, report)


def _unpack_images(archive: Path, wish: Wish, coco: Coco, split: str, originals: Manifest, report: ReportTask) -> None:
    members = re.compile(rf"{split}/\d{{12}}\.jpg")
    unpack(archive, wish.root, members, coco.images[split].size, report, originals.add)


def _copies_from_archive(archive: Path, wish: Wish, files: set[str], report: ReportTask) -> None:
    """The archive is the published one to the bit, so its members are what they say."""
    with zipfile.ZipFile(archive) as members, _storing_copies(wish) as store:
        there = sorted(files & set(members.namelist()))
        for done, file in enumerate(there):
            store(file, members.read(file))
            report(TaskProgress(archive.name, done + 1, len(there), "images"))


def link(source: Path, target: Path) -> None:
    """`target` becomes the same file: a hard link, or a copy where the two lie on different volumes."""
    target.parent.mkdir(exist_ok=True)
    source = source.resolve()
    beside = target.with_name(f".{target.name}.tmp")
    beside.unlink(missing_ok=True)
    try:
        os.link(source, beside)
    except OSError:
        beside.write_bytes(source.read_bytes())
    os.replace(beside, target)


def _note_originals(wish: Wish, table: CaptionTable, originals: Manifest, report: ReportTask) -> None:
    """Note what came otherwise than over the network, so that a later change of it is seen."""
    new = [file for file in table.files if file not in originals.entries]
    _, copies = read_manifest(copies_manifest(wish.root, wish.prepared_size))

    def note(file: str) -> None:
        path = wish.root / file
        known = copies[file].source if file in copies else ""
        originals.add(Entry(file, path.stat().st_size, known or hashlib.sha256(path.read_bytes()).hexdigest()))

    name = f"noting {table.files[0].split('/')[0]}"
    with ThreadPoolExecutor(os.cpu_count()) as pool:
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
