"""Recall@K of any model's embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clipcoco.engine.recall import ranks
from clipcoco.errors import DataError

Matrix = npt.NDArray[np.floating[Any]] | Tensor


@dataclass(frozen=True)
class Recalls:
    """Recall in percent by K. `ties` counts queries whose own score equals a foreign one: these count as lost."""

    i2t: dict[int, float]
    t2i: dict[int, float]
    ties: int

    @property
    def mean(self) -> dict[int, float]:
        """Of both directions, by K."""
        return {k: (self.i2t[k] + self.t2i[k]) / 2 for k in self.i2t}


def recall_at_k(
    image_embeddings: Matrix,
    text_embeddings: Matrix,
    owners: Sequence[int] | npt.NDArray[np.integer[Any]] | Tensor,
    ks: Sequence[int] = (1, 5, 10),
) -> Recalls:
    """Recall@K of any model's embeddings, over all of them as one gallery: protocol `own` of `clipcoco eval`.

    `image_embeddings` (N,D) and `text_embeddings` (M,D) are floats, taken in float32; `owners` (M) is the row of
    each caption's image, and every image has a caption. The score is the dot product: give unit vectors for the
    cosine. i2t is the share of images with at least one of their own captions among the K best, t2i that of
    captions with their image among them. A foreign score equal to the own one counts as better.

    Two images that look along the axes, and four captions, two each:

    >>> images = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> captions = np.array([[0.8, 0.6], [0.6, 0.8], [0.0, 1.0], [1.0, 0.0]])
    >>> images @ captions.T
    array([[0.8, 0.6, 0. , 1. ],
           [0.6, 0.8, 1. , 0. ]])

    Captions 0 and 1 belong to image 0. It finds a foreign one first (1.0), then its own (0.8): rank 2. Image 1
    finds an own one first: rank 1. So half of the images have R@1, and all have R@2. Captions 0 and 2 score higher
    with their own image, 1 and 3 with the other one: again a half, then all.

    >>> recall_at_k(images, captions, owners=[0, 0, 1, 1], ks=(1, 2))
    Recalls(i2t={1: 50.0, 2: 100.0}, t2i={1: 50.0, 2: 100.0}, ties=0)

    A collapsed model, to which all look alike, has found nothing: every score ties.

    >>> recall_at_k(np.ones((2, 2)), np.ones((4, 2)), owners=[0, 0, 1, 1], ks=(1,))
    Recalls(i2t={1: 0.0}, t2i={1: 0.0}, ties=6)

    Raises DataError for arrays that do not fit together, NumericError for embeddings that are not finite.
    """
    if not ks or min(ks) < 1:
        raise ValueError(f"ks are numbers of at least 1, not {ks!r}")
    images = _matrix(image_embeddings, "image")
    texts = _matrix(text_embeddings, "text").to(images.device)
    rows = torch.as_tensor(owners if isinstance(owners, Tensor) else np.array(owners), device=images.device)
    if images.shape[1] != texts.shape[1] or rows.shape != texts.shape[:1] or rows.is_floating_point():
        raise DataError(
            f"the embeddings do not fit together: images {tuple(images.shape)}, captions {tuple(texts.shape)}, "
            f"owners {tuple(rows.shape)} {rows.dtype}. Give (N,D), (M,D) and the image's row of each caption (M)"
        )
    rows = rows.long()
    if not torch.equal(rows.unique(), torch.arange(len(images), device=rows.device)):
        raise DataError(f"owners must name each of the rows 0 to {len(images) - 1}. Leave out images without a caption")
    found = ranks(images, texts, rows)
    i2t, t2i = ({int(k): 100 * int((places <= k).sum()) / len(places) for k in ks} for places in (found.i2t, found.t2i))
    return Recalls(i2t, t2i, found.ties)


def _matrix(values: Matrix, kind: str) -> Tensor:
    tensor = values.detach() if isinstance(values, Tensor) else torch.tensor(np.asarray(values))
    if tensor.ndim != 2 or not tensor.is_floating_point() or not tensor.numel():
        raise DataError(f"{kind} embeddings are floats in two dimensions, not {tensor.dtype} {tuple(tensor.shape)}")
    return tensor.float()
