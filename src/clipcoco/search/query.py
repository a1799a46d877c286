"""A query and a gallery -> the nearest pictures, by an exact product.

Letters: N rows of the gallery, D dimensions, k hits.
"""

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clipcoco.cores import usable_cores
from clipcoco.data.images import decode
from clipcoco.data.viewer import UnreadableImage
from clipcoco.errors import DataError
from clipcoco.events import Report
from clipcoco.search import check_picture, check_words
from clipcoco.search.entries import DAMAGED, OTHER, UNREAD
from clipcoco.search.galleries import Gallery, count_words, read_picture
from clipcoco.search.index import Encoding, Index, Tell, digest_of, refresh
from clipcoco.search.models import Model, Towers

CHUNK = 4096  # rows that are float32 at a time: they stay in the processor's cache
ALIKE = 0.01  # of the scores of a whole gallery: less apart, a model tells no picture from another
ROUNDING = 1e-5  # by which scores of unit vectors may differ for the order of their sums


@dataclass(frozen=True)
class Query:
    """A text, or a picture when `picture` is given."""

    words: str
    picture: Path | None = None


@dataclass(frozen=True)
class Hit:
    rank: int  # from 1
    score: float  # cosine similarity
    name: str  # of the picture, inside its gallery
    path: Path  # absolute
    caption: str | None

    @property
    def shown(self) -> str:
        """Its name for a person: a validation set is one folder, one's own pictures lie in many."""
        return self.path.name if self.caption else self.name


@dataclass(frozen=True)
class Answer:
    query: Query
    gallery: str
    images: int
    seconds: float  # from the query to the hits, without loading
    hits: tuple[Hit, ...]
    encoded: int  # what the index lacked
    encoding_seconds: float
    kept: bool  # the index could be written


@dataclass(frozen=True)
class Told:
    """How the search speaks to who waits."""

    report: Report
    tell: Tell


def nearest(rows: Tensor, query: Tensor, count: int) -> tuple[list[int], list[float]]:
    """The `count` rows with the largest inner product, best first, and their scores in float32.

    `rows` is float16 (N,D), `query` float32 (D,), both on the CPU; equal scores in the order of the rows. All
    rows are compared, in float32; those that may be among the first are then summed again in float64, so that
    neither the number of threads nor the place of a row decides between equal ones.
    """
    return _best(rows, query, _scores(rows, query), count)


def _scores(rows: Tensor, query: Tensor) -> Tensor:
    scores = torch.empty(len(rows))
    room = torch.empty(min(CHUNK, len(rows)), rows.shape[1])
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        torch.mv(room[: len(part)].copy_(part), query, out=scores[start : start + CHUNK])
    return scores


def _best(rows: Tensor, query: Tensor, scores: Tensor, count: int) -> tuple[list[int], list[float]]:
    count = min(count, len(rows))
    candidates = (scores >= scores.topk(count).values[-1] - ROUNDING).nonzero().flatten()
    exact = (rows[candidates].double() * query.double()).sum(dim=1).float()
    order = exact.argsort(descending=True, stable=True)[:count]
    return candidates[order].tolist(), exact[order].tolist()


def open_index(model: Model, gallery: Gallery, indexes: Path) -> Index:
    """What is known of the gallery, in the folder `indexes`; it serves one question after another."""
    name = "-".join(table.name for table in gallery.tables)
    if not name:
        name = "folder-" + hashlib.sha256(os.fsencode(os.path.realpath(gallery.folder))).hexdigest()[:16]
    return Index(indexes / f"{name}-{model.label}.f16", model.key, model.width)


