"""The nearest rows of a gallery, with a rule for equal scores."""

from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = 64  # queries whose scores are in memory


def nearest(queries: Tensor, gallery: Tensor, most: int, first: Callable[[int], Tensor]) -> Tensor:
    """(Q,most), int64: for each of `queries` (Q,D) the rows of `gallery` (G,D) with the highest dot products.

    Of equal scores the higher of `first(start)` comes first: integers from 0 to 2^32, (G,) or, for the BLOCK of queries
    from `start` on, (B,G). Float32 on the CPU; equal rows have equal scores, whatever the kernels do.
    """
    distinct, which = torch.unique(gallery, dim=0, return_inverse=True)
    found = []
    for start in range(0, len(queries), BLOCK):
        bits = (queries[start : start + BLOCK] @ distinct.T + 0.0)[:, which].view(torch.int32).long()  # no -0
        scores = torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)  # whole numbers in the order of the floats
        found.append(((scores << 32) + first(start)).topk(min(most, len(gallery)), dim=1).indices)
    return torch.cat(found)
