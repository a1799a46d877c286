"""Named arrays in one file, mapped where they are read: what was worked out of files once is there at once.

A line of JSON says what made them, what is where, and the sum of all that follows. A file is replaced whole, by a
rename: what was mapped stays as it was. Who can't write does without.
"""

import contextlib
import copy
import hashlib
import json
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipcoco.disk.files import remove_leftovers, sync_folder, take_name, write_temporary
from clipcoco.disk.locks import Held, lock
from clipcoco.disk.seal import seal, unsealed

Array = npt.NDArray[Any]
Arrays = dict[str, Array]
_ALIGNED = 64  # bytes
_HEAD = 2**16  # at most
_BLOCK = (128, 1024)  # 64-bit words, 1 MB


def load_arrays(path: Path) -> tuple[Any, Arrays]:
    """The key and the arrays of a file, as they were written. They can be written to, in memory alone.

    Raises OSError, or for what is damaged ValueError, LookupError, TypeError or AttributeError.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
        line = file.readline(_HEAD)
        head = unsealed(json.loads(line))
        whole = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8)
    content = whole[len(line) :]
    if len(line) % _ALIGNED or len(content) != head["size"] or Sum(content).hexdigest() != head["sum"]:
        raise ValueError("not as it was written")
    return head["key"], {name: _array(content, *where) for name, where in head["arrays"].items()}


def read_arrays(path: Path, key: Any) -> Arrays | None:
    """The arrays at `path` that `key` made; None for no such file, another key, or damage."""
    try:
        made, arrays = load_arrays(path)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return arrays if made == json.loads(json.dumps(key)) else None


def write_arrays(path: Path, key: Any, arrays: Arrays) -> None:
    """Write them for `read_arrays` in the place of what is there; the caller is alone in writing it. Raises OSError."""
    places, blocks, size = {}, list[Array](), 0
    for name, array in arrays.items():
        places[name] = [array.dtype.str, array.shape, size]
        gap = -array.nbytes % _ALIGNED
        blocks += [np.ascontiguousarray(array).reshape(-1).view(np.uint8), np.zeros(gap, np.uint8)]
        size += array.nbytes + gap
    content = np.concatenate([np.empty(0, np.uint8), *blocks])
    head = json.dumps(seal({"key": key, "arrays": places, "size": size, "sum": Sum(content).hexdigest()})).encode()
    head += b" " * (-(len(head) + 1) % _ALIGNED) + b"\n"
    assert len(head) <= _HEAD, "a key is short"
    take_name(write_temporary(path, lambda file: file.writelines((head, content.data))), path)
    sync_folder(path.parent)


def keep_arrays(path: Path, key: Any, arrays: Arrays) -> None:
    """`write_arrays` in a folder that is made where needed; not where that can't be, or another process is at it."""
    with contextlib.suppress(OSError, Held):  # somebody else's folder, a full disk: the next one works it out again
        path.parent.mkdir(exist_ok=True)
        with lock(path.with_suffix(".lock")) as without_locks:
            if not without_locks:
                remove_leftovers(path)
            write_arrays(path, key, arrays)


def _array(content: Array, kind: str, shape: list[int], start: int) -> Array:
    dtype, count = np.dtype(kind), int(np.prod(shape, dtype=np.int64))
    if dtype.hasobject or min(start, *shape, 0) < 0:
        raise ValueError("no array of numbers")
    return np.frombuffer(content.data, dtype, count, start).reshape(shape)


class Sum:
    """At the speed of memory: the rows and the columns of each megabyte are added up, and these sums are hashed.

    A bit that flips, a stretch that is lost or stands elsewhere shows in them; a forger is not kept out. To be used as
    what `hashlib` has: how the content is cut does not matter.
    """

    def __init__(self, content: Any = b"") -> None:
        self._digest, self._rest = hashlib.sha256(), np.empty(0, np.uint8)
        self.update(content)

    def update(self, content: Any) -> None:
        data, block = np.frombuffer(content, np.uint8), 8 * _BLOCK[0] * _BLOCK[1]
        if len(self._rest):
            data = np.concatenate([self._rest, data])
        whole = len(data) // block * block
        for start in range(0, whole, block):
            words = data[start : start + block].view(np.uint64).reshape(_BLOCK)
            self._digest.update(words.sum(axis=0).data)
            self._digest.update(words.sum(axis=1).data)
        self._rest = data[whole:].copy()

    def hexdigest(self) -> str:
        digest = self._digest.copy()
        digest.update(self._rest.data)
        return digest.hexdigest()

    def copy(self) -> "Sum":
        other = copy.copy(self)
        other._digest = self._digest.copy()
        return other
