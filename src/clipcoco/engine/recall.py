"""Recall@K between images and captions from embeddings alone: pure tensors, exact, ties are misses.

A matrix product may give equal embeddings scores that differ in the last bit, as kernels for the edges of a
matrix add in another order; a collapsed model then looks better than it is. So the product runs over distinct
embeddings: who shares an embedding shares its score. It runs in tiles of one shape, padded with zeros:
memory is bounded and no score depends on where its pair stands. Own scores come from the same tiles: a dot
product computed apart differs in the last bit from its rivals.
"""

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise, product

import torch
from torch import Tensor

from clipcoco.engine.interval import Hits, confidence_intervals
from clipcoco.engine.results import RecallTable
from clipcoco.errors import NumericError
from clipcoco.events import Chance, Progress, Recalls, Report

CUTOFFS = (1, 5, 10)
TILE = (512, 2560)  # images, captions: 5 MB of scores, counted while they are in the cache
Tiles = Iterable[tuple[int, int]]
Block = tuple[Tensor, Tensor | slice]  # some embeddings, and where a tile holds them


@dataclass(frozen=True)
class Ranks:
    """Ranks, 1 is best: `i2t` int64 (N,) of each image's best own caption, `t2i` int64 (M,) of each
    caption's image. `ties` counts queries, of both directions, whose own score equals a foreign one."""

    i2t: Tensor
    t2i: Tensor
    ties: int


def recall_table(image_embeddings: Tensor, text_embeddings: Tensor, owners: Tensor) -> RecallTable:
    """Protocol `own`: all images and all captions form one gallery.

    `image_embeddings` float32 (N, D), `text_embeddings` float32 (M, D), `owners` int64 (M,): the index of
    each caption's image, ascending; every image has a caption. One device. Similarity is the dot product,
    so unit vectors give the cosine. Raises NumericError when embeddings are not finite. By an example:

    >>> images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> captions = torch.tensor([[0.8, 0.6], [0.6, 0.8], [0.0, 1.0], [1.0, 0.0]])
    >>> owners = torch.tensor([0, 0, 1, 1])
    >>> images @ captions.T
    tensor([[0.8000, 0.6000, 0.0000, 1.0000],
            [0.6000, 0.8000, 1.0000, 0.0000]])

    Image 0 finds the last caption (1.0), a foreign one, before its best own one (0.8): rank 2. Image 1
    finds an own one first. Captions 0 and 2 prefer their own image, captions 1 and 3 the other one.

    >>> ranks(images, captions, owners)
    Ranks(i2t=tensor([2, 1]), t2i=tensor([1, 2, 1, 2]), ties=0)
    >>> recall_table(images, captions, owners).i2t
    {'r1': 50.0, 'r5': 100.0, 'r10': 100.0, 'median_rank': 1.5}
    """
    return table_of(ranks(image_embeddings, text_embeddings, owners), owners)


def table_of(found: Ranks, owners: Tensor) -> RecallTable:
    """`recall_table` from ranks that are known."""
    return _table([(found, owners)], dropped=0)


def folds_table(
    image_embeddings: Tensor, text_embeddings: Tensor, owners: Tensor, fold: int = 1000
) -> RecallTable | None:
    """Protocol `1k`: means over consecutive folds of `fold` images, each a gallery of its own.

    Arguments and errors as for `recall_table`. Images behind the last whole fold are dropped and counted;
    None when no fold is whole.
    """
    _refuse_non_finite(image_embeddings, text_embeddings)
    count, dropped = divmod(len(image_embeddings), fold)
    starts = fold * torch.arange(count + 1, device=owners.device)
    folds = []
    for number, (first, last) in enumerate(pairwise(torch.searchsorted(owners, starts).tolist())):
        images = image_embeddings[number * fold : (number + 1) * fold]
        own = owners[first:last] - number * fold
        folds.append((ranks(images, text_embeddings[first:last], own), own))
    return _table(folds, dropped) if folds else None


