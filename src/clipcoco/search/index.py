"""The embeddings of a gallery, kept in a file of rows and brought up to date by what changed.

What is known of a file holds as long as it has the same size and time of change; after that the content decides, to
which the row belongs: a picture that was only touched or renamed is not encoded again.
Letters: N names with a row, B a batch, D dimensions.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor

from clipcoco.data.viewer import UnreadableImage
from clipcoco.disk.arrays import Array, load_arrays, write_arrays
from clipcoco.disk.rows import RowFile, Rows, locked
from clipcoco.events import Progress, Report

FORMAT = 3
BATCH = 64
# Items: minutes of work on a CPU, at most, are lost to a kill. Once that is less than an eighth of what is there, such
# an eighth: the index is written whole each time, and all its versions together then have no more bytes than the rows.
SAVE_EVERY = 2048
OTHER, DAMAGED, UNREAD = "other", "damaged", "unread"  # in the place of a digest; UNREAD is tried again each time
_NO_ROW = (OTHER, DAMAGED, UNREAD)
DIGEST = 32  # hexadecimal digits of a content's SHA-256

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Item:
    name: str  # a path relative to the gallery's folder, or a caption
    stamp: str = ""  # of a file the size and the time of its last change


class _About(BaseModel):
    """By the items' names, which need not be texts."""

    # Its stamp; and the first half of the content's SHA-256, which names the row, or why there is no row.
    items: dict[Any, tuple[str, str]] = {}


@dataclass(frozen=True)
class Encoding:
    """How the content of an item becomes a row."""

    read: Callable[[str], bytes | None]  # by name; None for a file of another kind; raises OSError
    prepare: Callable[[bytes], Tensor]  # raises UnreadableImage
    encode: Callable[[Tensor], Tensor]  # (B, ...) -> float32 unit vectors (B,D) on the CPU
    threads: int


class _Rows(RowFile[_About]):
    """Its index is arrays: of a million pictures it is there in a second."""

    def load_index(self) -> dict[str, Any]:
        try:
            head, kept = load_arrays(self.path.with_suffix(".arrays"))
        except FileNotFoundError:
            index = super().load_index()  # of earlier versions
            return {**index, "items": super().checked(index).items}
        digits = kept["contents"].tobytes().hex()
        contents = [digits[at : at + DIGEST] for at in range(0, len(digits), DIGEST)]
        names, stamps = (
            str(kept[what].data, "utf-8", "surrogatepass").split("\0")[:-1] for what in ("names", "stamps")
        )
        states = map([*contents, *_NO_ROW].__getitem__, kept["places"].tolist())
        return {**head, "names": contents, "items": dict(zip(names, zip(stamps, states, strict=True), strict=True))}

    def checked(self, index: dict[str, Any]) -> _About:
        return _About.model_construct(items=index["items"])  # texts, as they were decoded

    def save_index(self, index: dict[str, Any]) -> None:
        contents, items = index.pop("names"), index.pop("items")
        places = {state: at - len(_NO_ROW) for at, state in enumerate(_NO_ROW)} | self.places
        arrays = {
            "contents": np.frombuffer(bytes.fromhex("".join(contents)), np.uint8),
            "names": _ended(items),
            "stamps": _ended(stamp for stamp, _ in items.values()),
            "places": np.array([places.get(content, places[UNREAD]) for _, content in items.values()], np.int32),
        }
        write_arrays(self.path.with_suffix(".arrays"), index, arrays)
        self.path.with_suffix(".json").unlink(missing_ok=True)  # of earlier versions


def _ended(texts: Iterable[str]) -> Array:
    """The bytes of texts, a zero behind each: in no name of a file there is one."""
    return np.frombuffer("".join(f"{text}\0" for text in texts).encode("utf-8", "surrogatepass"), np.uint8)


