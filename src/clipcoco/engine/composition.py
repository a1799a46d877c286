"""The composition meter: whether an image is nearer to its caption than to the same one made false.

Recall can't see it: nearly every other caption of a gallery differs in a word that no caption of the image has, so a
bag of words is enough. Here both captions have the same words, or nearly.

Letters: P pairs, D dimensions.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clipcoco.data.captions import CaptionTable
from clipcoco.data.false_captions import FalseCaptions
from clipcoco.engine.embeddings import Embeddings
from clipcoco.engine.interval import confidence_intervals
from clipcoco.engine.results import Composition, FalseCaptionAccuracy


def margins(images: Tensor, true: Tensor, false: Tensor) -> Tensor:
    """How much more similar each image is to its true caption than to the false one, of unit vectors (P,D): float64
    (P,). A pair is right above 0; at 0 it is a tie, and wrong. By chance half of the pairs are right.

    In float64 and from the difference of both captions, so that equal embeddings tie, and others hardly ever do.
    As SugarCrepe (Hsieh et al. 2023) and, of two images and captions, Winoground (Thrush et al. 2022) ask.

    >>> image = torch.tensor([[1.0, 0.0]]).expand(3, 2)
    >>> true = torch.tensor([[0.8, 0.6], [0.6, 0.8], [0.6, 0.8]])
    >>> false = torch.tensor([[0.0, 1.0], [0.6, -0.8], [1.0, 0.0]])
    >>> margins(image, true, false) > 0
    tensor([ True, False, False])
    """
    return (images.double() * (true.double() - false.double())).sum(1)


@dataclass(frozen=True, eq=False)
class Judged:
    """The pairs of a split, and what a model made of them."""

    pairs: FalseCaptions
    table: CaptionTable
    margins: npt.NDArray[np.float64]  # (P,)

    def accuracies(self) -> dict[str, float]:
        """In percent, by kind."""
        return {kind: self._accuracy(at) for kind, at in self._by_kind().items()}

    def composition(self) -> Composition:
        """With 95 % intervals over images: a bootstrap that draws an image with its pairs, Wilson's near the ends."""
        kinds = {}
        for (kind, at), counts in zip(self._by_kind().items(), self.counts().values(), strict=True):
            right, pairs = (np.array(counts[key]) for key in ("right", "pairs"))
            found = right[:, None].repeat(3, axis=1)
            hits = np.hstack([(found > 0).astype(np.int64), found, pairs[:, None]])
            interval = confidence_intervals([hits]).t2i["r1"]
            ties = int((self.margins[at] == 0).sum())
            kinds[kind] = FalseCaptionAccuracy(self._accuracy(at), interval, len(at), len(pairs), ties)
        return Composition(self.pairs.source, kinds, self.pairs.fingerprint(self.table))

    def counts(self) -> dict[str, dict[str, list[int]]]:
        """By kind, of each image that has pairs: its id, how many are right, and how many there are."""
        found, owners = {}, self.table.owners[self.pairs.true]
        for kind, at in self._by_kind().items():
            images, rows = np.unique(owners[at], return_inverse=True)
            right = np.bincount(rows, weights=self.margins[at] > 0).astype(np.int64)
            ids = self.table.image_ids[images]
            columns = {"image_ids": ids, "right": right, "pairs": np.bincount(rows)}
            found[kind] = {name: column.tolist() for name, column in columns.items()}
        return found

    def _accuracy(self, at: npt.NDArray[np.int64]) -> float:
        return 100 * int((self.margins[at] > 0).sum()) / len(at)

    def _by_kind(self) -> dict[str, npt.NDArray[np.int64]]:
        kinds = np.array(self.pairs.kinds)
        return {kind: np.flatnonzero(kinds == kind) for kind in dict.fromkeys(self.pairs.kinds)}


def judge(embeddings: Embeddings, pairs: FalseCaptions, table: CaptionTable) -> Judged:
    """What the embeddings of `table`, and of the false captions of `pairs`, make of these."""
    assert embeddings.false is not None
    true = torch.from_numpy(pairs.true)
    images = embeddings.images[embeddings.owners[true]]
    return Judged(pairs, table, margins(images, embeddings.texts[true], embeddings.false).numpy())
