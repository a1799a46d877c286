"""Features of a frozen backbone on disk: float16 rows in one file a split, with an index beside it.

The index says how many rows are whole and what their SHA-256 is; it is replaced only after they are on the disk.
So a kill costs the rows since then, and what is read is what was written.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pydantic import BaseModel, ConfigDict

from clipcoco.data.captions import CaptionTable
from clipcoco.data.contents import contents_of
from clipcoco.data.split import ORIGINALS, Source
from clipcoco.data.viewer import VIEW
from clipcoco.disk.files import open_to_append, read_own, write_json, write_whole
from clipcoco.disk.seal import seal, unsealed

_CHUNK = 2**22


@dataclass(frozen=True)
class FeatureKey:
    """All that decides a feature, the image itself apart: with another key it is another file."""

    weights: str  # SHA-256 of the backbone's parameters and buffers
    backbone: str
    image_size: int
    precision: str
    source: str  # "originals" or "prepared-256"
    mirror: bool  # beside the evaluation's view, its mirror image; and half of the crops are mirrored
    crops: int
    crop_scale: list[float]  # [1, 1] without crops
    views_sha256: str  # of both kinds of view of one drawn image
    width: int  # F, of one view
    view: int = VIEW  # of the pictures
    device: str = "cpu"  # or the name of the GPU: each rounds in its own way

    def path(self, folder: Path, split: str) -> Path:
        digest = hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()
        return folder / f"features-{self.backbone}-{digest[:12]}-{split}.f16"

    @property
    def views(self) -> int:
        return 1 + self.mirror + self.crops

    @property
    def row_bytes(self) -> int:
        return 2 * self.views * self.width


@dataclass(frozen=True, eq=False)
class Features:
    """Of the N images of a table."""

    rows: np.ndarray  # float16 (R,V,F), mapped from the disk
    places: np.ndarray  # int64 (N,): the row of each image
    readable: np.ndarray  # bool (N,)

    def take(self, rows: Sequence[int], views: Sequence[int]) -> np.ndarray:
        """float16 (B,F) of these images of the table; view 0 is the evaluation's."""
        taken: np.ndarray = self.rows[self.places[np.asarray(rows, dtype=np.int64)], np.asarray(views, dtype=np.int64)]
        return taken


class _Index(BaseModel):
    model_config = ConfigDict(strict=True)

    key: dict[str, Any]  # of the rows
    sha256: str  # of all of them
    images: list[int]  # whose rows these are
    stamps: list[str]
    unreadable: list[int]


class FeatureFile:
    """The rows that are whole. `missing` says what to compute, `append` and `save` keep it, `features` reads it.

    Until `append` nothing is written, and what was read stays mapped, whatever another process does to the file.
    """

    def __init__(self, path: Path, key: FeatureKey) -> None:
        self.path, self.key = path, key
        self.images: dict[int, int] = {}  # image id -> row
        self.stamps: list[str] = []  # of each row: which bytes the image had
        self.unreadable: list[int] = []
        self.note = ""  # why what was there is of no use
        self._digest, self._rows = hashlib.sha256(), np.empty(0, np.float16)
        index = self._read_index()
        if index and self._matches(index):
            self.images = {image: row for row, image in enumerate(index.images)}
            self.stamps, self.unreadable = index.stamps, index.unreadable
        else:
            self._begin_anew()

    def _begin_anew(self) -> None:
        self.images, self.stamps, self.unreadable = {}, [], []
        self._digest, self._rows = hashlib.sha256(), np.empty(0, np.float16)

    def missing(self, table: CaptionTable, stamps: Sequence[str]) -> list[int]:
        """Rows of the table that are not there. When an image is another one than before, all are."""
        known = [(self.images.get(int(image)), stamp) for image, stamp in zip(table.image_ids, stamps, strict=True)]
        if any(row is not None and self.stamps[row] != stamp for row, stamp in known):
            self.note = f"images have changed since {self.path.name} was made: recomputing"
            self._begin_anew()
            return list(range(len(known)))
        return [position for position, (row, _) in enumerate(known) if row is None]

    def append(self, images: Sequence[int], stamps: Sequence[str], rows: np.ndarray, unreadable: Sequence[int]) -> None:
        """float16 (B,V,F). On the disk for good only after `save`."""
        assert rows.shape == (len(images), self.key.views, self.key.width)
        data = np.ascontiguousarray(rows, dtype=np.float16).tobytes()
        if not self.stamps:  # anew: another run may be training from the old file, and keeps what it has mapped
            self.path.unlink(missing_ok=True)
        with open_to_append(self.path) as file:
            file.truncate(len(self.stamps) * self.key.row_bytes)  # what a kill left behind the last whole row
            write_whole(file, data)
        self._digest.update(data)
        self.images |= {image: len(self.stamps) + offset for offset, image in enumerate(images)}
        self.stamps.extend(stamps)
        self.unreadable.extend(unreadable)

    def save(self) -> None:
        with open(self.path, "rb") as file:
            os.fsync(file.fileno())
        index = {
            "key": asdict(self.key),
            "sha256": self._digest.hexdigest(),
            "images": list(self.images),
            "stamps": self.stamps,
            "unreadable": self.unreadable,
        }
        write_json(self._index, seal(index))

    def features(self, table: CaptionTable) -> Features:
        broken = set(self.unreadable)
        return Features(
            self._rows if len(self._rows) == len(self.stamps) else self._mapped(self.path, len(self.stamps)),
            np.array([self.images[image] for image in table.image_ids.tolist()], dtype=np.int64),
            np.array([image not in broken for image in table.image_ids.tolist()]),
        )

    def _mapped(self, file: Path | BinaryIO, rows: int) -> np.ndarray:
        return np.memmap(file, dtype=np.float16, mode="r", shape=(rows, self.key.views, self.key.width))

    @property
    def _index(self) -> Path:
        return self.path.with_suffix(".json")

    def _read_index(self) -> "_Index | None":
        try:
            index = _Index.model_validate(unsealed(json.loads(read_own(self._index, most=2**30))))
            if index.key == asdict(self.key) and len(set(index.images)) == len(index.images) == len(index.stamps):
                return index
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError):
            pass
        self.note = f"{self._index.name} can't be used: recomputing"
        return None

    def _matches(self, index: "_Index") -> bool:
        """Read all rows once: a flipped bit would be trained on unseen."""
        left = len(index.stamps) * self.key.row_bytes
        try:
            with open(self.path, "rb") as file:
                while left and (chunk := file.read(min(left, _CHUNK))):
                    self._digest.update(chunk)
                    left -= len(chunk)
                if not left and index.stamps:
                    self._rows = self._mapped(file, len(index.stamps))
        except OSError:
            left = 1
        if left or self._digest.hexdigest() != index.sha256:
            self.note = f"{self.path.name} is damaged: recomputing"
            return False
        return True


def stamps_of(table: CaptionTable, source: Source) -> list[str]:
    """For each image of the table what changes when its bytes do."""
    if source.name != ORIGINALS:
        return [source.copies[file] for file in table.files]
    return [content.tobytes().hex() for content in contents_of(table, source)]
