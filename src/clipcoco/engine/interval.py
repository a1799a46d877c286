"""95 % intervals of recalls, and of the differences between two models' recalls on the same images.

A percentile bootstrap draws images together with their captions, which are not independent. It can't see
what did not occur: of 100 % its interval has no width. So where fewer than FEW images have a hit, or have a miss, or
where all draws agree, Wilson's score interval (1927) of the share of such images stands instead, times what one of
them counts for on average.

Letters: N images. Of torch only what draws: `clipcoco runs` does without.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from clipcoco.engine.results import ConfidenceIntervals

# (N,7), by image: whether an own caption is among the best 1, 5, 10; how many captions find the image among their
# best 1, 5, 10; how many captions there are.
Hits = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]

RESAMPLES = 1000
FEW = 5  # the textbooks' least number of hits, and of misses, for a normal approximation
Z = 1.959964  # 2.5 % of a normal distribution lie above


def confidence_intervals(folds: Sequence[Hits]) -> ConfidenceIntervals:
    """Of recalls that are means over `folds`: images are drawn within their fold, the galleries stay."""
    got, most = (np.concatenate(parts) for parts in zip(*map(_shares, folds), strict=True))
    hit, missed = (got > 0).sum(0), (got < most).sum(0)
    few = np.where(hit < missed, got, most - got)
    from_below = _each(few) * wilson((few > 0).sum(0), len(few))
    by_score = np.where(hit < missed, from_below, 1 - from_below[::-1]).clip(0, 1)
    chosen = _chosen(np.minimum(hit, missed) < FEW, 100 * by_score, _bootstrap(folds))
    *ranges, mean_r1 = ((low, high) for low, high in chosen.T.tolist())
    i2t, t2i = (dict(zip(("r1", "r5", "r10"), part, strict=True)) for part in (ranges[:3], ranges[3:]))
    return ConfidenceIntervals(i2t, t2i, mean_r1)


def difference_intervals(a: Hits, b: Hits) -> Values:
    """(7,2), [low, high] in percent of B - A on the same N images: the six recalls and the mean R@1.

    A paired bootstrap: each resample draws the same images for both. Where fewer than 2 FEW images differ, the Wilson
    intervals of the share that B does better on and of the share that it does worse on are combined (Newcombe 1998).
    """
    assert np.array_equal(a[:, 6], b[:, 6]), "both are of the same images and captions"
    n, generator = len(a), np.random.default_rng(0)
    gained = _shares(b)[0] - _shares(a)[0]
    better, worse = (gained > 0).sum(0), (gained < 0).sum(0)
    (p_low, p_high), (q_low, q_high) = wilson(better, n), wilson(worse, n)
    below = np.hypot(better / n - p_low, q_high - worse / n)
    above = np.hypot(p_high - better / n, worse / n - q_low)
    by_score = gained.mean(0) + _each(np.abs(gained)) * np.stack([-below, above])
    columns = np.hstack([b[:, :6] - a[:, :6], a[:, 6:]]).astype(np.float64)
    draws = (np.bincount(generator.integers(n, size=n), minlength=n) for _ in range(RESAMPLES))
    sums = np.stack([drawn @ columns for drawn in draws])
    differences = np.hstack([sums[:, :3] / n, sums[:, 3:6] / sums[:, 6:]])
    differences = np.hstack([differences, differences[:, [0, 3]].mean(1, keepdims=True)])
    by_bootstrap = 100 * np.quantile(differences, (0.025, 0.975), axis=0)
    return _chosen(better + worse < 2 * FEW, 100 * by_score, by_bootstrap).T


def wilson(count: npt.NDArray[np.int64], n: int) -> Values:
    """[low, high] of a share of which `count` of n draws are seen; for `count` (K,) it is (2,K)."""
    share, scale = count / n, 1 + Z**2 / n
    half = Z * np.sqrt(share * (1 - share) / n + (Z / 2 / n) ** 2)
    middle = share + Z**2 / 2 / n
    return (np.stack([middle - half, middle + half]) / scale).clip(0, 1)


def _shares(hits: Hits) -> tuple[Values, Values]:
    """(N,7) twice, of the six recalls and the mean R@1: what an image adds to each, and what it would at most.

    Their means over the images are the recalls, and 1.
    """
    captions = hits[:, 6:] / hits[:, 6].mean()
    most = np.hstack([np.ones((len(hits), 3)), captions, captions, captions])
    got = np.hstack([hits[:, :3], hits[:, 3:6] / hits[:, 6].mean()])
    got, most = (np.hstack([part, part[:, [0, 3]].mean(1, keepdims=True)]) for part in (got, most))
    return got, most


def _chosen(few: npt.NDArray[np.bool_], by_score: Values, by_bootstrap: Values) -> Values:
    no_width = by_bootstrap[1] - by_bootstrap[0] < 1e-9
    return np.where(few | no_width, by_score, by_bootstrap)


def _each(values: Values) -> Values:
    """(7,): the mean of those of `values` (N,7) that are above 0, and 1 where none is."""
    count = (values > 0).sum(0)
    return np.where(count, values.sum(0) / np.maximum(count, 1), 1)


def _bootstrap(folds: Sequence[Hits]) -> Values:
    """(2,7): the quantiles, in percent, of the six recalls and the mean R@1 over RESAMPLES draws of the images."""
    import torch

    generator = torch.Generator().manual_seed(0)  # of its own: nobody's random state moves
    recalls = torch.zeros(RESAMPLES, 6, dtype=torch.float64)
    for hits in (torch.from_numpy(fold).double() for fold in folds):
        n = len(hits)
        for some in torch.arange(RESAMPLES).tensor_split(-(-RESAMPLES * n // 2**20)):
            drawn = torch.randint(n, (len(some), n), generator=generator)
            sums = torch.zeros(drawn.shape, dtype=hits.dtype).scatter_(1, drawn, 1.0, reduce="add") @ hits
            recalls[some] += torch.cat([sums[:, :3] / n, sums[:, 3:6] / sums[:, 6:]], 1) * (100 / len(folds))
    recalls = torch.cat([recalls, (recalls[:, :1] + recalls[:, 3:4]) / 2], 1)
    return recalls.quantile(recalls.new_tensor([0.025, 0.975]), dim=0).numpy()
