"""Embeddings of a split, and the file that carries them between evaluators.

Letters: N images, M captions, D dimensions.
"""

import errno
import math
import os
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.lib.format as npy
import numpy.typing as npt
import torch
from torch import Tensor

from clipcoco.disk.files import take_name, write_temporary
from clipcoco.engine.recall import Ranks
from clipcoco.errors import DataError, EnvironmentProblem

WHERE = "--from-embeddings"
SCALED = "rows scaled to unit length"

_NEEDED = ("image_embeddings", "text_embeddings", "image_ids", "caption_image_ids")
_READ = (*_NEEDED, "caption_ids", "caution")
_LINE = 200  # characters of a caution
_ROUNDING = 1e-6  # of the length of a unit vector in float32
_ROOM = 256 * 2**20  # bytes that arrays may unpack to, and this many times the size of the file:
_FACTOR = 20  # embeddings compress by a third, ids by ten, a file made to fill the memory by a thousand


@dataclass(frozen=True)
class Embeddings:
    """Float32 unit vectors on the CPU; captions stand in the order of their images."""

    images: Tensor  # (N,D)
    texts: Tensor  # (M,D)
    image_ids: np.ndarray  # int64 (N,)
    caption_ids: np.ndarray  # int64 (M,)
    owners: Tensor  # int64 (M,): the row of each caption's image
    caution: str = ""  # what stands beside each recall of them
    false: Tensor | None = None  # (P,D): false captions, where they were encoded, too


@dataclass
class Seen:
    """What a run's evaluations saw with its best weights, so that its end need not compute it again."""

    weights: str = ""  # their SHA-256; "" where nothing is kept
    embeddings: Embeddings | None = None
    ranks: Ranks | None = None


def write_embeddings(path: Path, embeddings: Embeddings) -> None:
    """The file that `read_embeddings` and every other evaluator reads."""
    arrays = {
        "image_embeddings": embeddings.images.numpy(),
        "text_embeddings": embeddings.texts.numpy(),
        "image_ids": embeddings.image_ids,
        "caption_ids": embeddings.caption_ids,
        "caption_image_ids": embeddings.image_ids[embeddings.owners.numpy()],
        **({"caution": np.array(embeddings.caution)} if embeddings.caution else {}),
    }
    take_name(write_temporary(path, lambda file: np.savez(file, **arrays)), path)


def read_embeddings(path: Path, unit: bool = True) -> tuple[Embeddings, str]:
    """Any model's embeddings, and a note on what was done to them. Raises DataError for a file that is none.

    Rows are brought to `unit` length: recall here ranks by cosine similarity. Ids may be whole numbers or texts.
    """
    arrays = _read_npz(path)
    _check_arrays(path, arrays)
    images, texts, image_ids, caption_image_ids = (arrays[name] for name in _NEEDED)
    ids = _plain_ids(image_ids, "image_ids", path)
    place = {image: row for row, image in enumerate(ids)}
    if len(place) < len(ids):
        raise DataError(f"{path}: image_ids repeat{_two_spellings(image_ids, ids)} ({WHERE}). Give each image one row")
    wanted = _plain_ids(caption_image_ids, "caption_image_ids", path)
    found = [place.get(image, -1) for image in wanted]
    if strangers := [image for image, row in zip(wanted, found, strict=True) if row < 0]:
        many = f"{len(strangers):,} of {len(texts):,} captions belong to an image that is not in image_ids, "
        many += f"first image {strangers[0]!r:.60}"
        kinds = f"image_ids are {image_ids.dtype}, caption_image_ids {caption_image_ids.dtype}"
        raise DataError(f"{path}: {many} ({WHERE}; {kinds}). Leave them out")
    owners = np.array(found, dtype=np.int64)
    if bare := len(ids) - len(np.unique(owners)):
        raise DataError(f"{path}: {bare:,} of {len(ids):,} images have no caption ({WHERE}). Leave them out")
    order = np.argsort(owners, kind="stable")
    captions = arrays.get("caption_ids")
    caption_ids = range(len(texts)) if captions is None else _plain_ids(captions, "caption_ids", path)
    image_rows, changed = _unit_rows(images)
    text_rows, also_changed = _unit_rows(texts[order])
    if not unit:
        image_rows, text_rows = (torch.from_numpy(rows.astype(np.float32)) for rows in (images, texts[order]))
    notes = [SCALED if changed or also_changed else "unit vectors"]
    if again := len(images) - len({hash(row.tobytes()) for row in image_rows.numpy()}):
        notes.append(f"{again:,} image rows equal another one")
    if alike := len(texts) - len(set(caption_ids)):
        notes.append(f"{alike:,} caption_ids equal another one")
    if zeros := sum(int((rows == 0).all(dim=1).sum()) for rows in (image_rows, text_rows)):
        notes.append(f"{zeros:,} rows are zero")
    numbers = _numbers(ids), _numbers(caption_ids)[order]
    caution = _caution(arrays.get("caution"))
    return Embeddings(image_rows, text_rows, *numbers, torch.from_numpy(owners[order]), caution), ", ".join(notes)


