"""Files that are whole or absent: written beside, synced, then renamed into place.

Whatever is at such a name already, a link or another name of somebody's file: nothing is written through it.
"""

import ctypes
import errno
import glob
import json
import os
import secrets
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from clipcoco.errors import EnvironmentProblem

FULL = {errno.ENOSPC, errno.EDQUOT}  # what a disk answers where freeing space helps

# What folders answer that can't be synced: some network, FUSE and virtual machines' shares. Files there can.
_UNSYNCED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF}


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut, where the file system can promise it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSYNCED:
            raise
    finally:
        os.close(descriptor)


def sync_volume(folder: Path) -> None:
    """Put all that was written to the volume of `folder` on the disk, for where syncing each file takes too long."""
    syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if syncfs is None:  # macOS
        os.sync()
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if syncfs(descriptor) and (code := ctypes.get_errno()) not in _UNSYNCED:
            raise OSError(code, os.strerror(code), str(folder))
    finally:
        os.close(descriptor)


def free_bytes(folder: Path) -> int:
    """Of the volume that `folder` is or will be on."""
    while not os.path.isdir(folder):
        folder = folder.parent
    return shutil.disk_usage(folder).free


def need_room(folder: Path, needed: float, what: str, where: str, instead: str) -> None:
    """Raise EnvironmentProblem unless `needed` bytes are free for `folder`.

    `what` is the line's beginning, "the export needs"; `where` the setting; `instead` what helps beside freeing space.
    """
    if needed > (free := free_bytes(folder)):
        scale, unit = (1e9, "GB") if needed >= 1e9 else (1e6, "MB")
        raise EnvironmentProblem(
            f"{what} {needed / scale:,.1f} {unit}, {free / scale:,.1f} {unit} are free on the volume of {folder} "
            f"({where}). Free space, or {instead}"
        )


def temporary_name(path: Path) -> Path:
    """A name beside `path` that nobody else takes: two containers on one volume may have the same process ids."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def remove_leftovers(path: Path) -> None:
    """Delete what writing `path` left when it was killed; the caller is alone in writing it."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        left.unlink(missing_ok=True)


def read_own(path: Path, most: int = 2**26) -> bytes:
    """What a small file of ours holds. Raises OSError for a link, for a pipe, and above `most` bytes."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > most:
            raise OSError(errno.EFBIG, f"no file of at most {most:,} bytes", str(path))
        return file.read()


def open_new(path: Path) -> BinaryIO:
    """A new file in the place of whatever has that name."""
    path.unlink(missing_ok=True)
    return open(path, "xb")


def open_to_append(path: Path) -> BinaryIO:
    """Unbuffered. A file that another folder has a name for, too, is copied first: that one stays as it is."""
    with suppress(FileNotFoundError):
        if os.lstat(path).st_nlink > 1:
            shutil.copyfile(path, copy := temporary_name(path), follow_symlinks=False)
            os.replace(copy, path)
    return open(path, "ab+", buffering=0, opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o666))


def write_whole(file: BinaryIO, data: bytes) -> None:
    """To an unbuffered file: a nearly full disk takes a part. Raises OSError."""
    if file.write(data) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)


def write_temporary(path: Path, write: Callable[[BinaryIO], object]) -> Path:
    """Let `write` fill a new file beside `path`, on disk before this returns; gives its name.

    Nothing is left behind when `write` fails.
    """
    temporary = temporary_name(path)
    try:
        with open_new(temporary) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace `path` by `content` in one step: a reader sees the old file or the new one, whole."""
    data = content.encode() if isinstance(content, str) else content
    take_name(write_temporary(path, lambda file: file.write(data)), path)
    sync_folder(path.parent)


def take_name(temporary: Path, path: Path) -> None:
    """Rename in one step; nothing is left behind when that fails."""
    try:
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value) + "\n")


def link(source: Path, target: Path) -> bool:
    """`target` becomes the same file; whether by a symbolic link, as between volumes.

    A copy only where the file system knows no links at all.
    """
    target.unlink(missing_ok=True)
    for make in (os.link, os.symlink):
        try:
            make(source.resolve(), target)
        except OSError:
            continue
        return make is os.symlink
    take_name(copy_beside(source, target), target)
    return False


def copy_beside(source: Path, target: Path) -> Path:
    """A copy of `source` beside `target`, on the disk; gives its name."""
    with open(source, "rb") as content:
        return write_temporary(target, lambda file: shutil.copyfileobj(content, file))
