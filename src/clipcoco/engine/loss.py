"""The contrastive losses, each with what it comes to by chance.

Letters: B pairs of a batch, b of them in the rows that are looked at, D dimensions of the shared space.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Loss:
    # logits (b,B), which are cosine similarities over the temperature, and the own column of each row (b,) -> the mean
    # over the rows, a scalar in nats
    of_rows: Callable[[Tensor, Tensor], Tensor]
    chance: Callable[[int], float]  # nats, of B pairs whose similarities are all 0

    def of(self, images: Tensor, texts: Tensor, temperature: Tensor, rows: slice = slice(None)) -> Tensor:
        """The mean of both directions, a scalar in nats.

        `images` and `texts` are unit vectors (B,D), row i of one belonging to row i of the other; every other row is a
        negative. With `rows` the part of these alone, against all others: equal parts have the whole as their mean.
        """
        own = torch.arange(len(images), device=images.device)[rows]
        if len(own) == len(images):
            logits = images @ texts.T / temperature
            both = logits, logits.T
        else:
            both = images[rows] @ texts.T / temperature, texts[rows] @ images.T / temperature
        return (self.of_rows(both[0], own) + self.of_rows(both[1], own)) / 2


def infonce(logits: Tensor, own: Tensor) -> Tensor:
    """InfoNCE: choose the own one among all (van den Oord et al., 2018; symmetric in Radford et al., 2021)."""
    return F.cross_entropy(logits, own)


LOSSES = {"infonce": Loss(infonce, chance=math.log)}