def _caution(given: npt.NDArray[Any] | None) -> str:
    text = str(given) if given is not None and given.dtype.kind == "U" and given.ndim == 0 else ""
    return text if len(text) <= _LINE and text.isprintable() else ""


def _read_npz(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a stranger's file, checked before they are read: nothing large is allocated, nothing unpickled.

    Those that are not asked for are empty.
    """
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise DataError(f"{path} is not a file ({WHERE}). Save the arrays into one with numpy.savez")
    try:
        with open(path, "rb") as file:
            start, size = file.read(6), os.fstat(file.fileno()).st_size
            if start == npy.MAGIC_PREFIX:
                raise DataError(f"{path} is a single array ({WHERE}). Save all with numpy.savez")
            with zipfile.ZipFile(file) as archive:
                return _members(archive, path, _ROOM + _FACTOR * size)
    except FileNotFoundError:
        raise DataError(f"no file at {path} ({WHERE})") from None
    except (DataError, MemoryError):
        raise
    except Exception as error:  # zipfile and numpy raise a dozen kinds for malformed files
        said = " ".join(f"{error}".split())[:100] or type(error).__name__
        if not isinstance(error, OSError):
            raise DataError(f"{path} is not an .npz file, or a damaged one ({WHERE}): {said}") from None
        if error.errno in (None, errno.EINVAL):  # zipfile's own, and a seek to where its directory leads
            raise DataError(f"{path} is damaged ({WHERE}): {said}") from None
        raise EnvironmentProblem(f"cannot read {path} ({WHERE}): {error.strerror}") from None


def _members(archive: zipfile.ZipFile, path: Path, room: int) -> dict[str, npt.NDArray[Any]]:
    members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
    arrays: dict[str, npt.NDArray[Any]] = {name: np.empty(0) for name in members if name not in _READ}
    for name in filter(members.__contains__, _READ):
        room -= members[name].file_size
        if room < 0:
            raise DataError(f"{path} unpacks to more than {_FACTOR} times its size ({WHERE}, {name}). Save it again")
        with archive.open(members[name]) as member:
            _check_header(member, members[name].file_size, f"{name} in {path}")
        with archive.open(members[name]) as member:
            arrays[name] = npy.read_array(member, allow_pickle=False)
            if member.read(1):  # reading to the end checks the sum
                raise ValueError(f"{name} is longer than it says")
    return arrays


def _check_header(member: Any, size: int, name: str) -> None:
    version = npy.read_magic(member)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(member)
    if dtype.hasobject:
        raise DataError(f"{name} is an array of objects ({WHERE}), which are never unpickled. Save numbers or texts")
    if dtype.kind not in "iufSU":
        raise DataError(f"{name} is of kind {dtype} ({WHERE}). Save numbers or texts, bfloat16 as float32")
    if any(length < 0 for length in shape) or math.prod(shape) * dtype.itemsize != size - member.tell():
        raise DataError(f"{name} is not as long as its shape {shape!r:.60} says ({WHERE}). Save it again")


def _check_arrays(path: Path, arrays: dict[str, npt.NDArray[Any]]) -> None:
    """Names, kinds, then shapes, each said of the array that is wrong."""
    if missing := [name for name in _NEEDED if name not in arrays]:
        there = ", ".join(repr(name)[:40] for name in list(arrays)[:10]) or "nothing"
        raise DataError(
            f"{path} holds no embeddings: {', '.join(missing)} not among {there} ({WHERE}). It needs image_embeddings "
            "(N,D), text_embeddings (M,D), image_ids (N) and caption_image_ids (M), under these names"
        )
    for name in _NEEDED[:2]:
        if arrays[name].dtype.kind != "f":
            raise DataError(f"{path}: {name} are {arrays[name].dtype}, not floats ({WHERE}). Save them as float32")
    images, texts, image_ids, owners = (arrays[name].shape for name in _NEEDED)
    rows_fit = len(images) == len(texts) == 2 and images[1:] == texts[1:] and min(images + texts) > 0
    captions = arrays.get("caption_ids", arrays[_NEEDED[3]]).shape
    if not (rows_fit and image_ids == images[:1] and owners == captions == texts[:1]):
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items() if name in _READ)
        raise DataError(f"{path}: the arrays do not fit together: {shapes} ({WHERE}). (N,D), (M,D), (N) and (M) do")


def _plain_ids(ids: npt.NDArray[Any], name: str, path: Path) -> list[int] | list[str]:
    """Whole numbers, of texts as well if all are: "000000000139" is 139."""
    plain: list[Any] = ids.tolist()
    if ids.dtype.kind == "f":
        exact = np.abs(ids) < 2.0 ** (np.finfo(ids.dtype).nmant + 1)  # False of what is not finite
        if not (exact & (ids == np.floor(ids))).all():
            said = f"{name} are {ids.dtype}, not all of them whole numbers"
            raise DataError(f"{path}: {said} ({WHERE}). Save them as int64")
        return [int(value) for value in plain]
    if ids.dtype.kind == "S":  # UTF-8 where all of them are, as they match ids that were saved as texts
        try:
            plain = [value.decode() for value in plain]
        except UnicodeDecodeError:
            plain = [value.decode("latin-1") for value in plain]
    if ids.dtype.kind in "SU" and all(re.fullmatch("0*[0-9]{1,18}", text) for text in plain):
        return [int(text) for text in plain]
    return plain


def _two_spellings(written: npt.NDArray[Any], ids: Sequence[int] | Sequence[str]) -> str:
    """The first two that are one number and don't look it: who reads them would not call that a repetition."""
    first: dict[Any, Any] = {}
    for text, one in zip(written.tolist(), ids, strict=True):
        if (other := first.setdefault(one, text)) != text:
            return f" as {other!r:.30} and {text!r:.30} are both {one}"
    return ""


def _numbers(ids: Sequence[int] | Sequence[str]) -> npt.NDArray[np.int64]:
    """The ids themselves, or the rows where they are texts or too large."""
    if all(isinstance(value, int) and value < 2**63 for value in ids):
        return np.array(ids, dtype=np.int64)
    return np.arange(len(ids), dtype=np.int64)


def _unit_rows(rows: npt.NDArray[Any]) -> tuple[Tensor, bool]:
    """Float32 rows of length 1, and whether any was not: what rounding to float32 leaves stays as it is."""
    unit = np.empty(rows.shape, dtype=np.float32)
    changed = False
    for start in range(0, len(rows), 4096):
        with np.errstate(all="ignore"):  # what is not finite is counted and refused by recall
            part = rows[start : start + 4096].astype(np.float64)
            largest = np.abs(part).max(axis=1, keepdims=True)
            largest[largest == 0] = 1
            norms = largest * np.linalg.norm(part / largest, axis=1, keepdims=True)
            off = (np.abs(norms - 1) > _ROUNDING) & (norms != 0)
            unit[start : start + 4096] = np.where(off, part / largest / (norms / largest), part)
        changed |= bool(off.any())
    return torch.from_numpy(unit), changed
