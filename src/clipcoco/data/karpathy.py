"""Ids of COCO that evaluation knows by heart: Karpathy's test and validation images, and val2017.

The split of Karpathy & Fei-Fei (CVPR 2015) is what the literature's 1K and 5K are measured on; its images lie in both
folders of COCO 2017. The ids come with the package (karpathy.npz, whose `source` names origins and licences), so that
the split, its folds and the guard against measuring on what was trained on need nothing else.
"""

from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]


@cache
def coco_ids() -> dict[str, Ids]:
    """Of images "test" (5000,) in the published order, "val" and "val2017" (5000,), ascending; of captions
    "test_captions" (25000,), ascending: the first five of each test image, which are the literature's."""
    with np.load(Path(__file__).with_name("karpathy.npz")) as packed:
        return {name: packed[name].astype(np.int64) for name in ("test", "val", "val2017", "test_captions")}


def published_order(image_ids: Ids) -> list[int]:
    """The positions of `image_ids` in the order in which the test split is published, other images behind it."""
    place = {image: row for row, image in enumerate(coco_ids()["test"].tolist())}
    return sorted(range(len(image_ids)), key=lambda row: place.get(int(image_ids[row]), len(place)))


def known_images(image_ids: Ids) -> dict[str, int] | None:
    """How many of the images are in each split, as far as the ids tell; None where they tell of half of them or less.

    Other data are numbered too, and a few of any numbers are COCO's by chance.
    """
    known = coco_ids()
    test, val, val2017 = (np.isin(image_ids, known[name]) for name in ("test", "val", "val2017"))
    if 2 * (test | val | val2017).sum() <= len(image_ids):
        return None
    splits = {"train2017": (test | val) & ~val2017, "val2017": val2017, "karpathy_train": val2017 & ~(test | val)}
    splits |= {"karpathy_val": val, "karpathy_test": test}
    return {name: int(inside.sum()) for name, inside in splits.items()}