def ranks(
    image_embeddings: Tensor, text_embeddings: Tensor, owners: Tensor, report: Report = lambda event: None
) -> Ranks:
    """The rank of each image's best own caption, and of each caption's image; see `recall_table`.

    i2t: 1 + captions of other images that score no lower than the best own one. t2i: 1 + other images that
    score no lower than the own one. In float32, whatever autocast and TF32 settings are in force.
    """
    assert image_embeddings.dtype == text_embeddings.dtype == torch.float32, "embeddings must be float32"
    assert len(owners) == len(text_embeddings), "one owner per caption"
    assert set(owners.tolist()) == set(range(len(image_embeddings))), "every image has captions, and no other"
    _refuse_non_finite(image_embeddings, text_embeddings)
    with _true_float32(image_embeddings.device.type):
        images, captions = _Distinct(image_embeddings, TILE[0]), _Distinct(text_embeddings, TILE[1])
        own = _own_scores(images, captions, owners)
        best = own.new_full((len(image_embeddings),), -torch.inf).scatter_reduce(0, owners, own, "amax")
        (image_above, image_ties), (caption_above, caption_ties) = _count(images, captions, best, own, report)
    image_ties -= torch.bincount(owners[own == best[owners]], minlength=len(best))  # own captions
    caption_ties -= 1  # the own image
    assert min(image_ties.min(), caption_ties.min()) >= 0, "the product did not repeat an own score"
    ties = int((image_ties > 0).sum() + (caption_ties > 0).sum())
    return Ranks(1 + image_above + image_ties, 1 + caption_above + caption_ties, ties)


def hits_by_image(found: Ranks, owners: Tensor) -> Hits:
    """(N,7): what the intervals of recall need to know of each image."""
    cutoffs, captions = torch.tensor(CUTOFFS), torch.bincount(owners.cpu())
    i2t, t2i = ((places.cpu()[:, None] <= cutoffs).long() for places in (found.i2t, found.t2i))
    t2i = i2t.new_zeros(i2t.shape).index_add_(0, owners.cpu(), t2i)
    return torch.cat([i2t, t2i, captions[:, None]], 1).numpy()


def chance_levels(owners: Tensor) -> Chance:
    """What a random order gives in expectation, by direction, for `owners` as in `recall_table`."""
    own_captions = torch.bincount(owners).tolist()
    return {"i2t": chance(len(owners), own_captions), "t2i": chance(len(own_captions), [1])}


def _refuse_non_finite(image_embeddings: Tensor, text_embeddings: Tensor) -> None:
    sides = (("image", image_embeddings.detach()), ("text", text_embeddings.detach()))
    largest = [max(-float(low), float(high)) for low, high in (side.aminmax() for _, side in sides)]
    if image_embeddings.shape[1] * math.prod(largest) <= torch.finfo(torch.float32).max:
        return
    found = []
    for kind, side in sides:
        for what, rows in (("NaN", side.isnan().any(1)), ("infinity", side.isinf().any(1))):
            if rows.any():
                found.append(f"{int(rows.sum()):,} of {len(rows):,} {kind} embeddings hold {what}")
    what = ", ".join(found) or "products of embeddings overflow float32"
    raise NumericError(f"No recall: {what}, and only finite ones can be ranked")


@contextmanager
def _true_float32(device_type: str) -> Iterator[None]:
    """No autocast, no TF32 on CUDA, no bfloat16 within oneDNN; the settings return afterwards."""
    cuda, cpu = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    saved = cuda.fp32_precision, cpu.fp32_precision
    cuda.fp32_precision = cpu.fp32_precision = "ieee"
    try:
        with torch.autocast(device_type, enabled=False), torch.no_grad():
            yield
    finally:
        cuda.fp32_precision, cpu.fp32_precision = saved


