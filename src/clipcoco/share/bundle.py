"""What a page holds: text tower and tokenizer, pictures as vectors and thumbnails, their names and captions.

Letters: N pictures, D dimensions.
"""

import base64
import gzip
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from clipcoco.cores import usable_cores
from clipcoco.data.captions import CaptionTable
from clipcoco.data.viewer import thumbnail
from clipcoco.engine.model import TextEncoder
from clipcoco.engine.model_file import ModelFile
from clipcoco.engine.quantize import quantized_weights, rounded_directions
from clipcoco.engine.recall import Ranks
from clipcoco.engine.trained_on import known_words

THUMBNAIL = 240  # pixels, the longer side
PIECE = 3 * 2**18  # bytes of the arrays, 1 MB in base64: an element as long as that is read fastest
LITTLE = 4_000_000  # bytes of arrays: of so many gzip saves 4 to 9 % in 10 ms, of more it takes most of the time
EXAMPLES, DRAWN = 5, 60
STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")  # a name with them is read as another


@dataclass(frozen=True)
class Pictures:
    """A gallery as a page shows it."""

    names: list[str]  # N
    paths: list[Path]  # N, of what is made small
    captions: Sequence[Sequence[str]]  # N, or none
    vectors: Tensor  # float32 (N,D), unit
    small: bool = False  # so that they are shown small


def of_split(table: CaptionTable, vectors: Tensor) -> Pictures:
    """By file name alone: a split is one folder."""
    spans = zip(table.offsets[:-1], table.offsets[1:], strict=True)
    captions = [table.captions[first:last] for first, last in spans]
    names, paths = [Path(file).name for file in table.files], [table.folder / file for file in table.files]
    return Pictures(names, paths, captions, vectors, small=0 < table.sizes.max() <= THUMBNAIL // 2)


def examples(table: CaptionTable, found: Ranks, seed: int) -> list[str]:
    """Queries to begin with: of captions of different pictures, drawn by the seed, the shortest that find theirs."""
    owners, right = table.owners, found.t2i == 1
    rows = np.random.Generator(np.random.PCG64([seed, 2])).permutation(np.flatnonzero(right.numpy()))[:DRAWN]
    of_pictures = {int(owners[row]): table.captions[row].rstrip(" .").lower() for row in rows.tolist()}
    return sorted(dict.fromkeys(of_pictures.values()), key=len)[:EXAMPLES]


def model_texts(
    file: ModelFile, tower: TextEncoder, pictures: Pictures, run: str, queries: Sequence[str], bits: int
) -> tuple[str, list[str]]:
    """All but the thumbnails, for `unpack` of page.js: a header, and the arrays that it names, in pieces."""
    text, plain = file.config.model.text, file.tokenizer.to_plain()
    words = known_words(file.content)
    arrays = {"pictures": rounded_directions(pictures.vectors, bits)[0].numpy()}
    for name, weight in quantized_weights(tower, bits).items():
        if isinstance(weight, tuple):
            arrays[name], arrays[f"{name}.scales"] = weight[0].numpy(), weight[1].numpy()
        else:
            arrays[name] = weight.numpy()
    places, content = _joined(arrays)
    packed = gzip.compress(content, mtime=0) if len(content) <= LITTLE else content
    header = {
        "run": run,
        **{name: getattr(text, name) for name in ("layers", "width", "heads", "pool", "context_length")},
        "embedding_scale": tower.embedding_scale,
        "vocab": list(plain["vocab"]),
        "merges": [" ".join(pair) for pair in plain["merges"]],
        "words": None if words is None else sorted(words),  # of all captions together, in no order of theirs
        "files": [STEERING.sub("\N{REPLACEMENT CHARACTER}", name) for name in pictures.names],
        "captions": pictures.captions,
        "examples": queries,
        "arrays": places,
    }
    pieces = [_base64(packed[at : at + PIECE]) for at in range(0, len(packed), PIECE)]
    return _base64(gzip.compress(json.dumps(header).encode(), mtime=0)), pieces


def _joined(arrays: dict[str, npt.NDArray[Any]]) -> tuple[dict[str, Any], bytes]:
    """Kind, place and size by name, and all, little-endian: the widest numbers first, so that all are aligned."""
    places, content = {}, bytearray()
    for name, array in sorted(arrays.items(), key=lambda one: -one[1].itemsize):
        places[name] = f"{array.dtype.kind}{array.itemsize}", len(content), array.size
        content += array.astype(array.dtype.newbyteorder("<")).tobytes()
    return places, bytes(content)


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def thumbnails_text(pictures: Pictures) -> str:
    """WebPs in base64 with a space between them; of what can't be read nothing."""
    with ThreadPoolExecutor(min(8, usable_cores())) as pool:
        return " ".join(pool.map(lambda path: thumbnail(path, THUMBNAIL, "WEBP") or "", pictures.paths))
