"""The embeddings of a gallery, kept in one file and brought up to date by what changed.

An entry holds as long as its file has the same size and time of change; after that the content decides, so
that a picture which was only touched or renamed is not encoded again. Rows and names lie in one .npz: they
can't disagree, and its sums find damage. Letters: N entries, B a batch, D dimensions.
"""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clipcoco.data.viewer import UnreadableImage
from clipcoco.disk.files import remove_leftovers, take_name, write_temporary
from clipcoco.events import Progress, Report

FORMAT = 2
BATCH = 64
SAVE_EVERY = 2048  # items: minutes of work on a CPU, at most, are lost to a kill
ENCODED, OTHER, DAMAGED, UNREAD = range(4)  # states; what is UNREAD is tried again each time

Rows = npt.NDArray[np.float16]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Item:
    name: str  # a path relative to the gallery's folder, or a caption
    size: int = 0  # bytes
    changed: int = 0  # nanoseconds since 1970


class Entry(NamedTuple):
    size: int
    changed: int
    digest: bytes  # SHA-256 of the content
    state: int
    row: int  # of the embeddings; -1 without one


@dataclass(frozen=True)
class Encoding:
    """How the content of an item becomes a row."""

    read: Callable[[str], bytes | None]  # by name; None for a file of another kind; raises OSError
    prepare: Callable[[bytes], Tensor]  # raises UnreadableImage
    encode: Callable[[Tensor], Tensor]  # (B, ...) -> float32 unit vectors (B,D) on the CPU
    threads: int


@dataclass
class Index:
    """What is known of a gallery; `entries` stand in the order of the items when last brought up to date."""

    file: Path
    model: str  # the weights and the view that the rows were made with
    entries: dict[str, Entry] = field(default_factory=dict)
    rows: Rows = field(default_factory=lambda: np.empty((0, 0), np.float16))
    kept: bool = True  # False once it could not be written

    def stale(self, items: Sequence[Item]) -> list[Item]:
        """Items that must be read: new ones, and those whose file may have changed."""
        return [
            item
            for item in items
            if (entry := self.entries.get(item.name)) is None
            or (entry.size, entry.changed) != (item.size, item.changed)
            or entry.state == UNREAD
        ]

    def gallery(self) -> tuple[list[str], Rows]:
        """The names of what could be encoded, and their rows, in the order of the items."""
        found = [(name, entry.row) for name, entry in self.entries.items() if entry.state == ENCODED]
        order = np.array([row for _, row in found], np.int64)
        in_place = len(order) == len(self.rows) and bool((order == np.arange(len(order))).all())
        return [name for name, _ in found], self.rows if in_place else self.rows[order]

    def failures(self, state: int) -> list[str]:
        return [name for name, entry in self.entries.items() if entry.state == state]

    def save(self) -> None:
        """Write it in one step. Raises OSError."""
        arrays: dict[str, npt.NDArray[Any]] = {
            "names": _bytes("\0".join(self.entries).encode("utf-8", "surrogateescape")),
            "numbers": np.array([[e.size, e.changed, e.state] for e in self.entries.values()], np.int64),
            "digests": _bytes(b"".join(entry.digest for entry in self.entries.values())),
            "embeddings": self.gallery()[1],
        }
        about = {"format": FORMAT, "model": self.model, "sha256": _sum(arrays)}
        arrays["about"] = _bytes(json.dumps(about).encode())
        self.file.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.file, older_than=3600)  # others may be writing it, too
        take_name(write_temporary(self.file, lambda file: np.savez(file, **arrays)), self.file)  # type: ignore[arg-type]


def _sum(arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name in ("names", "numbers", "digests", "embeddings"):
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


def _bytes(data: bytes) -> npt.NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8)


def open_index(file: Path, model: str, tell: Tell) -> Index:
    """What `file` holds for this model; an empty index when it holds nothing, or nothing that can be used."""
    try:
        with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            if any(part.compress_type for part in arrays.zip.infolist()):
                raise ValueError("compressed: few bytes could become any number of them")
            about = json.loads(arrays["about"].tobytes())
            if (about["format"], about["model"]) != (FORMAT, model):
                return Index(file, model)
            if about["sha256"] != _sum(arrays):
                raise ValueError("not as it was written")
            names = arrays["names"].tobytes().decode("utf-8", "surrogateescape").split("\0")
            sizes, changed, states = arrays["numbers"].T
            digests, rows = arrays["digests"].view("V32").tolist(), arrays["embeddings"]
        has_row = states == ENCODED
        places = np.where(has_row, np.cumsum(has_row) - 1, -1)
        if not len(names) == len(set(names)) == len(states) == len(digests) or rows.shape[:1] != (has_row.sum(),):
            raise ValueError("rows and names do not fit together")
        if rows.dtype != np.float16 or rows.ndim != 2:
            raise ValueError("the rows are not a float16 matrix")
        columns = (sizes.tolist(), changed.tolist(), digests, states.tolist(), places.tolist())
        entries = dict(zip(names, map(Entry, *columns), strict=True))
    except FileNotFoundError:
        return Index(file, model)
    except Exception:  # what numpy and zipfile raise on a damaged file, or a stranger's, is nearly anything
        tell(f"the index {file} can't be used, so it is rebuilt")
        return Index(file, model)
    return Index(file, model, entries, rows)


