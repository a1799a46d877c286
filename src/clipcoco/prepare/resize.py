"""Smaller copies of all images, made once: at 640x480 pixels most of an epoch's decoding is thrown away again.

A copy has its original's name, is in prepared-<size>/, and is listed in the manifest there once it
is on the disk: whatever ends a call, the same call goes on. Threads make the copies: they leave nothing behind when
the process is killed.
"""

import hashlib
import io
import math
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Self

from PIL import Image

from clipcoco.data.manifest import Entry, Manifest, copies_folder, copies_manifest
from clipcoco.data.viewer import VIEW, UnreadableImage, opened
from clipcoco.disk.files import need_room, open_new, sync_volume
from clipcoco.errors import DataError, EnvironmentProblem
from clipcoco.events import ReportTask
from clipcoco.prepare.threads import in_threads

# Seen at 224 px, 4:2:0 costs chroma alone, where the error stays 9 dB below that of luma; a quality of 95 gains
# 0.3 dB of luma with files 1.4 times as large, which are slower to decode.
QUALITY, SUBSAMPLING = 90, "4:2:0"
FILTER = "bicubic, antialiased"
_LONGEST_JPEG = 65_500  # pixels of a side that libjpeg writes
_BATCH = 256  # copies between two calls of sync, which takes milliseconds


def settings(size: int) -> dict[str, Any]:
    """What decides the bytes of the copies, and the libraries that made the latest: their manifest's first line."""
    made_with = {name: version(name) for name in ("torch", "torchvision", "pillow")}
    decided = {"size": size, "quality": QUALITY, "subsampling": SUBSAMPLING, "filter": FILTER, "view": VIEW}
    return decided | {"made_with": made_with}


def copy_bytes(size: int) -> int:
    """A copy of a photograph on average, with the half block that a file wastes: measured on COCO."""
    return round(33_000 * math.pow(size / 256, 1.7)) + 2_048


def reduced(data: bytes, size: int) -> bytes:
    """What a viewer shows, as JPEG bytes with a shorter side of `size` pixels: greyscale as such, all else as RGB.

    The very same bytes when it is not larger already, when a copy would take more bytes, or when it can't be
    decoded: training then replaces and counts it, as it does with the original. A copy is upright and in sRGB,
    and no metadata are carried over.
    """
    from torch.nn.functional import interpolate  # slow to import, and a call with nothing to do needs none of it

    from clipcoco.data.images import decode

    try:
        pixels = decode(data)
    except UnreadableImage:
        return data
    height, width = pixels.shape[1:]
    shorter = min(height, width)
    new_height, new_width = (round(side * size / shorter) for side in (height, width))
    if shorter <= size or max(new_height, new_width) > _LONGEST_JPEG:
        return data
    pixels = interpolate(pixels[None], size=(new_height, new_width), mode="bicubic", antialias=True)[0]
    with opened(data) as stored:
        grey = stored.mode == "L"
    grey = grey and bool((pixels == pixels[:1]).all())  # a profile may tint what was stored as grey
    picture = Image.fromarray(pixels[0].numpy() if grey else pixels.permute(1, 2, 0).numpy())
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY, subsampling=SUBSAMPLING)
    return min(buffer.getvalue(), data, key=len)


def write_copy(folder: Path, file: str, data: bytes, size: int) -> Entry:
    """Write the copy of the original `data` to folder/file, whole or not at all, but not yet synced to the disk."""
    copy = reduced(data, size)
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    # The same name every time: what a kill leaves behind is written over when the copy is made again.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open_new(temporary) as new:
            new.write(copy)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return Entry(file, len(copy), hashlib.sha256(copy).hexdigest(), hashlib.sha256(data).hexdigest())


def whole_copies(folder: Path, entries: Mapping[str, Entry]) -> set[str]:
    """The images whose copy is there. Its line alone is not enough: a person may have removed what was altered."""
    return {file for file, entry in entries.items() if file_size(folder / file) == entry.size}


