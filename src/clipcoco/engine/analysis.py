"""What is behind a recall: how similar pairs are, how ranks spread, which items answer too often.

Exact over all pairs, in chunks: no matrix of all scores is kept. Letters: N images, M captions, D dimensions.
"""

import math

import torch
from torch import Tensor

from clipcoco.engine.embeddings import Embeddings
from clipcoco.engine.results import Geometry, Hubs, RankCounts, Similarities

CHUNK = 2**22  # scores at a time, 16 MB; below 2**24 float32 counts exactly
BINS = 400  # of cosine similarity, from -1 to 1


@torch.inference_mode()
def similarities(embeddings: Embeddings) -> Similarities:
    images, texts, owners = embeddings.images, embeddings.texts, embeddings.owners
    every, matched = torch.zeros(BINS, dtype=torch.int64), torch.zeros(BINS, dtype=torch.int64)
    own_sum = 0.0
    size = max(1, CHUNK // len(images))
    for some, own_rows in zip(texts.split(size), owners.split(size), strict=True):
        scores = (some @ images.T).clamp_(-1, 1)
        own = scores.gather(1, own_rows[:, None])
        every += torch.histc(scores, BINS, -1, 1).long()
        matched += torch.histc(own, BINS, -1, 1).long()
        own_sum += float(own.double().sum())
    others = len(texts) * (len(images) - 1)
    every_sum = float(images.double().sum(0) @ texts.double().sum(0))
    return Similarities(
        edges=[-1 + 2 * edge / BINS for edge in range(BINS + 1)],
        matched=matched.tolist(),
        unmatched=(every - matched).tolist(),
        matched_mean=own_sum / len(texts),
        unmatched_mean=(every_sum - own_sum) / others if others else None,
    )


def rank_counts(ranks: Tensor, gallery: int) -> RankCounts:
    """`ranks` int64 of any shape, from 1 to `gallery`."""
    upper = [2**power for power in range((gallery - 1).bit_length() + 1)]
    groups = torch.bucketize(ranks.flatten(), torch.tensor(upper))
    return RankCounts(upper, torch.bincount(groups, minlength=len(upper)).tolist())


@torch.inference_mode()
def hubs(queries: Tensor, gallery: Tensor, count: int = 8, nearest: int = 10) -> Hubs:
    """`queries` float32 (Q,D), `gallery` float32 (G,D); hubness as in Radovanovic et al. 2010."""
    nearest = min(nearest, len(gallery))
    appearances = torch.zeros(len(gallery), dtype=torch.int64)
    for some in queries.split(max(1, CHUNK // len(gallery))):
        found = (some @ gallery.T).topk(nearest).indices.flatten()
        appearances += torch.bincount(found, minlength=len(gallery))
    rows = appearances.argsort(descending=True, stable=True)[:count]
    return Hubs(
        rows=rows.tolist(),
        counts=appearances[rows].tolist(),
        nearest=nearest,
        queries=len(queries),
        gallery=len(gallery),
        expected=nearest * len(queries) / len(gallery),
        never=int((appearances == 0).sum()),
    )


@torch.inference_mode()
def geometry(embeddings: Embeddings) -> Geometry:
    images, texts, owners = embeddings.images, embeddings.texts, embeddings.owners
    counts = torch.bincount(owners)
    return Geometry(
        gap=float((images.mean(0) - texts.mean(0)).norm()),
        alignment=float((images[owners] - texts).square().sum(1).mean()),
        image_uniformity=_uniformity(images),
        text_uniformity=_uniformity(texts[counts.cumsum(0) - counts]),
    )


def _uniformity(vectors: Tensor) -> float | None:
    """Of unit vectors (N,D): their squared distance is 2 - 2 cosine."""
    n, total = len(vectors), 0.0
    if n < 2:
        return None
    for some in vectors.split(max(1, CHUNK // n)):
        total += float((4 * (some @ vectors.T) - 4).exp_().sum(dtype=torch.float64))
    return math.log(max(total - n, 0.0) / (n * (n - 1)) or math.ulp(0.0))