class Index:
    """What is known of a gallery, in the order of the items when last brought up to date."""

    def __init__(self, path: Path, model: str, width: int) -> None:
        """`model` names the weights and the view that rows of `width` D are made with."""
        self.path, self.kept = path, True  # False once it could not be written
        self._open = partial(_Rows, path, {"format": FORMAT, "model": model}, (width,), _About)
        self.file = self._open()
        # From question to question: items of which all is known, and what `gallery` gave.
        self._fresh: Sequence[Item] | None = None
        self._gallery: tuple[list[str], Rows] | None = None

    def stale(self, items: Sequence[Item]) -> list[Item]:
        """Items that must be read: new ones, and those whose file may have changed."""
        if self._fresh is items:
            return []
        known, places = self.file.about.items, self.file.places
        stale = []
        for item in items:
            stamp, content = known.get(item.name, ("", UNREAD))
            if stamp != item.stamp or not (content in places or content in (OTHER, DAMAGED)):
                stale.append(item)
        return stale

    def is_of(self, items: Sequence[Item]) -> bool:
        """Whether all is known of just these items, in their order; it is asked once for the same list."""
        if self._fresh is not items:
            self._gallery = None
            known = not self.stale(items) and list(self.file.about.items) == [item.name for item in items]
            self._fresh = items if known else None
        return self._fresh is items

    def gallery(self) -> tuple[list[str], Rows]:
        """The names of what could be encoded, and their rows (N,D), in the order of the items."""
        if self._gallery is None:
            places, rows = self.file.places, self.file.rows
            found = [
                (name, places[content]) for name, (_, content) in self.file.about.items.items() if content in places
            ]
            order = np.array([place for _, place in found], np.int64)
            in_order = np.array_equal(order, np.arange(len(rows)))
            self._gallery = [name for name, _ in found], rows if in_order else rows[order]
        return self._gallery

    def content(self, name: str) -> str:
        """The digest of what a file held, or why it has none."""
        return self.file.about.items[name][1]

    def failures(self, why: str) -> list[str]:
        return [name for name, (_, content) in self.file.about.items.items() if content == why]

    @contextmanager
    def alone(self, tell: Tell) -> Iterator[None]:
        """Read again what another search may have written meanwhile; one that is writing now is waited for."""
        with ExitStack() as stack:
            try:
                alone = stack.enter_context(locked(self.path, "search is writing", tell))
                self.file = self._open()
                self.file.shared = not alone
                if self.file.note:
                    tell(f"the index {self.path} can't be used, so it is rebuilt")
            except OSError as error:
                self._give_up(error.strerror or str(error), tell)
            yield

    def forget_all_but(self, names: list[str]) -> None:
        """Names that are gone drop out; their rows, once they are the most."""
        about, places = self.file.about, self.file.places
        about.items = {name: about.items[name] for name in names}
        used = {content for _, content in about.items.values() if content in places}
        if 2 * len(used) < len(places):
            self.file.keep(sorted(used, key=places.__getitem__))

    def save(self, tell: Tell) -> None:
        if self.kept:
            try:
                self.file.save()
                self.path.with_suffix(".npz").unlink(missing_ok=True)  # of earlier versions
            except OSError as error:
                self._give_up(error.strerror or str(error), tell)

    def _give_up(self, why: str, tell: Tell) -> None:
        self.kept = False
        tell(f"the index can't be kept: {why} ({self.path})")


def refresh(index: Index, items: Sequence[Item], encoding: Encoding, report: Report, tell: Tell) -> int:
    """Bring `index` up to date with `items` and save it; gives how many contents were encoded.

    Whatever ends it, what was encoded until then is saved.
    """
    if index.is_of(items):
        return 0
    names = [item.name for item in items]
    with index.alone(tell):
        stale, before = index.stale(items), len(index.file.places)
        done = saved = 0
        try:
            for batch in _ahead(stale, encoding, index.file.places):
                _encode(index, batch, encoding)
                done += len(batch)
                report(Progress("evaluate", done, len(stale)))
                if done - saved >= max(SAVE_EVERY, len(index.file.places) // 8):
                    index.save(tell)
                    saved = done
        except BaseException:
            if len(index.file.places) > before:
                index.save(tell)
                if index.kept:
                    tell(f"{done:,} of {len(stale):,} are done and kept; the same command goes on there")
            raise
        encoded = len(index.file.places) - before
        index.forget_all_but(names)
        index.save(tell)
        index.is_of(items)
        return encoded


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:DIGEST]


class _Read(NamedTuple):
    item: Item
    content: str
    prepared: Tensor | None = None  # None when the same content is known already, and when there is none


def _read(item: Item, encoding: Encoding, known: Container[str]) -> _Read:
    try:
        data = encoding.read(item.name)
    except OSError:
        return _Read(item, UNREAD)
    if data is None:
        return _Read(item, OTHER)
    digest = digest_of(data)
    try:
        return _Read(item, digest, None if digest in known else encoding.prepare(data))
    except UnreadableImage:
        return _Read(item, DAMAGED)


def _ahead(items: Sequence[Item], encoding: Encoding, known: Container[str]) -> Iterator[list[_Read]]:
    """The items in batches; the next ones are read and decoded while one is encoded."""
    waiting: deque[list[Future[_Read]]] = deque()
    pool = ThreadPoolExecutor(encoding.threads)
    try:
        for start in range(0, len(items), BATCH):
            waiting.append([pool.submit(_read, item, encoding, known) for item in items[start : start + BATCH]])
            if len(waiting) > 2:
                yield [future.result() for future in waiting.popleft()]
        while waiting:
            yield [future.result() for future in waiting.popleft()]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # a Ctrl-C waits for no picture that takes long


def _encode(index: Index, batch: list[_Read], encoding: Encoding) -> None:
    new = {read.content: read.prepared for read in batch if read.prepared is not None}
    new = {content: prepared for content, prepared in new.items() if content not in index.file.places}
    if new:
        rows = encoding.encode(torch.stack(list(new.values())))
        index.file.append(new, rows.to(torch.float16).numpy())
    for item, content, _ in batch:
        index.file.about.items[item.name] = item.stamp, content
