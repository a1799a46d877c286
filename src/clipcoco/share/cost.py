"""What 8 bits cost: the recall of a model as `eval` measures it, and of the same model as the page computes with it.

Letters: N images, M captions, D dimensions.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clipcoco.data.loader import EVALUATION_BATCH
from clipcoco.data.tokenizer import PAD, distinct_by_length
from clipcoco.engine.device import Device
from clipcoco.engine.model import TextEncoder
from clipcoco.engine.quantize import rounded_directions
from clipcoco.engine.recall import Ranks, ranks, table_of
from clipcoco.engine.results import RecallTable
from clipcoco.errors import NumericError
from clipcoco.runs.measure import Evaluation

POINTS = 0.5  # of mean R@1, or one query where that is more


@dataclass(frozen=True)
class Cost:
    split: str
    precision: str  # of the model as `eval` ran it
    caution: str
    model: RecallTable
    page: RecallTable
    ranks: Ranks  # of the page

    @property
    def images(self) -> int:
        return self.page.images

    @property
    def captions(self) -> int:
        return self.page.captions

    def to_plain(self) -> dict[str, Any]:
        tables = {"model": self.model.to_plain(), "page": self.page.to_plain()}
        return {"split": self.split, "precision": self.precision, "caution": self.caution, **tables}


def cost_of(evaluation: Evaluation, tower: TextEncoder, tokens: np.ndarray, bits: int, device: Device) -> Cost:
    """Of the images and captions of `evaluation`, whose `tokens` are int32 (M,L); `tower` has its weights rounded.

    Raises NumericError when more than POINTS are lost.
    """
    embeddings, result = evaluation.embeddings, evaluation.result
    _, images = rounded_directions(embeddings.images, bits)
    found = ranks(images, encode_texts(tower, tokens, device), embeddings.owners)
    page, model = table_of(found, embeddings.owners), table_of(evaluation.ranks, embeddings.owners)
    cost = Cost(result["split"], result["precision"] or "float32", result["caution"] or "", model, page, found)
    if (lost := model.r1 - page.r1) > max(POINTS, 50 / min(page.images, page.captions)) + 1e-9:
        other = "Take --bits 16" if bits == 8 else "Train in float32, or take `clipcoco export`"
        what = f"{bits} bits lose {lost:.2f} points of mean R@1, {model.r1:.2f} -> {page.r1:.2f}"
        where = f"on {page.images:,} images of {cost.split}; {POINTS} are allowed (--bits)"
        raise NumericError(f"{what} {where}. {other}")
    return cost


@torch.inference_mode()
def encode_texts(tower: TextEncoder, tokens: np.ndarray, device: Device) -> Tensor:
    """int32 (M,L) -> float32 unit vectors (M,D) on the CPU, computed in float32."""
    distinct, inverse = distinct_by_length(tokens)
    placed, vectors = tower.eval().to(device.device), []
    for some in torch.from_numpy(distinct).split(EVALUATION_BATCH):
        longest = int((some[-1] != PAD).sum())
        vectors.append(F.normalize(placed(some[:, :longest].to(device.device)), dim=1).cpu())
    return torch.cat(vectors)[torch.from_numpy(inverse)]
