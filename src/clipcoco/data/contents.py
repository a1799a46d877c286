"""Which bytes the pictures of a table have: so that a later look can say which of them are others now.

What was read is remembered in .clipcoco as long as a file keeps its size and its times, so that gigabytes are
read once. A folder that can't be written to costs the reading, each time.
"""

import contextlib
import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import StringConstraints, TypeAdapter

from clipcoco.cores import usable_cores
from clipcoco.data.captions import CaptionTable
from clipcoco.data.split import ORIGINALS, Source
from clipcoco.disk.seal import read_sealed, write_sealed
from clipcoco.errors import DataError
from clipcoco.events import Progress, Report

Digests = npt.NDArray[np.uint8]
WIDTH = 16  # bytes of a SHA-256: no two pictures share them by chance
_JUST_NOW = 2 * 10**9  # nanoseconds: within them a file may change once more and keep its times
_Stamp = tuple[int, int, int]  # size, time of its content, time of its entry
_Sum = Annotated[str, StringConstraints(pattern="^([0-9a-f]{64})?$")]  # "" of a file that can't be read
_PICTURES = TypeAdapter(dict[Any, tuple[int, int, int, _Sum]])  # of a file its stamp and its SHA-256


def contents_of(table: CaptionTable, source: Source, report: Report = lambda event: None) -> Digests:
    """(N, 16): the first bytes of the SHA-256 of each image; of copies, that of their originals, unread.

    A file that can't be read has zeros. Raises DataError for copies that are not those that were made.
    """
    if source.name == ORIGINALS:
        digests = _read(table.folder, table.files, report)
    else:
        root, name = table.folder.parent, table.folder.name
        held = dict(zip(table.files, _read(root, [f"{name}/{file}" for file in table.files], report), strict=True))
        if altered := [file for file, sha256 in held.items() if sha256 not in ("", source.copies[file])]:
            raise DataError(
                f"{len(altered):,} copies in {table.folder} are not those that were made, first {altered[0]} "
                f"(data.prepared_size). Remove them, and make them again: clipcoco prepare-data; its --verify names all"
            )
        digests = [held[file] and (source.originals[file] or held[file]) for file in table.files]
    joined = bytearray().join(bytes.fromhex(digest)[:WIDTH].ljust(WIDTH, b"\0") for digest in digests)
    return np.frombuffer(joined, np.uint8).reshape(len(digests), WIDTH)


def _read(root: Path, files: list[str], report: Report) -> list[str]:
    cache = root / ".clipcoco" / "pictures.json"
    known, now = _remembered(cache), time.time_ns()
    stamps = {file: _stamp(root / file) for file in files}
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
                write_sealed(cache, {"pictures": lasting})
    return [known[file][3] for file in files]


def _stamp(path: Path) -> _Stamp:
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


def _remembered(cache: Path) -> dict[Any, tuple[int, int, int, str]]:
    try:
        return _PICTURES.validate_python(read_sealed(cache)["pictures"])
    except (OSError, ValueError, LookupError, TypeError):
        return {}  # not there, damaged, or a stranger's
