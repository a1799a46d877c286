"""A query and a gallery -> the nearest pictures or captions, by an exact product.

Letters: N rows of the gallery, D dimensions, k hits.
"""

import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from clipcoco.cores import usable_cores
from clipcoco.data.images import decode
from clipcoco.data.viewer import UnreadableImage
from clipcoco.errors import DataError
from clipcoco.events import Report
from clipcoco.search import check_picture, check_words
from clipcoco.search.galleries import Gallery, count_words, read_picture
from clipcoco.search.index import DAMAGED, OTHER, UNREAD, Encoding, Index, Item, Tell, refresh
from clipcoco.search.models import Model, Towers

CHUNK = 4096  # rows that are float32 at a time: they stay in the processor's cache
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
    captions: int  # that were searched; 0 when images were
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
    scores = torch.empty(len(rows))
    room = torch.empty(min(CHUNK, len(rows)), rows.shape[1])
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        torch.mv(room[: len(part)].copy_(part), query, out=scores[start : start + CHUNK])
    count = min(count, len(rows))
    candidates = (scores >= scores.topk(count).values[-1] - ROUNDING).nonzero().flatten()
    exact = (rows[candidates].double() * query.double()).sum(dim=1).float()
    order = exact.argsort(descending=True, stable=True)[:count]
    return candidates[order].tolist(), exact[order].tolist()


def answer(
    query: Query, model: Model, gallery: Gallery, indexes: Path, device: str | None, count: int, told: Told
) -> Answer:
    """Bring the index of the gallery up to date, then look for the query.

    Raises DataError for pictures that can't be read, ConfigError for a query without words.
    """
    content = _picture(query.picture) if query.picture else None
    tokens = None if query.picture else _tokens(query.words, model, told.tell)
    over_captions = query.picture is not None and gallery.table is not None
    index, items = _open(model, gallery, indexes, over_captions)
    # One text is sooner encoded on the CPU than a GPU has woken up.
    here = device is None and tokens is not None and not index.stale(items)
    towers = model.place("cpu" if here else device)
    start = time.monotonic()
    if content is not None:
        vector = towers.encode_images(towers.view(content)[None])[0]
    else:
        assert tokens is not None
        vector = towers.encode_texts(tokens)[0]
    query_seconds = time.monotonic() - start
    start = time.monotonic()
    encoding = _captions(model, towers) if over_captions else _pictures(gallery, towers)
    encoded = refresh(index, items, encoding, told.report, told.tell)
    encoding_seconds = time.monotonic() - start
    names, rows = index.gallery()
    for note in (*gallery.notes, *_failures(index)):
        told.tell(note)
    if not names:
        raise DataError(f"there is no picture in {gallery.words} (--images). Give a folder of JPEG or PNG files")
    start = time.monotonic()
    places, scores = nearest(torch.from_numpy(rows), vector, count)
    found = [(names[place], score) for place, score in zip(places, scores, strict=True)]
    return Answer(
        query,
        gallery.words,
        len(gallery.items) if over_captions else len(names),
        len(names) if over_captions else 0,
        query_seconds + time.monotonic() - start,
        tuple(_hits(gallery, found, over_captions)),
        encoded,
        encoding_seconds,
        index.kept,
    )


def _picture(path: Path) -> Tensor:
    check_picture(path)
    try:
        data = read_picture(path)
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror} (--image). Give a JPEG or PNG file") from error
    try:
        if data is None:
            raise UnreadableImage("neither a JPEG nor a PNG image")
        return decode(data)
    except UnreadableImage as error:
        raise DataError(f"{path} can't be read: {error} (--image). Give a whole JPEG or PNG file") from error


def _tokens(words: str, model: Model, tell: Tell) -> Tensor:
    check_words(words)
    if note := model.note(words):
        tell(note)
    return model.tokenize([words])


def _open(model: Model, gallery: Gallery, indexes: Path, over_captions: bool) -> tuple[Index, list[Item]]:
    name = gallery.words
    if gallery.table is None:
        name = "folder-" + hashlib.sha256(os.fsencode(os.path.realpath(gallery.folder))).hexdigest()[:16]
    if not over_captions:
        return Index(indexes / f"{name}-{model.label}.f16", model.key, model.width), gallery.items
    assert gallery.table is not None
    captions = dict.fromkeys(gallery.table.captions)  # each once
    path = indexes / f"{name}-captions-{model.label}.f16"
    return Index(path, model.key, model.width), [Item(caption) for caption in captions]


def _pictures(gallery: Gallery, towers: Towers) -> Encoding:
    def prepare(data: bytes) -> Tensor:
        return towers.view(decode(data))

    return Encoding(gallery.read, prepare, towers.encode_images, min(8, usable_cores()))


def _captions(model: Model, towers: Towers) -> Encoding:
    def tokenize(data: bytes) -> Tensor:
        return model.tokenize([data.decode("utf-8", "surrogateescape")])[0]

    return Encoding(lambda name: name.encode("utf-8", "surrogateescape"), tokenize, towers.encode_texts, 1)


def _failures(index: Index) -> Iterator[str]:
    for state, what in (
        (OTHER, "no JPEG or PNG"),
        (DAMAGED, "damaged, or above 64 megapixels"),
        (UNREAD, "not to be opened"),
    ):
        if names := index.failures(state):
            yield count_words(names, f"{'are' if len(names) > 1 else 'is'} {what}")


def _hits(gallery: Gallery, found: list[tuple[str, float]], over_captions: bool) -> list[Hit]:
    owners: dict[str, str] = {}  # the first picture of each caption
    if over_captions:
        assert gallery.table is not None
        for text, image in zip(gallery.table.captions, gallery.table.owners.tolist(), strict=True):
            owners.setdefault(text, gallery.table.files[image])
    captions = gallery.captions()
    hits = []
    for rank, (name, score) in enumerate(found, 1):
        file = owners.get(name, name)
        caption = name if over_captions else captions.get(name)
        hits.append(Hit(rank, score, file, gallery.shown(file), caption))
    return hits
