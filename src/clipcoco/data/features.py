"""What frozen encoders give, on disk: features of a backbone, a file of rows for each split and kind of view, and the
sentence vectors of a text encoder."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from clipcoco.data.captions import CaptionTable
from clipcoco.data.contents import contents_of
from clipcoco.data.split import ORIGINALS, Source
from clipcoco.data.viewer import VIEW
from clipcoco.disk.rows import RowFile


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


class _About(BaseModel):
    model_config = ConfigDict(strict=True)

    stamps: list[str] = []  # of each row: which bytes the image had
    unreadable: list[int] = []  # image ids


class FeatureFile(RowFile[_About]):
    """The rows of images, by their ids."""

    def __init__(self, path: Path, key: FeatureKey) -> None:
        super().__init__(path, asdict(key), (key.views, key.width), _About, names="images")
        if len(self.about.stamps) != len(self.places):
            self.clear(f"{path.name} is damaged")

    def missing(self, table: CaptionTable, stamps: Sequence[str]) -> list[int]:
        """Rows of the table that are not there. When an image is another one than before, all are."""
        known = dict(zip(self.places, self.about.stamps, strict=True))
        before = [known.get(image) for image in table.image_ids.tolist()]
        if any(old not in (None, new) for old, new in zip(before, stamps, strict=True)):
            self.clear(f"images have changed since {self.path.name} was made")
            return list(range(len(before)))
        return [row for row, old in enumerate(before) if old is None]

    def save(self) -> None:
        """Of what was added before the rows, and without them by an interrupt, nothing."""
        del self.about.stamps[len(self.places) :]
        self.about.unreadable = [image for image in self.about.unreadable if image in self.places]
        super().save()

    def features(self, table: CaptionTable) -> Features:
        ids = table.image_ids.tolist()
        places = np.array([self.places[image] for image in ids], dtype=np.int64)
        return Features(self.rows, places, ~np.isin(table.image_ids, self.about.unreadable))


@dataclass(frozen=True, eq=False)
class Sentences:
    """Vectors of the M captions of a table."""

    rows: np.ndarray  # float16 (R,S), mapped from the disk
    places: np.ndarray  # int64 (M,): the row of each caption

    def take(self, captions: Sequence[int]) -> np.ndarray:
        """float16 (B,S) of these captions of the table."""
        taken: np.ndarray = self.rows[self.places[np.asarray(captions, dtype=np.int64)]]
        return taken


def stamps_of(table: CaptionTable, source: Source) -> list[str]:
    """For each image of the table what changes when its bytes do."""
    if source.name != ORIGINALS:
        return [source.copies[file] for file in table.files]
    return [content.tobytes().hex() for content in contents_of(table, source)]
