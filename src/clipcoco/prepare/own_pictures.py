"""Where the pictures of a captions file lie, and how large they are.

The names are untrusted data: no file outside of the folder of pictures is looked at, and only files that begin
as JPEG or PNG files do are let near a parser.
"""

import os
import unicodedata
from collections.abc import Callable, Collection
from pathlib import Path, PurePosixPath

from clipcoco.data.helpers import is_helper
from clipcoco.data.viewer import UnreadableImage, narrow, opened, size_shown
from clipcoco.events import ReportTask, TaskProgress
from clipcoco.prepare.own_captions import left_out

Sizes = dict[str, tuple[int, int, str]]  # by path: width, height, and the suffix of its format


def find(names: Collection[str], images: Path, notes: list[str]) -> dict[str, str]:
    """By name, the path of its file relative to `images`, a real path that no link may leave.

    Raises DataError when more than half are not there.
    """
    found: dict[str, str] = {}
    missing, outside, helpers = [], [], []
    loosely = _loosely(images)
    for name in names:
        if name.startswith("/") or ".." in PurePosixPath(name).parts:
            outside.append(f"{name!r:.80}")
            continue
        if is_helper(PurePosixPath(name).parent.as_posix()):
            helpers.append(f"{name!r:.80}")
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
    left_out(helpers, len(names), "images lie in folders that a system keeps for itself, as of thumbnails", hint, notes)
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
    for done, path in enumerate(paths):
        report(TaskProgress(f"read {images.name}", done, len(paths), "images"))
        try:
            with opened(images / path) as picture:  # no pixel is decoded
                sizes[path] = (*size_shown(picture), ".png" if picture.format == "PNG" else ".jpg")
        except UnreadableImage:
            continue
    report(TaskProgress(f"read {images.name}", len(paths), len(paths), "images"))
    bad = [f"{path!r:.80}" for path in paths if path not in sizes]
    left_out(bad, len(paths), f"files in {images} are no JPEG or PNG picture", "Convert them to JPEG", notes)
    if note := narrow(images / path for path in sizes):
        notes.append(note)
    return sizes
