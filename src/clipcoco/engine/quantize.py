"""Weights and embeddings as whole numbers of 8 or 16 bits: symmetric, with one scale for each output channel.

Of a matrix the outputs differ by more in size than the inputs do, so a scale each costs little recall (Krishnamoorthi,
2018, section 3.1). Letters: R output channels or embeddings, C inputs or dimensions.
"""

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor

from clipcoco.engine.model import TextEncoder

BITS = {8: torch.int8, 16: torch.int16}
COLUMNS = ("text_projection",)  # matrices whose outputs are the columns; of all others they are the rows


def quantize(rows: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """float32 (R,...) -> whole numbers (R,...), a key of BITS long, and float32 scales (R,): about `ints * scale`."""
    largest = rows.abs().flatten(1).amax(1)
    scales = torch.where(largest > 0, largest / (2 ** (bits - 1) - 1), 1.0)
    return (rows / _like(scales, rows)).round().to(BITS[bits]), scales


def dequantize(ints: Tensor, scales: Tensor) -> Tensor:
    """The float32 (R,...) that they stand for."""
    return ints.float() * _like(scales, ints)


def _like(scales: Tensor, rows: Tensor) -> Tensor:
    return scales.view(-1, *[1] * (rows.dim() - 1))


def quantized_weights(tower: TextEncoder, bits: int) -> dict[str, tuple[Tensor, Tensor] | Tensor]:
    """By name: of a matrix whole numbers, outputs first, and scales; biases and norms as they are, float32."""
    return {
        name: quantize(weight.T if name in COLUMNS else weight, bits) if weight.dim() > 1 else weight
        for name, weight in tower.state_dict().items()
    }


def rounded(tower: TextEncoder, bits: int) -> TextEncoder:
    """A copy that computes in float32 with what its weights are at so many bits."""
    copy = deepcopy(tower)
    with torch.no_grad():
        for name, weight in quantized_weights(tower, bits).items():
            if isinstance(weight, tuple):
                rows = dequantize(*weight)
                copy.get_parameter(name).copy_(rows.T if name in COLUMNS else rows)
    return copy


def rounded_directions(embeddings: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Float32 unit vectors (R,C) -> whole numbers, and the unit vectors of their directions: a length needs no bits."""
    ints, _ = quantize(embeddings, bits)
    return ints, F.normalize(ints.float(), dim=1)
