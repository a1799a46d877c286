"""What a run learns from, as its checkpoints keep it: of the pictures ids, names and contents, of the captions words.

Letters: N images of the training split, M of the validation split, K of earlier runs or of earlier contents.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipcoco.data.captions import CaptionTable
from clipcoco.data.contents import WIDTH, Digests, contents_of
from clipcoco.data.split import Source
from clipcoco.data.tokenizer import words_in
from clipcoco.engine.weights import fits
from clipcoco.events import Report

_NAME = 8  # bytes
Pictures = dict[str, Tensor]


def pictures_of(train: CaptionTable, val: CaptionTable, source: Source, report: Report) -> Pictures:
    """Ids int64 (N,), names uint8 (N,8), contents uint8 (N,16) and (M,16), earlier ones (0,16)."""
    both = contents_of(replace(train, files=[*train.files, *val.files]), source, report)  # the memory is read once
    return {
        "ids": torch.from_numpy(train.image_ids),
        "names": torch.from_numpy(_names(train)),
        "train": torch.tensor(both[: len(train.files)]),
        "val": torch.tensor(both[len(train.files) :]),
        "earlier": torch.zeros(0, WIDTH, dtype=torch.uint8),
    }


def recorded(content: Mapping[str, Any]) -> Pictures | None:
    """What a checkpoint holds of them; None for one that holds none, or something else in its place."""
    given = content.get("pictures")
    if not isinstance(given, dict):
        return None
    widths = {"ids": (), "names": (_NAME,), "train": (WIDTH,), "val": (WIDTH,), "earlier": (WIDTH,)}
    found: Pictures = {}
    for name, width in widths.items():
        value = given.get(name)
        rows = len(value) if isinstance(value, Tensor) and value.dim() else 0
        like = torch.empty(rows, *width, dtype=torch.uint8 if width else torch.int64, device="meta")  # takes no room
        if not isinstance(value, Tensor) or not fits(value, like) or value.dtype != like.dtype:
            return None
        found[name] = value
    return found if len(found["ids"]) == len(found["names"]) == len(found["train"]) else None


def changed(before: Pictures | None, now: Pictures) -> int | None:
    """How many pictures of either split have other contents; None when nobody knows."""
    if before is None or any(before[split].shape != now[split].shape for split in ("train", "val")):
        return None
    return sum(int((before[split] != now[split]).any(dim=1).sum()) for split in ("train", "val"))


def with_earlier(now: Pictures, before: Pictures | None) -> Pictures:
    """`now`, and all that the weights have learnt from already: in another run, or before pictures were replaced."""
    if before is None:
        return now
    kept = torch.cat([before["earlier"], before["train"]]).unique(dim=0)
    known = _rows(now["train"].numpy())
    new = torch.tensor([row.tobytes() not in known for row in kept.numpy()], dtype=torch.bool)
    return {**now, "earlier": kept[new]}


def learnt_from(pictures: Pictures | None, table: CaptionTable, source: Source, report: Report) -> int | None:
    """How many images of the table are among `pictures`: by content, or by id and name, whatever they hold now."""
    if pictures is None:
        return None
    contents = _rows(pictures["train"].numpy()) | _rows(pictures["earlier"].numpy())
    contents.discard(bytes(WIDTH))  # of files that could not be read
    named = set(zip(pictures["ids"].tolist(), map(bytes, pictures["names"].numpy()), strict=True))
    rows = zip(table.image_ids.tolist(), _names(table), contents_of(table, source, report), strict=True)
    return sum(content.tobytes() in contents or (image, name.tobytes()) in named for image, name, content in rows)


def known_words(content: Mapping[str, Any]) -> set[str] | None:
    """The words of the captions that a checkpoint's weights have learnt from; None when it does not say."""
    words = content.get("words")
    return set(words.split()) if isinstance(words, str) else None


def words_with(captions: Iterable[str], earlier: set[str] | None) -> str | None:
    """As a checkpoint keeps them: the words of the captions and those that the weights have learnt from `earlier`."""
    return None if earlier is None else " ".join(sorted(earlier | words_in(captions).keys()))


def _rows(matrix: Digests) -> set[bytes]:
    return {row.tobytes() for row in matrix}


def _names(table: CaptionTable) -> Digests:
    """(N, 8): a hash of each file's own name, without its folder: that is the split's."""
    names = (hashlib.sha256(file.rpartition("/")[2].encode()).digest()[:_NAME] for file in table.files)
    return np.frombuffer(bytearray(b"".join(names)), np.uint8).reshape(-1, _NAME)
