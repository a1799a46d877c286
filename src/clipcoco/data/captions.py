"""Captions JSON, checked and indexed by pycocotools -> CaptionTable: arrays sorted by image id. No torch."""

import contextlib
import filecmp
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipcoco.config.derive import subset_size
from clipcoco.data.annotations import ADOPTED, MAX_DROPPED, PREPARE, Rows, checked_rows, name_of
from clipcoco.data.texts import joined
from clipcoco.errors import DataError

Ids = npt.NDArray[np.int64]

# Data whose neighbours by id are strangers. Others may be numbered folder by folder, and neighbours look alike.
IN_ORDER_OF_IDS = ("COCO 2017 Dataset", "clipcoco scenes")


@dataclass(frozen=True, eq=False)
class CaptionTable:
    """The N images of a split, or of a subset of it, with their M captions.

    The captions of image i are `captions[offsets[i]:offsets[i + 1]]`, at least one.
    """

    folder: Path  # of the files: data.root, or the copies in it
    image_ids: Ids  # (N,), ascending
    files: Sequence[str]  # N, relative to `folder`: "train2017/000000000009.jpg"
    sizes: Ids  # (N, 2), width and height in pixels as annotated; 0 where they are not
    caption_ids: Ids  # (M,), by image, then ascending
    captions: Sequence[str]  # M, cleaned
    offsets: Ids  # (N + 1,)
    order: str  # "ids" or "hashed ids": how images follow each other in folds and in batches of the validation loss
    notes: tuple[str, ...]  # what was dropped or noticed in the file, a sentence each
    name: str = ""  # for a person: "val2017", of own pictures in data/mine "mine val"
    coco: bool = False  # as the file says of itself: so its ids are those that are published

    @property
    def owners(self) -> Ids:
        """(M,): the position of each caption's image."""
        return np.repeat(np.arange(len(self.image_ids), dtype=np.int64), np.diff(self.offsets))

    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of ids, file names, texts, and of which caption belongs to which image."""
        digest = hashlib.sha256()
        for numbers in (self.image_ids, self.caption_ids, self.offsets):
            digest.update(f"{len(numbers)}:".encode() + numbers.astype("<i8").tobytes())
        for texts in (self.files, self.captions):
            digest.update(bytes(joined(texts)) + b"\n\n")
        return digest.hexdigest()

    def subset(self, fraction: float, seed: int) -> "CaptionTable":
        """The first floor(N x fraction + 0.5) images in the order of hashed ids, so that 1 % is inside 10 %.

        Raises DataError if no image is left.
        """
        count = subset_size(len(self.image_ids), fraction)
        if count == 0:
            left = f"a fraction of {fraction:g} leaves none of {len(self.image_ids):,} images"
            raise DataError(f"{left} (data.train_fraction or data.val_fraction). Use a larger one")
        if count == len(self.image_ids):
            return self
        return self.only(sorted(hashed_order(self.image_ids, seed)[:count]))

    def only(self, chosen: list[int]) -> "CaptionTable":
        """The images at these positions, which ascend."""
        spans = [range(self.offsets[i], self.offsets[i + 1]) for i in chosen]
        taken = [position for span in spans for position in span]
        return replace(
            self,
            image_ids=self.image_ids[chosen],
            files=[self.files[i] for i in chosen],
            sizes=self.sizes[chosen],
            caption_ids=self.caption_ids[taken],
            captions=[self.captions[i] for i in taken],
            offsets=np.cumsum([0, *map(len, spans)], dtype=np.int64),
        )


def hashed_order(image_ids: Ids, seed: int = 0) -> list[int]:
    """The positions of `image_ids` in the order of a hash of each, the same for ever."""
    keys = [hashlib.sha256(f"{seed}:{image}".encode()).digest() for image in image_ids.tolist()]
    return sorted(range(len(keys)), key=keys.__getitem__)


def read_captions(root: Path, split: str, *, get_them: str = PREPARE) -> CaptionTable:
    """The images and captions of `split`, "train2017" or "val2017".

    From root/annotations/captions_<split>.json. Malformed rows, empty captions, captions without an image and
    images without a caption are dropped with a note; more than 1 % of them is an error, the empty ones apart.
    `get_them` is the command that errors recommend. Raises DataError, or EnvironmentProblem without access.
    """
    images, annotations, notes, described = checked_rows(root, split, get_them)
    by_image = _index(images, annotations)
    images.sort(key=lambda row: row["id"])
    groups = [sorted(by_image[row["id"]], key=lambda row: row["id"]) for row in images]
    captions = [row["caption"] for group in groups for row in group]
    repeated = len(captions) - sum(len({row["caption"] for row in group}) for group in groups)
    if repeated > MAX_DROPPED * len(captions):  # COCO has a few: 7 of 25,014
        notes.append(f"captions_{split}.json: {repeated:,} of {len(captions):,} captions repeat another of their image")
    return CaptionTable(
        folder=root,
        image_ids=np.array([row["id"] for row in images], dtype=np.int64),
        files=[f"{split}/{row['file_name']}" for row in images],
        sizes=np.array([[_pixels(row, "width"), _pixels(row, "height")] for row in images], dtype=np.int64),
        caption_ids=np.array([row["id"] for group in groups for row in group], dtype=np.int64),
        captions=captions,
        offsets=np.cumsum([0, *map(len, groups)], dtype=np.int64),
        order="ids" if described in IN_ORDER_OF_IDS else "hashed ids",
        notes=tuple(notes),
        name=name_of(root, split, described == ADOPTED),
        coco=described == IN_ORDER_OF_IDS[0],
    )


def _pixels(row: dict[str, Any], key: str) -> int:
    value = row.get(key)
    return value if type(value) is int and 0 < value < 2**31 else 0


def overlap(train: CaptionTable, val: CaptionTable) -> int:
    """How many images of `val` stand in `train`, too: the same id, or a file of the same name and bytes."""
    both = set(train.image_ids.tolist()).intersection(val.image_ids.tolist())
    named = {file.rpartition("/")[2]: file for file in train.files}
    for image, file in zip(val.image_ids.tolist(), val.files, strict=True):
        other = named.get(file.rpartition("/")[2])
        if other and image not in both:
            with contextlib.suppress(OSError):  # a file that is not there is told elsewhere
                if filecmp.cmp(train.folder / other, val.folder / file, shallow=False):
                    both.add(image)
    return len(both)


def _index(images: Rows, annotations: Rows) -> dict[int, Rows]:
    from pycocotools.coco import COCO  # slow to import, and inspect-config does without

    coco = COCO()
    coco.dataset = {"images": images, "annotations": annotations}
    with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress where --json belongs
        coco.createIndex()
    by_image: dict[int, Rows] = coco.imgToAnns
    return by_image
