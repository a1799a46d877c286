"""The contrastive loss."""

import torch
import torch.nn.functional as F
from torch import Tensor


def contrastive_loss(images: Tensor, texts: Tensor, temperature: Tensor) -> Tensor:
    """Symmetric InfoNCE (van den Oord et al., 2018; Radford et al., 2021), in nats.

    `images` and `texts` are float32 unit vectors (B,D), row i of one belonging to row i of the other; every
    other row is a negative. The mean of both directions, a scalar; at chance it is ln(B).
    """
    logits = images @ texts.T / temperature
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
