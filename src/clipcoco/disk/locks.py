"""One process at a time, by `flock`: the system takes the lock back when its holder dies."""

import contextlib
import errno
import fcntl
import os
import re
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from clipcoco.errors import EnvironmentProblem

# What file systems without locks answer: NFS without its lock service, some FUSE mounts and network shares. And
# EBADF, NFS to another user's lock file, which can be opened for reading only.
_MISSING = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF}
_HELD = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES}


class Held(Exception):
    """Another process has it: "12 on host", or nothing where that is not known."""


@contextmanager
def lock(path: Path) -> Iterator[str]:
    """Hold `path`, which stays afterwards; gives a line to tell where the file system has no locks, else "".

    Raises Held, or OSError when it can't be opened.
    """
    file = _open(path)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            note = ""
        except OSError as error:
            if error.errno in _HELD:
                raise Held(_holder(file)) from None
            if error.errno not in _MISSING:
                raise
            note = f"{path} can't be locked ({error.strerror}): see to it that no other process works there"
        if not os.fstat(file).st_nlink:  # removed while we opened it: what is locked has no name
            raise Held("")
        _write_holder(file)
        yield note
    finally:
        os.close(file)


@contextmanager
def claim(path: Path, what: str, doing: str) -> Iterator[str]:
    """`lock` for those who do not wait. Raises EnvironmentProblem: `what` `doing` another process."""
    with ExitStack() as stack:
        try:
            note = stack.enter_context(lock(path))
        except Held as holder:
            who = f"another process{', ' * bool(str(holder))}{holder}"
            raise EnvironmentProblem(f"{what} {doing} {who} ({path}). Wait for it, or press Ctrl-C there") from None
        except OSError as error:
            raise EnvironmentProblem(f"{what} can't be locked: {error.strerror} ({path})") from error
        yield note


def is_held(path: Path) -> bool | None:
    """Whether a process holds it, asked by a shared lock that is given back at once; None where nobody can tell."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError as error:
        return True if error.errno in _HELD else None
    finally:
        os.close(file)


def _open(path: Path) -> int:
    """Who may write into the folder may write the lock too; a lock that another user made is locked unwritten."""
    flags = os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | flags, 0o666)
    except FileExistsError:
        try:
            return os.open(path, os.O_RDWR | flags)
        except PermissionError:
            return os.open(path, os.O_RDONLY | flags)
    with contextlib.suppress(OSError):
        os.fchmod(file, stat.S_IMODE(path.parent.stat().st_mode) & 0o666)
    return file


def _write_holder(file: int) -> None:
    """For those who find it held. Into a file of ours only: a stranger may have linked another one here."""
    status = os.fstat(file)
    if status.st_nlink == 1 and (not status.st_size or _holder(file)):
        with contextlib.suppress(OSError):  # not ours to write, or a full disk: the lock holds all the same
            os.ftruncate(file, 0)
            os.pwrite(file, f"{os.getpid()} on {socket.gethostname()}\n".encode(), 0)


def _holder(file: int) -> str:
    text = os.pread(file, 300, 0).decode(errors="replace").strip()
    return text if re.fullmatch(r"\d+ on [\w.-]+", text, re.ASCII) else ""
