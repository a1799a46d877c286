"""float16 rows of one size in a file, each with a name, and a sealed JSON index beside it.

The index says which rows are whole, what their SHA-256 is and what made them; it is replaced only after they are on
the disk. So a kill costs the rows since then, and what is read is what was written. Letters: R rows, ... a row's shape.
"""

import hashlib
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from clipcoco.disk.files import open_to_append, remove_leftovers, take_name, write_temporary, write_whole
from clipcoco.disk.locks import lock
from clipcoco.disk.seal import read_sealed, write_sealed

Rows = npt.NDArray[np.float16]
About = TypeVar("About", bound=BaseModel)
_CHUNK = 2**22


class RowFile(Generic[About]):
    """The rows at `path` that `key` made; without rows when there is no such file, or none that can be used.

    New rows stay in memory until `save`. Rows that were read stay mapped, whatever another process does to the file.
    Whoever saves holds `locked(path)`, and has read the file after that.
    """

    def __init__(
        self, path: Path, key: dict[str, Any], shape: tuple[int, ...], about: type[About], names: str = "names"
    ) -> None:
        """`about` is what else the index keeps, all of it with defaults; `names` is what it calls the rows' names."""
        self.path, self.key, self.shape, self._about, self._names = path, key, shape, about, names
        self.places: dict[Any, int] = {}  # the row of each name, an int or a str
        self.clear()
        try:
            index = read_sealed(self._index)
            if index.pop("key") == key:
                self.places = {name: row for row, name in enumerate(index.pop(names))}
                self._read(index.pop("sha256"))
                self.about = about.model_validate(index)
        except FileNotFoundError:
            self.clear()
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            self.clear(f"{path.name} is damaged")

    def clear(self, note: str = "") -> None:
        """Forget all rows; on the disk they stay until `save`."""
        self.note = note  # why what was there is of no use
        self.places = {}
        self.about = self._about()
        self._digest, self._whole = hashlib.sha256(), np.empty((0, *self.shape), np.float16)
        self._new: list[Rows] = []

    @property
    def rows(self) -> Rows:
        """(R, ...), mapped from the disk when all are saved."""
        return np.concatenate([self._whole, *self._new]) if self._new else self._whole

    @property
    def row_bytes(self) -> int:
        return 2 * math.prod(self.shape)

    @property
    def unsaved_bytes(self) -> int:
        return sum(block.nbytes for block in self._new)

    def append(self, names: Iterable[Any], rows: Rows) -> None:
        """(B, ...) rows of names that have none."""
        assert rows.shape[1:] == self.shape
        self.places |= {name: row for row, name in enumerate(names, start=len(self.places))}
        self._new.append(np.ascontiguousarray(rows, dtype=np.float16))

    def keep(self, names: Iterable[Any]) -> None:
        """Forget the rows of all other names."""
        kept, about = list(names), self.about
        rows = self.rows[[self.places[name] for name in kept]]
        self.clear()
        self.about = about
        self.append(kept, rows)

    def save(self) -> None:
        """Put rows, names and `about` on the disk. Raises OSError; what was saved before is then still of use."""
        digest = self._digest.copy()
        for block in self._new:
            digest.update(block.data)
        if len(self._whole):
            with open_to_append(self.path) as file:
                file.truncate(self._whole.nbytes)  # what a kill left behind the last whole row
                self._write(file)
                os.fsync(file.fileno())
        else:  # another process may have mapped what was there, and keeps it
            take_name(write_temporary(self.path, self._write), self.path)
        index = {"key": self.key, "sha256": digest.hexdigest(), self._names: list(self.places)}
        write_sealed(self._index, index | dict(self.about))
        self._digest, self._new = digest, []
        with open(self.path, "rb") as file:
            self._whole = self._mapped(file)

    def _write(self, file: BinaryIO) -> None:
        for block in self._new:
            write_whole(file, block.tobytes())

    def _read(self, sha256: str) -> None:
        """All bytes once: a flipped bit would be used unseen. Raises OSError, ValueError."""
        left = len(self.places) * self.row_bytes
        with open(self.path, "rb") as file:
            while left and (chunk := file.read(min(left, _CHUNK))):
                self._digest.update(chunk)
                left -= len(chunk)
            if left or self._digest.hexdigest() != sha256:
                raise ValueError("not as it was written")
            self._whole = self._mapped(file)

    def _mapped(self, file: BinaryIO) -> Rows:
        shape = (len(self.places), *self.shape)
        return np.memmap(file, np.float16, "r", shape=shape) if self.places else np.empty(shape, np.float16)

    @property
    def _index(self) -> Path:
        return self.path.with_suffix(".json")


@contextmanager
def locked(path: Path) -> Iterator[str]:
    """Alone in writing the rows at `path`, in a folder that is made where needed; what a kill left there is removed.

    Gives a line to tell where the file system has no locks, else "". Raises Held, OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock(path.with_suffix(".lock")) as note:
        for written in (path, path.with_suffix(".json")):
            remove_leftovers(written)
        yield note
