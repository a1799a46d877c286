"""Where the pictures of a captions file are, and how large they are.

The names are untrusted data: no file outside of the folder of pictures is looked at, and only files that begin
as JPEG or PNG files do are let near a parser.
"""

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from clipcoco.data.helpers import is_helper
from clipcoco.data.viewer import UnreadableImage, narrow, opened, size_shown
from clipcoco.events import ReportTask, TaskProgress

Sizes = dict[str, tuple[int, int, str]]  # by path: width, height, and the suffix of its format


@dataclass(frozen=True)
class Found:
    """By name, the path of its file relative to the folder of pictures, a real path that no link may leave."""

    paths: dict[str, str]
    missing: list[str]
    outside: list[str]
    helpers: list[str]  # those in folders that a system keeps for itself
    nearly: list[str]  # those whose file is called a little otherwise


def find(names: Collection[str], images: Path, nearly: Callable[[str], str]) -> Found:
    """Where the pictures are; `nearly` finds the path of one whose file is called a little otherwise."""
    found = Found({}, [], [], [], [])
    for name in names:
        leads_out = name.startswith("/") or ".." in PurePosixPath(name).parts
        inside = _inside(name, images, nearly, found) if leads_out else name
        if not inside:
            found.outside.append(name)
            continue
        if is_helper(PurePosixPath(inside).parent.as_posix()):
            found.helpers.append(name)
            continue
        try:
            path = Path(os.path.realpath(images / inside))
            if path.is_relative_to(images) and not os.path.isfile(path) and (other := nearly(inside)):
                path = Path(os.path.realpath(images / other))
                found.nearly.append(name)
        except ValueError:  # a name that no file can have
            found.missing.append(name)
            continue
        if not path.is_relative_to(images):
            found.outside.append(name)
        elif os.path.isfile(path):  # never fails, however odd the name
            found.paths[name] = path.relative_to(images).as_posix()
        else:
            found.missing.append(name)
    return found


def _inside(name: str, images: Path, nearly: Callable[[str], str], found: Found) -> str:
    """What a whole path, or one with "..", means in the folder; empty when it leads out. No file is looked at."""
    path = PurePosixPath(os.path.normpath(images / name))
    if path.is_relative_to(images):
        return str(path.relative_to(images))
    _, here, rest = name.rpartition(f"/{images.name}/")  # of another machine, or by a link
    other = nearly(rest) if here and ".." not in PurePosixPath(rest).parts else ""
    if other:
        found.nearly.append(name)
    return other


def nearly_named(images: Path) -> Callable[[str], str]:
    """Finds the one file below `images` whose name differs in case, Unicode form, by its suffix or "\\" only, or
    which is one folder deeper or less deep, or, as `data/photos/a.jpg`, in the folder `photos` that was named."""
    here: dict[str, set[str]] = {}
    deeper: dict[str, set[str]] = {}

    def key(name: str) -> str:
        stem, suffix = os.path.splitext(unicodedata.normalize("NFC", name).casefold())
        return stem + {".jpeg": ".jpg", ".jpe": ".jpg"}.get(suffix, suffix)

    def fill() -> None:
        for folder, folders, files in os.walk(images):
            below = PurePosixPath(folder).relative_to(images)
            folders[:] = [name for name in folders if name[0] != "." and not is_helper(str(below / name))]
            for file in files:
                path = below / file
                for spelling in (path, path.with_suffix("")):
                    here.setdefault(key(str(spelling)), set()).add(str(path))
                    if len(path.parts) > 1:
                        deeper.setdefault(key("/".join(spelling.parts[1:])), set()).add(str(path))

    def find(name: str) -> str:
        if not here:
            fill()
        asked = key(str(PurePosixPath(name.replace("\\", "/"))))
        behind = f"/{asked}".rpartition(f"/{key(images.name)}/")[2].removeprefix("/")
        for query in (asked, behind):
            for index in (here, deeper):
                if candidates := index.get(query):
                    return next(iter(candidates)) if len(candidates) == 1 else ""
        return ""

    return find


def same_content(looks: Mapping[str, str], images: Path) -> list[list[str]]:
    """The pictures that are byte for byte the same, in groups of two and more, each sorted.

    Only those of the same look, as `looks` gives them, are read whole.
    """
    often = Counter(looks.values())
    alike: dict[str, list[str]] = {}
    for path in sorted(path for path, look in looks.items() if often[look] > 1):
        with open(images / path, "rb") as file:
            alike.setdefault(hashlib.file_digest(file, "sha256").hexdigest(), []).append(path)
    return [group for group in alike.values() if len(group) > 1]


def looks(paths: Iterable[str], images: Path) -> dict[str, str]:
    """By path, a digest by which a picture is known again under another name.

    Of its size and of 64 KiB at either end: two photographs do not share them, and gigabytes need not be read.
    """
    found = {}
    for path in paths:
        with open(images / path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(2**16)
            file.seek(max(len(start), size - 2**16))
            found[path] = hashlib.sha256(b"%d:%b%b" % (size, start, file.read(2**16))).hexdigest()
    return found


def measure(paths: list[str], images: Path, report: ReportTask, notes: list[str]) -> Sizes:
    """Of those that training can read."""
    sizes: Sizes = {}
    for done, path in enumerate(paths):
        report(TaskProgress(f"read {images.name}", done, len(paths), "images"))
        try:
            with opened(images / path) as picture:  # no pixel is decoded
                sizes[path] = (*size_shown(picture), ".png" if picture.format == "PNG" else ".jpg")
        except UnreadableImage:
            continue
    report(TaskProgress(f"read {images.name}", len(paths), len(paths), "images"))
    if note := narrow(images / path for path in sizes):
        notes.append(note)
    return sizes
