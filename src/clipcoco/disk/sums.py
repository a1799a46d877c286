"""SHA-256 of files, remembered in .clipcoco as long as a file keeps its size and its times: gigabytes are read once.

A folder that can't be written to costs the reading, each time.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

from pydantic import StringConstraints, TypeAdapter

from clipcoco.cores import usable_cores
from clipcoco.disk.seal import read_sealed, write_sealed
from clipcoco.events import Progress, Report

_JUST_NOW = 2 * 10**9  # nanoseconds: within them a file may change once more and keep its times
_Stamp = tuple[int, int, int]  # size, time of its content, time of its entry
_Sum = Annotated[str, StringConstraints(pattern="^([0-9a-f]{64})?$")]  # "" of a file that can't be read
_SUMS = TypeAdapter(dict[Any, tuple[int, int, int, _Sum]])  # of a file its stamp and its SHA-256


def sums_of(root: Path, files: Sequence[str], what: str, report: Report = lambda event: None) -> list[str]:
    """Of `files` below `root`, in hexadecimal, "" of one that can't be read; `what` they are names the memory."""
    cache = root / ".clipcoco" / f"{what}.json"
    known, now = _remembered(cache, what), time.time_ns()
    stamps = {file: _stamp(f"{root}/{file}") for file in files}
    stale = [file for file in files if known.get(file, ())[:3] != stamps[file]]
    pool = ThreadPoolExecutor(usable_cores())
    try:
        digests = zip(stale, pool.map(_sha256, (root / file for file in stale)), strict=True)
        for done, (file, digest) in enumerate(digests, start=1):
            known[file] = (*stamps[file], digest)
            report(Progress("hash", done, len(stale)))
    finally:
        pool.shutdown(cancel_futures=True)
        lasting = {file: entry for file, entry in known.items() if max(entry[1], entry[2]) < now - _JUST_NOW}
        if stale and lasting:
            with contextlib.suppress(OSError):  # a folder of somebody else
                cache.parent.mkdir(exist_ok=True)
                write_sealed(cache, {what: lasting})
    return [known[file][3] for file in files]


def _stamp(path: str) -> _Stamp:
    """The time of the entry moves, too, when another file of equal size and time takes the name."""
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0, 0
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _sha256(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _remembered(cache: Path, what: str) -> dict[Any, tuple[int, int, int, str]]:
    try:
        return _SUMS.validate_python(read_sealed(cache)[what])
    except (OSError, ValueError, LookupError, TypeError):
        return {}  # not there, damaged, or a stranger's
