"""What an index knows of each item, beside the rows: arrays, used as they lie on the disk.

Of a million pictures they are there at once. Python's own objects are made of them only where something changes.
Letters: N items, R rows.
"""

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from pydantic import BaseModel

from clipcoco.disk.arrays import Array, Arrays, Sum, load_arrays, write_arrays
from clipcoco.disk.rows import RowFile

OTHER, DAMAGED, UNREAD = "other", "damaged", "unread"  # in the place of a digest; UNREAD is tried again each time
STATES = {OTHER: -3, DAMAGED: -2, UNREAD: -1}  # in the place of a row
DIGEST = 32  # hexadecimal digits of a content's SHA-256


class About(BaseModel):
    """By the items' names, which need not be texts."""

    # Its stamp; and the first half of the content's SHA-256, which names the row, or why there is no row.
    items: dict[Any, tuple[str, str]] = {}


class EntryFile(RowFile[About]):
    """Rows by their contents' digests."""

    summed = ("sum", Sum)
    arrays: Arrays | None = None  # None while something changes

    def load_index(self) -> dict[str, Any]:
        try:
            head, kept = load_arrays(self.path.with_suffix(".arrays"))
        except FileNotFoundError:
            return super().load_index()  # of earlier versions
        return {**head, "names": kept["contents"].reshape(-1, DIGEST // 2), "arrays": kept}

    def take(self, names: Any, index: dict[str, Any]) -> None:
        kept = index.get("arrays")
        if kept is None:
            super().take(names, index)
            return
        texts, places, halves = (kept["names"], kept["stamps"]), kept["places"], np.sort(names.view(np.uint64)[:, 0])
        sound = (
            {(array.dtype.str, array.ndim) for array in (*texts, kept["contents"])} == {("|u1", 1)}
            and (places.dtype, places.ndim) == (np.int32, 1)
            and ((places >= min(STATES.values())) & (places < len(names))).all()
            and all(_text(array).count("\0") == len(places) and not array[-1:].any() for array in texts)
            and ((halves[1:] != halves[:-1]).all() or len(np.unique(names, axis=0)) == len(names))
        )
        if not sound:
            raise ValueError("none of ours")
        self.arrays = kept
        del self.places, self.about

    @cached_property
    def places(self) -> dict[str, int]:  # type: ignore[override]  # it can be set, too
        digits = self.columns()["contents"].tobytes().hex()
        return {digits[at : at + DIGEST]: at // DIGEST for at in range(0, len(digits), DIGEST)}

    @cached_property
    def about(self) -> About:  # type: ignore[override]
        kept, states = self.columns(), [*self.places, *STATES]
        names, stamps = (_text(kept[what]).split("\0")[:-1] for what in ("names", "stamps"))
        items = zip(names, zip(stamps, map(states.__getitem__, kept["places"].tolist()), strict=True), strict=True)
        return About.model_construct(items=dict(items))  # texts, as they were decoded

    def columns(self) -> Arrays:
        """In the items' order `names` and `stamps`, as `ended` gives them, and `places`, int32 (N,): a row or one of
        STATES. In the rows' order `contents`, uint8 (16R,)."""
        if self.arrays is None:
            items, places = self.about.items, self.places | STATES
            self.arrays = {
                "contents": np.frombuffer(bytes.fromhex("".join(self.places)), np.uint8),
                "names": ended(items),
                "stamps": ended(stamp for stamp, _ in items.values()),
                "places": np.array([places.get(content, STATES[UNREAD]) for _, content in items.values()], np.int32),
            }
        return self.arrays

    def save_index(self, index: dict[str, Any]) -> None:
        del index["names"], index["items"]
        self.arrays = None
        write_arrays(self.path.with_suffix(".arrays"), index, self.columns())
        self.path.with_suffix(".json").unlink(missing_ok=True)  # of earlier versions


class Names(Sequence[str]):
    """Those at the places `chosen` of `texts`, as `ended` gave them, decoded one by one: few are ever shown."""

    def __init__(self, texts: Array, chosen: Array) -> None:
        ends = np.flatnonzero(texts == 0)
        self._texts, self._starts, self._ends = texts, np.append(0, ends + 1)[chosen], ends[chosen]

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, at: Any) -> Any:
        return _text(self._texts[self._starts[at] : self._ends[at]])


def ended(texts: Iterable[str]) -> Array:
    """The bytes of texts, uint8, a zero behind each: in no name of a file there is one."""
    return np.frombuffer("\0".join([*texts, ""]).encode("utf-8", "surrogatepass"), np.uint8)


def _text(content: Array) -> str:
    return str(content.data, "utf-8", "surrogatepass")
