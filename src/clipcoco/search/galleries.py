"""Where pictures are looked for: a run's own, or any folder."""

import os
import stat
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from clipcoco.config.schema import DataConfig
from clipcoco.data.captions import CaptionTable
from clipcoco.data.helpers import is_helper
from clipcoco.data.split import open_splits
from clipcoco.errors import DataError, EnvironmentProblem
from clipcoco.prepare.scenes import is_drawn
from clipcoco.search import JPEG, PNG, check_folder
from clipcoco.search.index import Item

MAX_BYTES = 2**30  # of one file


@dataclass(frozen=True)
class Gallery:
    words: str  # for a person: "val2017", or the folder as it was given
    folder: Path  # of what is encoded
    originals: Path  # of what is shown, where it is there
    items: list[Item]  # by name
    tables: tuple[CaptionTable, ...]  # of a run's own pictures
    notes: tuple[str, ...]

    def captions(self) -> dict[str, str]:
        """The first caption of each picture, by name."""
        firsts = [(table, table.offsets[:-1].tolist()) for table in self.tables]
        return {
            file: table.captions[first] for table, rows in firsts for file, first in zip(table.files, rows, strict=True)
        }

    def shown(self, name: str) -> Path:
        """The file to show for a picture, absolute."""
        original = (self.originals / name).absolute()
        return original if original.is_file() else (self.folder / name).absolute()

    def read(self, name: str) -> bytes | None:
        """The content of a JPEG or PNG file, whatever its name; None of others. Raises OSError."""
        return read_picture(self.folder / name)


def own_gallery(data: DataConfig, trained_on: str | None) -> Gallery:
    """The images that `eval` measures on, and of drawn scenes those of training, too: a search is to find what one may
    ask for, and who reads its first line knows how many were trained on. Raises DataError."""
    names = ("val", "train") if is_drawn(data.folder) else ("val",)
    tables = tuple(split.table for split in open_splits(data, *names, like=trained_on))
    folder, items = tables[0].folder, []
    for file in sorted(file for table in tables for file in table.files):
        found = os.stat(folder / file)
        items.append(Item(file, f"{found.st_size} {found.st_mtime_ns}"))
    seen = f", {len(tables[1].files):,} of them trained on" if len(tables) > 1 else ""
    words = " and ".join(table.name for table in tables) + seen
    return Gallery(words, folder, data.folder, items, tables, ())


def folder_gallery(folder: Path) -> Gallery:
    """All files below `folder` but hidden ones and those in helper folders; which are pictures shows when read.

    Raises DataError for a folder that does not exist or holds no file, EnvironmentProblem without access.
    """
    check_folder(folder)
    try:
        os.scandir(folder).close()
    except OSError as error:
        raise EnvironmentProblem(
            f"{folder} can't be read: {error.strerror} (--images). Check its permissions"
        ) from error
    closed: list[str] = []
    helpers: list[str] = []
    items = sorted(_files_below(folder, closed, helpers), key=lambda item: item.name)
    notes = [count_words(closed, "can't be opened")] if closed else []
    if helpers:
        notes.append(f"{len(helpers):,} of the system's own folders left out: first {helpers[0]}")
    if not items:
        raise DataError(f"there is no picture in {folder} (--images). Give a folder of JPEG or PNG files")
    return Gallery(str(folder), folder, folder, items, (), tuple(notes))


def _files_below(root: Path, closed: list[str], helpers: list[str]) -> Iterator[Item]:
    """Regular files. Linked folders come after real ones, and none is entered twice, so that loops end."""
    waiting, seen = deque([""]), set()
    while waiting:
        inside = waiting.popleft()
        try:
            found = os.stat(root / inside)
            entries = sorted(os.scandir(root / inside), key=lambda entry: entry.name)
        except OSError:
            closed.append(inside)
            continue
        if (found.st_dev, found.st_ino) in seen:
            continue
        seen.add((found.st_dev, found.st_ino))
        for entry in entries:
            name = f"{inside}/{entry.name}" if inside else entry.name
            if entry.name.startswith("."):
                continue
            try:
                found = entry.stat()
            except OSError:  # a link to nowhere, or to itself
                closed.append(name)
                continue
            if stat.S_ISREG(found.st_mode):
                yield Item(name, f"{found.st_size} {found.st_mtime_ns}")
            elif stat.S_ISDIR(found.st_mode) and is_helper(name):
                helpers.append(name)
            elif stat.S_ISDIR(found.st_mode):
                (waiting.append if entry.is_symlink() else waiting.appendleft)(name)


def read_picture(path: Path) -> bytes | None:
    """The content of a JPEG or PNG file, whatever its name; None of any other. Raises OSError."""
    with open(path, "rb") as file:
        head = file.read(len(PNG))
        if not head.startswith((JPEG, PNG)) or os.fstat(file.fileno()).st_size > MAX_BYTES:
            return None
        return head + file.read()


def count_words(names: Sequence[str], what: str) -> str:
    """`3 files are ...`, with the first of them."""
    first = f"first {names[0]}" if len(names) > 1 else names[0]
    return f"{len(names):,} {'files' if len(names) > 1 else 'file'} {what}: {first}"