class _Distinct:
    """One side of the product: `rows` has each of n embeddings once, padded with zeros to whole tiles.

    Embedding e is in row `row_of[e]`. `blocks[t]` lists the embeddings of tile t: first one for each row,
    then repeats, a tile's worth at a time, so that thousands of equal embeddings need no more memory.
    """

    def __init__(self, embeddings: Tensor, tile: int) -> None:
        _, value = torch.unique(embeddings, dim=0, return_inverse=True)
        index = torch.arange(len(embeddings), device=embeddings.device)
        first = torch.full_like(index, len(index)).scatter_reduce(0, value, index, "amin")[value]
        firsts, repeats = index[first == index], index[first != index]
        tile = min(tile, -(-len(firsts) // 64) * 64)  # a small gallery is one small tile, free of edges
        self.tile, self.blocks = tile, list[list[Block]]()
        self.row_of = torch.searchsorted(firsts, first)  # in given order, so that few tiles hold own pairs
        for start in range(0, len(firsts), tile):
            members = firsts[start : start + tile]
            inside = repeats[self.row_of[repeats] // tile == start // tile]
            parts = (inside[i : i + tile] for i in range(0, len(inside), tile))
            again = ((part, self.row_of[part] - start) for part in parts)
            self.blocks.append([(members, slice(len(members))), *again])
        self.rows = embeddings.new_zeros(len(self.blocks) * tile, embeddings.shape[1])
        self.rows[: len(firsts)] = embeddings[firsts]


def _multiply(images: _Distinct, captions: _Distinct, tiles: Tiles) -> Iterator[tuple[int, int, Tensor]]:
    """(row i, column j, scores) of tiles of the product; the next tile overwrites the scores."""
    scores = images.rows.new_empty(images.tile, captions.tile)
    for i, j in tiles:
        left, right = images.rows[i * images.tile :], captions.rows[j * captions.tile :]
        yield i, j, torch.mm(left[: images.tile], right[: captions.tile].T, out=scores)


def _own_scores(images: _Distinct, captions: _Distinct, owners: Tensor) -> Tensor:
    """(M,) the score of each caption with its own image."""
    own, rows, columns = images.rows.new_empty(len(owners)), images.row_of[owners], captions.row_of
    row_tiles, column_tiles = rows // images.tile, columns // captions.tile
    holding = set(zip(row_tiles.tolist(), column_tiles.tolist(), strict=True))
    for i, j, scores in _multiply(images, captions, holding):
        here = ((row_tiles == i) & (column_tiles == j)).nonzero()[:, 0]
        own[here] = scores[rows[here] % images.tile, columns[here] % captions.tile]
    return own


def _count(images: _Distinct, captions: _Distinct, best: Tensor, own: Tensor, report: Report) -> tuple[Tensor, Tensor]:
    """How many scores lie above and how many equal the own one: (2, N) for `best`, (2, M) for `own`."""
    room = images.rows.new_empty(images.tile * captions.tile)
    by_image, by_caption = best.new_zeros(2, len(best)).long(), own.new_zeros(2, len(own)).long()
    tiles = list(product(range(len(images.blocks)), range(len(captions.blocks))))
    for done, (i, j, scores) in enumerate(_multiply(images, captions, tiles)):
        report(Progress("rank", done, len(tiles)))
        for (image, rows), (caption, columns) in product(images.blocks[i], captions.blocks[j]):
            block = scores[rows][:, columns]
            # Comparing into float32 and adding that up is three times as fast as through booleans.
            mask = room[: block.numel()].view(block.shape)
            for which, compare in enumerate((torch.gt, torch.eq)):
                by_image[which, image] += compare(block, best[image, None], out=mask).sum(1).long()
                by_caption[which, caption] += compare(block, own[caption], out=mask).sum(0).long()
    return by_image, by_caption


def _table(folds: list[tuple[Ranks, Tensor]], dropped: int) -> RecallTable:
    """From the ranks and the owners of each fold."""
    i2t = _mean([_recalls(found.i2t) for found, _ in folds])
    t2i = _mean([_recalls(found.t2i) for found, _ in folds])
    chances = [chance_levels(owners) for _, owners in folds]
    return RecallTable(
        i2t=i2t,
        t2i=t2i,
        r1=(i2t["r1"] + t2i["r1"]) / 2,
        rsum=i2t["r1"] + i2t["r5"] + i2t["r10"] + t2i["r1"] + t2i["r5"] + t2i["r10"],
        chance={name: _mean([chance[name] for chance in chances]) for name in ("i2t", "t2i")},
        interval=confidence_intervals([hits_by_image(found, owners) for found, owners in folds]),
        ties=sum(found.ties for found, _ in folds),
        images=sum(len(found.i2t) for found, _ in folds),
        captions=sum(len(found.t2i) for found, _ in folds),
        folds=len(folds),
        dropped=dropped,
    )


def _recalls(found: Tensor) -> Recalls:
    shares = {f"r{k}": 100 * int((found <= k).sum()) / len(found) for k in CUTOFFS}
    return {**shares, "median_rank": float(found.double().quantile(0.5))}


def _mean(folds: list[Recalls]) -> Recalls:
    return {key: math.fsum(fold[key] for fold in folds) / len(folds) for key in folds[0]}


def chance(gallery: int, positives: list[int]) -> Recalls:
    """In a random order, exact; query q has `positives[q]` own candidates."""
    queries, half = Counter(positives), Fraction(1, 2)

    def reached(k: int) -> Fraction:
        # C(gallery - K, c) / C(gallery, c) is the probability that none of c is among the first K.
        left = max(gallery - k, 0)
        missed = (n * Fraction(math.comb(left, c), math.comb(gallery, c)) for c, n in queries.items())
        return 1 - sum(missed, Fraction()) / queries.total()

    low, high = (1 + find(range(1, gallery + 1), half, key=reached) for find in (bisect_left, bisect_right))
    return {**{f"r{k}": float(100 * reached(k)) for k in CUTOFFS}, "median_rank": (low + high) / 2}
