"""The contrastive losses, each with what it comes to by chance."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Loss:
    of: Callable[[Tensor, Tensor, Tensor], Tensor]  # images (B,D), texts (B,D), temperature -> a scalar, in nats
    chance: Callable[[int], float]  # nats, of B pairs whose similarities are all 0


def infonce(images: Tensor, texts: Tensor, temperature: Tensor) -> Tensor:
    """Symmetric InfoNCE (van den Oord et al., 2018; Radford et al., 2021), in nats.

    `images` and `texts` are float32 unit vectors (B,D), row i of one belonging to row i of the other; every
    other row is a negative. The mean of both directions, a scalar.
    """
    logits = images @ texts.T / temperature
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


LOSSES = {"infonce": Loss(infonce, chance=math.log)}
