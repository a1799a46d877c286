"""Tensors that came from a file: whether they are the ones that were meant."""

from collections.abc import Mapping

import torch
from torch import Tensor

from clipcoco.config.text import shown

_NEVER_NEGATIVE = ("running_var", "exp_avg_sq", "step", "num_batches_tracked")


def fits(given: object, own: Tensor) -> bool:
    """Whether `given` is a plain tensor of the shape and kind of `own`."""
    return (
        isinstance(given, Tensor)
        and given.layout == torch.strided
        and given.device.type == "cpu"
        and given.shape == own.shape
        and given.is_floating_point() == own.is_floating_point()
        and given.is_complex() == own.is_complex()
    )


def first_spoilt(tensors: Mapping[str, Tensor]) -> str:
    """The first that holds what is not finite, or a variance below 0; "" when all are sound."""
    for name, value in tensors.items():
        if value.numel():
            # aminmax reads them once and writes nothing: a quarter of the time of isfinite().all()
            low, high = torch.aminmax(value)
            if not (low.isfinite() and high.isfinite()):
                return f"{shown(name)} is not finite"
            if low < 0 and name.endswith(_NEVER_NEGATIVE):
                return f"{shown(name)} is negative"
    return ""
