"""The contrastive losses, each with what it comes to by chance.

Letters: B pairs of a batch, b of them in the rows that are looked at, D dimensions of the shared space.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Similarities (b,B) of queries to all that they may choose among, and the own column of each (b,): the mean over the
# rows, a scalar.
Rows = Callable[[Tensor, Tensor], Tensor]
MARGIN = 0.2  # of cosines, as in VSE++


@dataclass(frozen=True)
class Loss:
    of_rows: Rows
    chance: Callable[[int], float]  # of B pairs whose similarities are all 0; nats, but for a triplet's margin
    at_first: Rows | None = None  # in the place of `of_rows` while the learning rate warms up
    scaled: bool = True  # similarities are cosines over the temperature, and not cosines
    bias: Callable[[int], float] | None = None  # where it learns one to add to them: its start, of B pairs

    def of(
        self,
        images: Tensor,
        texts: Tensor,
        temperature: Tensor,
        rows: slice = slice(None),
        bias: Tensor | None = None,
        warming: bool = False,
    ) -> Tensor:
        """The mean of both directions, a scalar.

        `images` and `texts` are unit vectors (B,D), row i of one belonging to row i of the other; every other row is a
        negative. With `rows` the part of these alone, against all others: equal parts have the whole as their mean.
        """
        scale = temperature if self.scaled else 1
        own = torch.arange(len(images), device=images.device)[rows]
        of_rows = self.at_first if warming and self.at_first else self.of_rows

        def similarities(queries: Tensor, gallery: Tensor) -> Tensor:
            scaled = queries @ gallery.T / scale
            return scaled if bias is None else scaled + bias

        forth = similarities(images[rows], texts)
        of_images = of_rows(forth, own)  # first: the order in which gradients meet decides their last bits
        back = forth.T if len(own) == len(images) else similarities(texts[rows], images)
        return (of_images + of_rows(back, own)) / 2


def infonce(logits: Tensor, own: Tensor) -> Tensor:
    """InfoNCE: choose the own one among all (van den Oord et al., 2018; symmetric in Radford et al., 2021)."""
    return F.cross_entropy(logits, own)


def sigmoid(logits: Tensor, own: Tensor) -> Tensor:
    """SigLIP (Zhai et al., 2023): each pair is a question of its own, yes for the own one and no for all others."""
    signs = 2 * F.one_hot(own, logits.shape[1]) - 1
    return -F.logsigmoid(signs * logits).sum() / len(own)


def triplet(cosines: Tensor, own: Tensor) -> Tensor:
    """VSE++ (Faghri et al., 2018): the own one above the hardest of the others, by a margin."""
    return _hinges(cosines, own).amax(dim=1).mean()


def every_triplet(cosines: Tensor, own: Tensor) -> Tensor:
    """VSE0, with which VSE++ warms up, as its hardest negatives collapse young encoders: above the others' mean."""
    return _hinges(cosines, own).sum(dim=1).mean() / (cosines.shape[1] - 1)


def _hinges(cosines: Tensor, own: Tensor) -> Tensor:
    right = cosines.gather(1, own[:, None])
    return (MARGIN + cosines - right).clamp(min=0).scatter(1, own[:, None], 0.0)


LOSSES = {
    "infonce": Loss(infonce, chance=math.log),
    # Its bias starts where a pair is as probable as one in B: the paper's -10 is for its batch of 32,768.
    "sigmoid": Loss(
        sigmoid,
        chance=lambda pairs: math.log(pairs) + (pairs - 1) * math.log(pairs / (pairs - 1)),
        bias=lambda pairs: -math.log(pairs - 1),
    ),
    "triplet": Loss(triplet, chance=lambda pairs: MARGIN, at_first=every_triplet, scaled=False),
}