def file_size(path: Path) -> int:
    """In bytes; -1 without a file."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


@dataclass
class Copies:
    made: int = 0
    kept: int = 0  # that were there already
    bytes_before: int = 0  # of the originals of those made
    bytes_after: int = 0


class CopyStore:
    """Open while copies are made: `store` takes originals from any thread, wherever they come from.

    Copies are noted in the manifest when the system has been told to put them on the disk, by the hundred:
    syncing each would take longer than making it. The end of the block notes the rest, after an error too.
    """

    def __init__(self, root: Path, size: int) -> None:
        self.root, self.size, self.folder = root, size, copies_folder(root, size)
        self.copies = Copies()
        self._pending: list[Entry] = []
        self._lock = Lock()

    def __enter__(self) -> Self:
        with _write_problems(self.folder):
            self._manifest = Manifest(copies_manifest(self.root, self.size), settings(self.size))
            self._manifest.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with _write_problems(self.folder), self._manifest:
            self._note(self._pending)

    def missing(self, files: Sequence[str]) -> list[str]:
        """Those of `files` without a whole copy, each once."""
        asked, entries = dict.fromkeys(files), self._manifest.entries
        whole = whole_copies(self.folder, {file: entries[file] for file in asked if file in entries})
        return [file for file in asked if file not in whole]

    def store(self, file: str, original: bytes) -> None:
        """Make the copy of `file`. Raises EnvironmentProblem when it can't be written."""
        with _write_problems(self.folder):
            entry = write_copy(self.folder, file, original, self.size)
        with self._lock:
            self.copies.made += 1
            self.copies.bytes_before += len(original)
            self.copies.bytes_after += entry.size
            self._pending.append(entry)
            if len(self._pending) < _BATCH:
                return
            batch, self._pending = self._pending, []
        with _write_problems(self.folder):
            self._note(batch)

    def _note(self, entries: list[Entry]) -> None:
        sync_volume(self.folder)
        for entry in entries:
            self._manifest.add(entry)


def make_copies(
    root: Path,
    files: Sequence[str],
    size: int,
    report: ReportTask,
    threads: int | None = None,
    source: Path | zipfile.Path | None = None,
    task: str = "",
) -> Copies:
    """Make what is missing of root/prepared-<size>/ for `files`, "train2017/000000000009.jpg" and the like.

    The originals are in `root` unless another `source` is given. The bytes are equal for every number of `threads`,
    one a core unless given. Copies of an original that has changed since are kept. Raises DataError for an original
    that can't be read from the disk, and EnvironmentProblem when there is no room, before the first copy where that
    can be foreseen.
    """
    with CopyStore(root, size) as store:
        missing = store.missing(files)
        store.copies.kept = len(set(files)) - len(missing)
        if missing:
            if source is None:
                _check_room(root, missing, size)
            import clipcoco.data.images  # noqa: F401  here, as Ctrl-C can't end what a thread imports

            def make(file: str) -> None:
                path = (source or root) / file
                with _read_problems(path) if source is None else nullcontext():
                    original = path.read_bytes()
                store.store(file, original)

            task = task or f"{store.folder.name}/{missing[0].split('/')[0]}"
            in_threads(make, missing, task, report, store.copies.kept, threads)
        return store.copies


def _check_room(root: Path, files: list[str], size: int) -> None:
    need, typical = 0, copy_bytes(size)
    for file in files:
        with _read_problems(root / file):
            need += min(typical, (root / file).stat().st_size)
    need_room(root, need, f"{len(files):,} smaller copies need", "--root", "give another --root")


@contextmanager
def _read_problems(path: Path | zipfile.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}. Get the file again, or see to the disk") from error


@contextmanager
def _write_problems(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EnvironmentProblem(
            f"smaller copies can't be written: {error.strerror} ({folder}). "
            "See to the disk, then run the same command again: it goes on from here"
        ) from error