def answer(
    query: Query, model: Model, gallery: Gallery, index: Index, device: str | None, count: int, told: Told
) -> Answer:
    """Bring the index of the gallery up to date, as `open_index` gave it, then look for the query.

    Raises DataError for pictures that can't be read, ConfigError for a query without words.
    """
    picture = _picture(query.picture) if query.picture else None
    tokens = None if picture else _tokens(query.words, model, told.tell)
    # One text is sooner encoded on the CPU than a GPU has woken up.
    here = device is None and tokens is not None and index.is_of(gallery.items)
    towers = model.place("cpu" if here else device)
    start = time.monotonic()
    if picture:
        vector = towers.encode_images(towers.view(picture.pixels)[None])[0]
    else:
        assert tokens is not None
        vector = towers.encode_texts(tokens)[0]
    query_seconds = time.monotonic() - start
    start = time.monotonic()
    encoded = refresh(index, gallery.items, _pictures(gallery, towers), told.report, told.tell)
    encoding_seconds = time.monotonic() - start
    names, rows = index.gallery()
    for note in (*gallery.notes, *(_failures(index) if len(names) < len(gallery.items) else ())):
        told.tell(note)
    if picture:
        others = _others(picture, names, index, gallery)
        names, rows = list(others.values()), rows[list(others)]
    if not names:
        other = "other " if picture else ""
        raise DataError(f"there is no {other}picture in {gallery.words} (--images). Give a folder of JPEG or PNG files")
    start = time.monotonic()
    matrix = torch.from_numpy(rows)
    scores = _scores(matrix, vector)
    places, best = _best(matrix, vector, scores, count)
    seconds = query_seconds + time.monotonic() - start
    if len(names) > 1 and (low := float(scores.min())) > best[0] - ALIKE:
        told.tell(f"all {len(names):,} pictures score alike, from {low:.3f} to {best[0]:.3f}: the order means nothing")
    captions = gallery.captions()
    hits = [
        Hit(rank, score, names[place], gallery.shown(names[place]), captions.get(names[place]))
        for rank, (place, score) in enumerate(zip(places, best, strict=True), 1)
    ]
    return Answer(query, gallery.words, len(names), seconds, tuple(hits), encoded, encoding_seconds, index.kept)


@dataclass(frozen=True)
class _Picture:
    path: Path
    content: str  # as the index names it
    pixels: Tensor  # uint8 RGB (3,H,W)


def _picture(path: Path) -> _Picture:
    check_picture(path)
    try:
        data = read_picture(path)
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror} (--image). Give a JPEG or PNG file") from error
    try:
        if data is None:
            raise UnreadableImage("neither a JPEG nor a PNG image")
        return _Picture(path, digest_of(data), decode(data))
    except UnreadableImage as error:
        raise DataError(f"{path} can't be read: {error} (--image). Give a whole JPEG or PNG file") from error


def _others(picture: _Picture, names: Sequence[str], index: Index, gallery: Gallery) -> dict[int, str]:
    """Rows and names of other pictures than the query, each content once: it may lie there twice, or smaller."""
    itself = os.path.realpath(picture.path)

    def own(name: str) -> bool:
        return name.rpartition("/")[2] == picture.path.name and os.path.realpath(gallery.shown(name)) == itself

    return {place: name for place in index.firsts(picture.content).tolist() if not own(name := names[place])}


def _tokens(words: str, model: Model, tell: Tell) -> Tensor:
    check_words(words)
    for note in model.notes(words):
        tell(note)
    return model.tokenize([words])


def _pictures(gallery: Gallery, towers: Towers) -> Encoding:
    def prepare(data: bytes) -> Tensor:
        return towers.view(decode(data))

    return Encoding(gallery.read, prepare, towers.encode_images, min(8, usable_cores()))


def _failures(index: Index) -> Iterator[str]:
    for state, what in (
        (OTHER, "no JPEG or PNG"),
        (DAMAGED, "damaged, or above 64 megapixels"),
        (UNREAD, "not to be opened"),
    ):
        if names := index.failures(state):
            yield count_words(names, f"{'are' if len(names) > 1 else 'is'} {what}")


def rows_of(model: Model, gallery: Gallery, indexes: Path, device: str | None, told: Told) -> tuple[list[str], Tensor]:
    """The names of a gallery's pictures and their float32 unit vectors (N,D); its index is brought up to date.

    Raises DataError where there is none.
    """
    index = open_index(model, gallery, indexes)
    refresh(index, gallery.items, _pictures(gallery, model.place(device)), told.report, told.tell)
    for note in (*gallery.notes, *_failures(index)):
        told.tell(note)
    names, rows = index.gallery()
    if not names:
        raise DataError(f"there is no picture in {gallery.words} (--images). Give a folder of JPEG or PNG files")
    return list(names), F.normalize(torch.from_numpy(np.array(rows)).float(), dim=1)
