"""Arrays of a stranger's .npz file, checked before they are read: nothing large is allocated, nothing unpickled."""

import errno
import math
import os
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.lib.format as npy
import numpy.typing as npt

from clipcoco.errors import DataError, EnvironmentProblem

_ROOM = 256 * 2**20  # bytes that arrays may unpack to, and this many times the size of the file:
_FACTOR = 20  # embeddings compress by a third, ids by ten, a file made to fill the memory by a thousand


def read_npz(path: Path, names: Collection[str], where: str) -> dict[str, npt.NDArray[Any]]:
    """Those of the arrays `names` that are there, and empty ones of the other names in the file, of numbers or
    texts. Raises DataError, EnvironmentProblem; `where` is the option that named the file."""
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise DataError(f"{path} is not a file ({where}). Save the arrays into one with numpy.savez")
    try:
        with open(path, "rb") as file:
            start, size = file.read(6), os.fstat(file.fileno()).st_size
            if start == npy.MAGIC_PREFIX:
                raise DataError(f"{path} is a single array ({where}). Save all with numpy.savez")
            with zipfile.ZipFile(file) as archive:
                return _read(archive, path, names, size, where)
    except FileNotFoundError:
        raise DataError(f"no file at {path} ({where})") from None
    except (DataError, MemoryError):
        raise
    except OSError as error:
        if error.errno in (None, errno.EINVAL):  # zipfile's own, and a seek to where its directory leads
            raise DataError(f"{path} is damaged ({where}): {_line(error)}") from None
        raise EnvironmentProblem(f"cannot read {path} ({where}): {error.strerror}") from None
    except Exception as error:  # zipfile and numpy raise a dozen kinds for malformed files
        raise DataError(f"{path} is no .npz file, or a damaged one ({where}): {_line(error)}") from None


def _line(error: Exception) -> str:
    return " ".join(f"{error}".split())[:100] or type(error).__name__


def _read(
    archive: zipfile.ZipFile, path: Path, names: Collection[str], size: int, where: str
) -> dict[str, npt.NDArray[Any]]:
    members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
    arrays: dict[str, npt.NDArray[Any]] = {name: np.empty(0) for name in members if name not in names}
    left = _ROOM + _FACTOR * size
    for name in names:
        if name not in members:
            continue
        left -= members[name].file_size
        if left < 0:
            raise DataError(f"{path} unpacks to more than {_FACTOR} times its size ({where}, {name}). Save it anew")
        with archive.open(members[name]) as member:
            _check_header(member, members[name].file_size, f"{name} in {path}", where)
        with archive.open(members[name]) as member:
            arrays[name] = npy.read_array(member, allow_pickle=False)
            if member.read(1):  # reading to the end checks the sum
                raise ValueError(f"{name} is longer than it says")
    return arrays


def _check_header(member: BinaryIO | Any, size: int, name: str, where: str) -> None:
    version = npy.read_magic(member)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(member)
    if dtype.hasobject:
        raise DataError(f"{name} is an array of objects ({where}), which are never unpickled. Save numbers or texts")
    if dtype.kind not in "iufSU":
        raise DataError(f"{name} is of kind {dtype} ({where}). Save numbers or texts, bfloat16 as float32")
    if any(length < 0 for length in shape) or math.prod(shape) * dtype.itemsize != size - member.tell():
        raise DataError(f"{name} is not as long as its shape {shape!r:.60} says ({where}). Save it anew")
