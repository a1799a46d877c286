"""COCO's archives -> files below data.root.

The archive is the published one, to the bit: whoever calls has compared its SHA-256, so its members are no strangers.
A member counts as unpacked once it has the size and the CRC that the archive declares, so that a call after a kill or
a full disk goes on where the last one ended.
"""

import errno
import hashlib
import os
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from clipcoco.data.manifest import Entry
from clipcoco.disk.files import FULL, need_room, open_new, sync_folder, sync_volume
from clipcoco.errors import DataError, EnvironmentProblem
from clipcoco.events import ReportTask, TaskProgress

_CHUNK = 2**20  # bytes
_BLOCK = 4096  # bytes: what the last, begun block of a file takes from the disk
_AGAIN = "Get the archive again"
# What zipfile raises on damaged archives; RuntimeError covers the features that it lacks.
_DAMAGED = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError, OverflowError)

Members = dict[str, zipfile.ZipInfo]  # by name: "val2017/000000000139.jpg"


def unpack(
    archive: Path,
    root: Path,
    members: re.Pattern[str],
    report: ReportTask,
    keep: Callable[[Entry], None],
) -> None:
    """Write the members whose whole name matches `members`, each "folder/name", below `root`.

    `keep` is told of each file once it is at its place, whole. Files that are there already with the right size and
    CRC are read, not written. Raises DataError for an archive that is damaged and for folders that are links,
    EnvironmentProblem for disk and permissions; what was unpacked until then stays for the next call.
    """
    job = _Unpacking(archive, root, report, keep)
    try:
        with open(archive, "rb") as file:
            try:
                zip_file = zipfile.ZipFile(file)
            except _DAMAGED as error:
                raise job.refusal(f"{archive.name} is not a whole zip archive: {_said(error)}") from None
            wanted = {info.filename: info for info in zip_file.infolist() if members.fullmatch(info.filename)}
            if not wanted:
                raise job.refusal(f"{archive.name} has no member that is looked for")
            total = sum(info.file_size for info in wanted.values())
            job.make_folders(wanted)
            _check_space(root, job.staging, wanted, archive)
            staged = job.write(zip_file, wanted, total)
        job.move(staged)
    except OSError as error:
        where = f"cannot unpack {archive.name} into {root} ({error.strerror or error})"
        make = "Make room" if error.errno in {*FULL, errno.EFBIG} else "Check the permissions"
        raise EnvironmentProblem(f"{where}. {make}, then run the same command: what is unpacked stays") from error
    report(TaskProgress(f"unpack {archive.name}", total, total, "bytes", f"{len(wanted):,} files"))


class _Unpacking:
    def __init__(self, archive: Path, root: Path, report: ReportTask, keep: Callable[[Entry], None]) -> None:
        self.archive, self.root, self.report, self.keep = archive, root, report, keep
        self.staging = root / ".clipcoco" / f"unpacking-{archive.stem}"

    def refusal(self, what: str) -> DataError:
        return DataError(f"{what} ({self.archive}). {_AGAIN}")

    def make_folders(self, wanted: Members) -> None:
        """The staging folders, without what another archive of this name left there."""
        for folder in {name.split("/")[0] for name in wanted}:
            target = self.root / folder
            if target.is_symlink() or (target.exists() and not target.is_dir()):
                what = f"{target} is a link or a file, not a folder (data.root)"
                raise DataError(f"{what}. Remove it, or let data.root be the folder that really holds the images")
            (self.staging / folder).mkdir(parents=True, exist_ok=True)
            with os.scandir(self.staging / folder) as entries:
                for entry in entries:
                    if f"{folder}/{entry.name}" not in wanted:
                        os.unlink(entry)

    def write(self, zip_file: zipfile.ZipFile, wanted: Members, total: int) -> dict[str, list[Entry]]:
        """See that each member is at its place or in `staging`; gives those in `staging`, by folder."""
        staged: dict[str, list[Entry]] = {}
        done = 0
        for name, info in wanted.items():
            self.report(TaskProgress(f"unpack {self.archive.name}", done, total, "bytes"))
            if digest := _verified(self.root / name, info):
                self.keep(Entry(name, info.file_size, digest))
            else:
                staged_file = self.staging / name
                digest = _verified(staged_file, info) or self._extract(zip_file, info, staged_file)
                staged.setdefault(name.split("/")[0], []).append(Entry(name, info.file_size, digest))
            done += info.file_size
        return staged

    def _extract(self, zip_file: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> str:
        """Write one member, and give its SHA-256. zipfile checks its CRC, and reads no more than it declares."""
        digest, size = hashlib.sha256(), 0
        try:
            with zip_file.open(info) as source, open_new(target) as file:
                while chunk := source.read(_CHUNK):
                    file.write(chunk)
                    digest.update(chunk)
                    size += len(chunk)
            if size != info.file_size:
                raise zipfile.BadZipFile(f"{size:,} bytes where {info.file_size:,} are declared")
        except BaseException as error:
            target.unlink(missing_ok=True)
            if isinstance(error, _DAMAGED):
                raise self.refusal(f"member {info.filename!r} is damaged: {_said(error)}") from None
            raise
        return digest.hexdigest()

    def move(self, staged: dict[str, list[Entry]]) -> None:
        """To where training looks: a new folder in one step, into one that exists file by file."""
        root, staging = self.root, self.staging
        if staged:
            sync_volume(staging)  # once for all, instead of 118,287 times for each
        for folder, entries in staged.items():
            if (root / folder).exists():
                for entry in entries:
                    os.replace(staging / entry.file, root / entry.file)
            else:
                os.rename(staging / folder, root / folder)
            sync_folder(root / folder)
            sync_folder(root)
            for entry in entries:
                self.keep(entry)
        shutil.rmtree(staging)


def _said(error: Exception) -> str:
    """An error's text, which may quote the archive, at a length for one line."""
    return " ".join(str(error).split())[:120]


def _check_space(root: Path, staging: Path, wanted: Members, archive: Path) -> None:
    missing = (
        -(-info.file_size // _BLOCK) * _BLOCK
        for name, info in wanted.items()
        if info.file_size not in (_size(root / name), _size(staging / name))
    )
    need_room(root, sum(missing), f"unpacking {archive.name} still needs", "--root", "give another --root")


def _size(path: Path) -> int:
    """Of a regular file, in bytes; -1 of all else."""
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return -1
    return status.st_size if stat.S_ISREG(status.st_mode) else -1


def _verified(path: Path, info: zipfile.ZipInfo) -> str | None:
    """The SHA-256 of a file that has the size and the CRC of the member; None if it has not."""
    if _size(path) != info.file_size:
        return None
    crc, digest = 0, hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
            digest.update(chunk)
    return digest.hexdigest() if crc == info.CRC else None
