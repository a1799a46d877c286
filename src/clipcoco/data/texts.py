"""Texts that lie one after another on the disk, and become a list when one of them is asked for."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, overload

import numpy as np

from clipcoco.disk.arrays import Array
from clipcoco.errors import DataError


class Texts(Sequence[str]):
    """`count` texts without line breaks: `content` is uint8 (bytes,), UTF-8, with a line break between two of them.

    Each begins with `before`, which is not in there. `sha256` is of them all, where it is known.
    """

    def __init__(self, content: Array, count: int, before: str = "", sha256: str = "") -> None:
        self.content, self.before, self.sha256, self._count = content, before, sha256, count

    @cached_property
    def _list(self) -> list[str]:
        texts = str(self.content.data, "utf-8", "replace").split("\n") if self._count else []
        if len(texts) != self._count:
            raise DataError("what is kept of the captions is none of clipcoco's. Remove .clipcoco from data.root")
        return [self.before + text for text in texts] if self.before else texts

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        return self._list[at]

    def __iter__(self) -> Iterator[str]:
        return iter(self._list)

    def __eq__(self, other: object) -> bool:
        return self._list == (other._list if isinstance(other, Texts) else other)

    __hash__ = None  # type: ignore[assignment]  # as a list's

    def __reduce__(self) -> Any:  # of a mapped array its content, for another process
        return Texts, (np.array(self.content), self._count, self.before, self.sha256)


def joined(texts: Iterable[str]) -> Any:
    """The bytes of texts without line breaks, with a line break between two of them."""
    if isinstance(texts, Texts) and not texts.before:
        return texts.content.data
    return "\n".join(texts).encode()


def sha256_of(texts: Sequence[str]) -> str:
    """Of all of them, in hexadecimal."""
    known = texts.sha256 if isinstance(texts, Texts) else ""
    return known or hashlib.sha256(joined(texts)).hexdigest()
