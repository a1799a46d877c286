"""Where the pictures of a captions file lie, and how large they are.

The names are untrusted data: no file outside of the folder of pictures is looked at, and only files that begin
as JPEG or PNG files do are let near a parser.
"""

import os
import struct
import unicodedata
import warnings
from collections.abc import Callable, Collection
from pathlib import Path, PurePosixPath

from PIL import Image

from clipcoco.events import ReportTask, TaskProgress
from clipcoco.prepare.own_captions import left_out

MAX_PIXELS = 64_000_000  # training reads no larger ones

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)

Sizes = dict[str, tuple[int, int, str]]  # by path: width, height, and the suffix of its format


def find(names: Collection[str], images: Path, notes: list[str]) -> dict[str, str]:
    """By name, the path of its file relative to `images`, a real path that no link may leave.

    Raises DataError when more than half are not there.
    """
    found: dict[str, str] = {}
    missing, outside = [], []
    loosely = _loosely(images)
    for name in names:
        if name.startswith("/") or ".." in PurePosixPath(name).parts:
            outside.append(f"{name!r:.80}")
            continue
        try:
            path = Path(os.path.realpath(images / name))
            if path.is_relative_to(images) and not os.path.isfile(path) and (other := loosely(name)):
                path = Path(os.path.realpath(images / other))
        except ValueError:  # a name that no file can have
            missing.append(f"{name!r:.80}")
            continue
        if not path.is_relative_to(images):
            outside.append(f"{name!r:.80}")
        elif os.path.isfile(path):  # never fails, however odd the name
            found[name] = path.relative_to(images).as_posix()
        else:
            missing.append(f"{name!r:.80}")
    hint = "Name the folder that the names in the captions file are relative to"
    left_out(outside, len(names), f"images lie outside of {images}", hint, notes)
    left_out(missing, len(names), f"images are missing in {images}", hint, notes)
    return found


def _loosely(images: Path) -> Callable[[str], str]:
    """Finds the one file directly in `images` whose name differs in case, Unicode form or by its suffix only."""
    index: dict[str, list[str]] = {}

    def key(name: str) -> str:
        return unicodedata.normalize("NFC", name).casefold()

    def find(name: str) -> str:
        if not index:
            for file in os.listdir(images):
                for spelling in {key(file), key(PurePosixPath(file).stem)}:
                    index.setdefault(spelling, []).append(file)
        candidates = index.get(key(name), [])
        return candidates[0] if len(candidates) == 1 else ""

    return find


def measure(paths: list[str], images: Path, report: ReportTask, notes: list[str]) -> Sizes:
    """Raises DataError when more than half of the files are no pictures that training could read."""
    sizes: Sizes = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of malformed metadata, and of pictures that are refused below
        for done, path in enumerate(paths):
            report(TaskProgress(f"read {images.name}", done, len(paths), "images"))
            if size := _header(images / path):
                sizes[path] = size
    report(TaskProgress(f"read {images.name}", len(paths), len(paths), "images"))
    bad = [f"{path!r:.80}" for path in paths if path not in sizes]
    left_out(bad, len(paths), f"files in {images} are no JPEG or PNG picture", "Convert them to JPEG", notes)
    return sizes


def _header(path: Path) -> tuple[int, int, str] | None:
    """Width, height and suffix by content; None for what training could not read. No pixel is decoded."""
    try:
        with open(path, "rb") as file:
            start = file.read(len(_PNG))
            if not start.startswith((_JPEG, _PNG)):
                return None
            file.seek(0)
            width, height = Image.open(file, formats=("JPEG", "PNG")).size
    except _UNREADABLE:
        return None
    return (width, height, ".png" if start == _PNG else ".jpg") if width * height <= MAX_PIXELS else None
