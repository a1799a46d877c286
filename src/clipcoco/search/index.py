"""The embeddings of a gallery, kept in a file of rows and brought up to date by what changed.

What is known of a file holds as long as it has the same size and time of change; after that the content decides, to
which the row belongs: a picture that was only touched or renamed is not encoded again.
Letters: N names with a row, B a batch, D dimensions.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from clipcoco.data.viewer import UnreadableImage
from clipcoco.disk.arrays import Array
from clipcoco.disk.rows import Rows, locked
from clipcoco.events import Progress, Report
from clipcoco.search.entries import DAMAGED, DIGEST, OTHER, STATES, UNREAD, About, EntryFile, Names, ended

FORMAT = 3
BATCH = 64
# Items: minutes of work on a CPU, at most, are lost to a kill. Once that is less than an eighth of what is there, such
# an eighth: the index is written whole each time, and all its versions together then have no more bytes than the rows.
SAVE_EVERY = 2048

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Item:
    name: str  # a path relative to the gallery's folder, or a caption
    stamp: str = ""  # of a file the size and the time of its last change


@dataclass(frozen=True)
class Encoding:
    """How the content of an item becomes a row."""

    read: Callable[[str], bytes | None]  # by name; None for a file of another kind; raises OSError
    prepare: Callable[[bytes], Tensor]  # raises UnreadableImage
    encode: Callable[[Tensor], Tensor]  # (B, ...) -> float32 unit vectors (B,D) on the CPU
    threads: int


class Index:
    """What is known of a gallery, in the order of the items when last brought up to date."""

    def __init__(self, path: Path, model: str, width: int) -> None:
        """`model` names the weights and the view that rows of `width` D are made with."""
        self.path, self.kept = path, True  # False once it could not be written
        self._open = partial(EntryFile, path, {"format": FORMAT, "model": model}, (width,), About)
        self.file = self._open()
        # From question to question: items of which all is known, and what `gallery` gave.
        self._fresh: Sequence[Item] | None = None
        self._gallery: tuple[Sequence[str], Rows] | None = None

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
            kept = self.file.columns()
            known = (
                not (kept["places"] == STATES[UNREAD]).any()
                and np.array_equal(kept["names"], ended([item.name for item in items]))
                and np.array_equal(kept["stamps"], ended([item.stamp for item in items]))
            )
            self._fresh = items if known else None
        return self._fresh is items

    def gallery(self) -> tuple[Sequence[str], Rows]:
        """The names of what could be encoded, and their rows (N,D), in the order of the items."""
        if self._gallery is None:
            kept, rows = self.file.columns(), self.file.rows
            chosen = np.flatnonzero(kept["places"] >= 0)
            order = kept["places"][chosen]
            in_order = np.array_equal(order, np.arange(len(rows)))
            self._gallery = Names(kept["names"], chosen), rows if in_order else rows[order]
        return self._gallery

    def firsts(self, but: str) -> Array:
        """The first place of each content of the gallery, ascending; none of the content with the digest `but`."""
        kept = self.file.columns()
        rows, firsts = np.unique(kept["places"][kept["places"] >= 0], return_index=True)
        same = kept["contents"].reshape(-1, DIGEST // 2)[rows] == np.frombuffer(bytes.fromhex(but), np.uint8)
        return np.sort(firsts[~same.all(axis=1)])

    def failures(self, why: str) -> Sequence[str]:
        kept = self.file.columns()
        return Names(kept["names"], np.flatnonzero(kept["places"] == STATES[why]))

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
        about, places, self.file.arrays = self.file.about, self.file.places, None
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
    items, index.file.arrays = index.file.about.items, None
    if new:
        rows = encoding.encode(torch.stack(list(new.values())))
        index.file.append(new, rows.to(torch.float16).numpy())
    for item, content, _ in batch:
        items[item.name] = item.stamp, content