@dataclass
class _Work:
    """An index while it is brought up to date."""

    index: Index
    report: Report
    tell: Tell
    total: int
    known: dict[bytes, Entry]  # by content
    blocks: list[Rows] = field(default_factory=list)
    rows: int = 0  # in the index and the blocks
    done: int = 0
    encoded: int = 0
    saved: int = 0

    def save(self) -> None:
        if self.blocks:
            self.index.rows = np.concatenate([*([self.index.rows] if len(self.index.rows) else []), *self.blocks])
            self.blocks = []
        if not self.index.kept:
            return
        try:
            self.index.save()
            self.saved = self.done
        except OSError as error:
            self.index.kept = False
            self.tell(f"the index can't be kept: {error.strerror or error} ({self.index.file})")


def refresh(index: Index, items: Sequence[Item], encoding: Encoding, report: Report, tell: Tell) -> int:
    """Bring `index` up to date with `items` and save it; gives how many of them were encoded.

    Whatever ends it, what was encoded until then is saved.
    """
    stale = index.stale(items)
    if not stale and list(index.entries) == [item.name for item in items]:
        return 0
    known = {entry.digest: entry for entry in index.entries.values() if entry.state in (ENCODED, DAMAGED)}
    work = _Work(index, report, tell, len(stale), known, rows=len(index.rows))
    try:
        for batch in _ahead(stale, encoding, known):
            _encode(work, batch, encoding)
            if work.done - work.saved >= SAVE_EVERY:
                work.save()
    except BaseException:
        if work.encoded:
            work.save()
            if index.kept:
                tell(f"{work.done:,} of {work.total:,} are done and kept; the same command goes on there")
        raise
    index.entries = {item.name: index.entries[item.name] for item in items}  # what is gone drops out
    work.save()
    return work.encoded


@dataclass(frozen=True)
class _Prepared:
    item: Item
    digest: bytes
    state: int
    content: Tensor | None  # None when the same content is known already, and when there is none


def _prepare(item: Item, encoding: Encoding, known: dict[bytes, Entry]) -> _Prepared:
    nothing = bytes(32)
    try:
        data = encoding.read(item.name)
    except OSError:
        return _Prepared(item, nothing, UNREAD, None)
    if data is None:
        return _Prepared(item, nothing, OTHER, None)
    digest = hashlib.sha256(data).digest()
    if digest in known:
        return _Prepared(item, digest, known[digest].state, None)
    try:
        return _Prepared(item, digest, ENCODED, encoding.prepare(data))
    except UnreadableImage:
        return _Prepared(item, digest, DAMAGED, None)


def _ahead(items: Sequence[Item], encoding: Encoding, known: dict[bytes, Entry]) -> Iterator[list[_Prepared]]:
    """The items in batches; the next ones are read and decoded while one is encoded."""
    waiting: deque[list[Future[_Prepared]]] = deque()
    pool = ThreadPoolExecutor(encoding.threads)
    try:
        for start in range(0, len(items), BATCH):
            waiting.append([pool.submit(_prepare, item, encoding, known) for item in items[start : start + BATCH]])
            if len(waiting) > 2:
                yield [future.result() for future in waiting.popleft()]
        while waiting:
            yield [future.result() for future in waiting.popleft()]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # a Ctrl-C waits for no picture that takes long


def _encode(work: _Work, batch: list[_Prepared], encoding: Encoding) -> None:
    fresh = [prepared for prepared in batch if prepared.content is not None]
    if fresh:
        rows = encoding.encode(torch.stack([p.content for p in fresh if p.content is not None]))
        work.blocks.append(rows.to(torch.float16).numpy())
    row = work.rows
    for prepared in batch:
        item, place = prepared.item, -1
        if prepared.content is not None:
            place, row = row, row + 1
        elif prepared.state == ENCODED:
            place = work.known[prepared.digest].row
        work.index.entries[item.name] = Entry(item.size, item.changed, prepared.digest, prepared.state, place)
    work.rows, work.encoded = row, work.encoded + len(fresh)
    work.done += len(batch)
    work.report(Progress("evaluate", work.done, work.total))
