"""float16 rows of one size in a file, each with a name, and a sealed JSON index beside it.

The index says which rows are whole, what their sum is and what made them; it is replaced only after they are on
the disk. Rows that replace others are a new file, which the index names. So a kill costs the rows since then, and what
is read is what was written. Letters: R rows, ... a row's shape.
"""

import glob
import hashlib
import math
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from clipcoco.disk.files import remove_leftovers, take_name, write_temporary
from clipcoco.disk.locks import Held, lock
from clipcoco.disk.seal import read_sealed, write_sealed

Rows = npt.NDArray[np.float16]
About = TypeVar("About", bound=BaseModel)
_CHUNK = 2**20


class RowFile(Generic[About]):
    """The rows at `path` that `key` made; without rows when there is no such file, or none that can be used.

    New rows stay in memory until `save`. Rows that were read stay mapped, whatever another process does to the file.
    Whoever saves holds `locked(path)`, and has read the file after that. An interrupt at any moment leaves as many
    names as rows.
    """

    summed: tuple[str, Any] = ("sha256", hashlib.sha256)  # what the index calls the sum of the rows, and what makes it
    shared = False  # True where the file system has no locks: then no file is written or removed that others may use

    def __init__(
        self, path: Path, key: dict[str, Any], shape: tuple[int, ...], about: type[About], names: str = "names"
    ) -> None:
        """`about` is what else the index keeps, all of it with defaults; `names` is what it calls the rows' names."""
        self.path, self.key, self.shape, self._about, self._names = path, key, shape, about, names
        self._index, self.row_bytes = path.with_suffix(".json"), 2 * math.prod(shape)
        self.places: dict[Any, int]  # the row of each name, an int or a str
        self._new: dict[int, Rows]  # by the place of their first row
        self._file: Path | None = None  # which the index on the disk names
        self._own = False  # whether this process made it
        self._status: os.stat_result | None  # of the file that is mapped
        self.clear()
        try:
            index = self.load_index()
            if index.pop("key") == key:
                self._read(index)
        except FileNotFoundError:
            self.clear()
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            self.clear(f"{path.name} is damaged")

    def load_index(self) -> dict[str, Any]:
        """Raises FileNotFoundError, or what a damaged one raises."""
        index: dict[str, Any] = read_sealed(self._index)
        return index

    def take(self, names: Any, index: dict[str, Any]) -> None:
        """The rows' names, and what else it keeps, of the right kinds. Raises ValueError and the like."""
        self.places = {name: row for row, name in enumerate(names)}
        if len(self.places) != len(names):
            raise ValueError("a name is there twice")
        self.about = self._about.model_validate(index)

    def save_index(self, index: dict[str, Any]) -> None:
        """Replace it in one step. Raises OSError."""
        write_sealed(self._index, index)

    def clear(self, note: str = "") -> None:
        """Forget all rows; on the disk they stay until `save`. `note` is why what was there is of no use."""
        self.note, self.about, whole = note, self._about(), np.empty((0, *self.shape), np.float16)
        # Names and rows in one assignment: no interrupt comes between its parts.
        self.places, self._new, self._whole, self._digest, self._status = {}, {}, whole, self.summed[1](), None

    @property
    def rows(self) -> Rows:
        """(R, ...), mapped from the disk when all are saved."""
        return np.concatenate([self._whole, *self.unsaved]) if self.unsaved else self._whole

    @property
    def unsaved(self) -> list[Rows]:
        """Those that wait in memory."""
        return [block for start, block in self._new.items() if len(self._whole) <= start < len(self.places)]

    def append(self, names: Iterable[Any], rows: Rows) -> None:
        """(B, ...) rows of names that have none."""
        start = len(self.places)
        block = np.ascontiguousarray(rows, dtype=np.float16)
        places = {name: row for row, name in enumerate(names, start)}
        assert block.shape == (len(places), *self.shape)
        self._new[start] = block  # counts once its names are there; until then the next one takes its place
        self.places.update(places)

    def keep(self, names: Iterable[Any]) -> None:
        """Forget the rows of all other names."""
        kept, about = list(names), self.about
        rows = self.rows[[self.places[name] for name in kept]]
        self.clear()
        self.about = about
        self.append(kept, rows)

    def save(self) -> None:
        """Put rows, names and `about` on the disk. Raises OSError; what was saved before is then still of use."""
        new, digest, file = self.unsaved, self._digest.copy(), self._growing()
        for block in new:
            digest.update(block.data)
        if file:
            with open(file, "rb+") as grown:
                grown.seek(self._whole.nbytes)  # what a kill left there is not in the index
                grown.writelines(block.data for block in new)
                grown.truncate()
                os.fsync(grown)
        else:
            plain = not self.shared and self._file != self.path
            file = self.path if plain else self.path.with_name(f"{self.path.name}.{secrets.token_hex(4)}")
            blocks = (block.data for block in (self._whole, *new))
            take_name(write_temporary(file, lambda fresh: fresh.writelines(blocks)), file)
        try:
            with open(file, "rb") as saved:
                whole, status = self._mapped(saved, len(self.places))
            index = {"key": self.key, self.summed[0]: digest.hexdigest()}
            index |= {} if file == self.path else {"file": file.name}
            self.save_index(index | {self._names: list(self.places)} | dict(self.about))
        except OSError:
            if file != self._file:
                file.unlink(missing_ok=True)
            raise
        before, own = self._file, self._own or file != self._file
        self._whole, self._digest, self._status, self._file, self._own = whole, digest, status, file, own
        self._new.clear()
        for old in (self.path, *self.path.parent.glob(f"{glob.escape(self.path.name)}.{'[0-9a-f]' * 8}")):
            if old != file and (old == before or not self.shared):
                old.unlink(missing_ok=True)

    def _growing(self) -> Path | None:
        """The file, if it is still the one that is mapped, has no other name, and nobody else appends to it."""
        if not self._file or not self._status or (self.shared and not self._own) or not self._file.exists():
            return None
        status = os.lstat(self._file)
        return self._file if os.path.samestat(status, self._status) and status.st_nlink == 1 else None

    def _read(self, index: dict[str, Any]) -> None:
        """All bytes once: a flipped bit would be used unseen. Raises OSError, ValueError and the like."""
        names, (sum_, make) = index.pop(self._names), self.summed
        anew = sum_ not in index  # of earlier versions
        digest, expected = (hashlib.sha256(), index.pop("sha256")) if anew else (make(), index.pop(sum_))
        left, file = len(names) * self.row_bytes, self.path.with_name(index.pop("file", self.path.name))
        room = memoryview(bytearray(_CHUNK))
        with open(file, "rb") as content:
            while left and (read := content.readinto(room[:left])):
                digest.update(room[:read])
                left -= read
            if left or digest.hexdigest() != expected:
                raise ValueError("not as it was written")
            self._whole, self._status = self._mapped(content, len(names))
        self.take(names, index)
        self._digest, self._file = make(self._whole.data) if anew else digest, file

    def _mapped(self, file: BinaryIO, count: int) -> tuple[Rows, os.stat_result]:
        shape = (count, *self.shape)
        # Mode c, private: PyTorch warns of memory that can't be written to.
        rows = np.memmap(file, np.float16, "c", shape=shape) if count else np.empty(shape, np.float16)
        return rows, os.fstat(file.fileno())


@contextmanager
def locked(
    path: Path, what: str, tell: Callable[[str], object], stop: Callable[[], object] = lambda: None
) -> Iterator[bool | None]:
    """Alone in writing the rows at `path`, in a folder that is made where needed; what a kill left there is removed.

    Another process, "another `what` FILE" to who waits, is waited for. Gives False where the file system has no locks,
    which is told, too; None when stopped meanwhile. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    waiting, note = False, None
    with ExitStack() as stack:
        while note is None and not stop():
            try:
                note = stack.enter_context(lock(path.with_suffix(".lock")))
            except Held as holder:
                if not waiting:
                    who = f" (process {holder})" if str(holder) else ""
                    tell(f"another {what} {path.name}{who}: waiting for it")
                waiting = True
                time.sleep(0.5)
        if note:
            tell(note)
        for suffix in (path.suffix, ".json", ".arrays") if note == "" else ():
            remove_leftovers(path.with_suffix(suffix))
        yield None if note is None else not note
