"""One `prepare-data` at a time for a folder."""

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from clipcoco.errors import EnvironmentProblem
from clipcoco.files import write_atomically
from clipcoco.prepare.plan import WORK


@contextmanager
def lock(root: Path) -> Iterator[None]:
    """Hold `root`, which is made where needed; the system takes the lock back when its holder dies."""
    path, was_there = root / WORK / "lock", root.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentProblem(f"{root} can't be made: {error.strerror} (--root). Give another") from error
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
        if not was_there and {entry.name for entry in root.rglob("*")} <= {WORK, "lock", "holder"}:
            shutil.rmtree(root)  # nothing came of it: a wrong name leaves no folder behind
