"""What needs no training: canonical correlations of a frozen backbone's features with the words of captions.

CCA (Hotelling 1936) with a ridge on either side (Vinod 1976; Hardoon et al. 2004) and coordinates weighted by their
correlation (Gong et al. 2014). Exact, and without a seed: the same bits from the same features at one thread count.
The towers of a model may begin with what it finds, and training goes on from there.

Letters: N images, M captions, F features, D words, K coordinates; b images and c captions at once; of a model W is
the width of its text tower.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from clipcoco.data.captions import CaptionTable
from clipcoco.data.features import Features
from clipcoco.data.tokenizer import END, PAD, START
from clipcoco.engine.evaluate import Inputs
from clipcoco.engine.model import DualEncoder, TextEncoder
from clipcoco.engine.recall import recall_table
from clipcoco.engine.results import RecallTable
from clipcoco.engine.step import Stop
from clipcoco.events import Progress, Report

WORDS = 1500
COORDINATES = 384
RIDGES = (1.0, 0.3)  # of images and of captions, in mean variances
_LEFT_OVER = 0.3  # of the random weights of coordinates that nothing was found for
_CAPTIONS = 10_240  # in memory at once, with the features of their images


def closed_form(
    train: Inputs, val: Inputs, report: Report, stop: Stop, model: DualEncoder | None = None
) -> RecallTable | None:
    """Recall in `val`, by protocol `own`, of what `train` alone determines; None when stopped. Both bring features.

    With `model`, whose text tower reads the mean, its words and projections become what was found. On the CPU. A
    training image that could not be read, or has a feature that is not finite, does not count. Where nothing tells
    images or captions apart, as of one image or of constant features, all embeddings are equal: misses.
    """
    words = _Words(train.tokens)
    found = _correlate(train, words, report, stop)
    if found is None:
        return None
    if model is not None:
        found.begin(model, words)
    return recall_table(*found.embed(val, words), torch.from_numpy(val.table.owners))


class _Words:
    """The most frequent tokens of captions, each weighing log(captions / captions that hold it)."""

    def __init__(self, tokens: np.ndarray) -> None:
        """`tokens` int16 or int32 (M,context)."""
        size = int(tokens.max()) + 1
        holding = np.zeros(size, np.int64)
        for some in np.array_split(tokens, 1 + len(tokens) // _CAPTIONS):
            ordered = np.sort(some, axis=1)
            holding += np.bincount(ordered[np.diff(ordered, axis=1, prepend=-1) > 0], minlength=size)
        holding[[PAD, START, END]] = 0
        chosen = np.argsort(-holding, kind="stable")[:WORDS]
        chosen = chosen[holding[chosen] > 0]
        self.count = len(chosen)
        self.weights = np.log(len(tokens) / holding[chosen])
        self.column = np.full(size + 1, -1)  # of a token; the last is that of tokens which no caption here holds
        self.column[chosen] = np.arange(self.count)

    def vectors(self, tokens: np.ndarray) -> Tensor:
        """tf-idf of captions, of length 1, or 0 without a word that weighs anything: sparse float32 (c,D)."""
        columns = self.column[np.minimum(tokens, len(self.column) - 1)]
        rows, places = (columns >= 0).nonzero()
        pairs, counts = np.unique(rows * self.count + columns[rows, places], return_counts=True)
        rows, columns = np.divmod(pairs, self.count)
        values = counts * self.weights[columns]
        lengths = np.sqrt(np.bincount(rows, values**2, minlength=len(tokens)))[rows]
        values = np.divide(values, lengths, out=np.zeros_like(values), where=lengths > 0)
        vectors: Tensor = torch.sparse_coo_tensor(
            torch.from_numpy(np.stack([rows, columns])),
            torch.from_numpy(values).float(),
            (len(tokens), self.count),
            is_coalesced=True,
            check_invariants=True,
        )
        return vectors


@dataclass(frozen=True)
class _Correlations:
    """Centred images and captions -> coordinates, float32."""

    image_mean: Tensor  # (F,)
    from_images: Tensor  # (F,K)
    word_mean: Tensor  # (D,)
    from_words: Tensor  # (D,K)
    steady: Tensor  # (F,), the weighted sum of features that is nearest to 1 in all images

    @torch.no_grad()
    def begin(self, model: DualEncoder, words: _Words) -> None:
        """Words and projections of `model` become these coordinates, as many as fit: a mean of words in the place of
        tf-idf, and where there is no bias, what is the same in all images and captions. What is left over stays random.
        """
        text, head = model.text, model.visual.head.get_submodule("proj").get_parameter("weight")
        assert isinstance(text, TextEncoder)
        (vocabulary, width), (dimensions, _) = text.token_embedding.weight.shape, head.shape
        count = min(self.from_words.shape[1], dimensions, width - 2)
        projection = (self.from_images - self.steady.outer(self.image_mean @ self.from_images))[:, :count]
        vectors = torch.from_numpy(words.weights).float()[:, None] * self.from_words[:, :count]
        longest = float(vectors.norm(dim=1).max()) if len(vectors) else 0.0
        if not longest or not projection.any():  # nothing tells images or captions apart
            return
        # ---- images: as large as random weights, on which Adam's steps are made
        head[:count] = projection.T * float(head[:count].norm() / projection.norm())
        head[count:] *= _LEFT_OVER
        # ---- captions: what the mean one holds is taken off by the token that begins each
        starts = -(torch.from_numpy(np.exp(-words.weights)).float() @ vectors)
        size = max(longest, float(starts.norm()))
        coordinates = torch.zeros(vocabulary, count)
        known = np.flatnonzero(words.column[:-1] >= 0)
        coordinates[known] = vectors[words.column[known]]
        coordinates[START] = starts
        # ---- each token as long as any other and of mean 0, so that LayerNorm leaves it as it is: the rest of its
        # length lies where the projection does not look. A generator of its own: a run that goes on begins alike
        chance, embedding = torch.Generator().manual_seed(0), text.token_embedding.weight
        rest = normalize(torch.randn(vocabulary, width - 1 - count, generator=chance), dim=1)
        rest *= (size**2 - coordinates.square().sum(1, keepdim=True)).clamp(min=0).sqrt()
        turned = torch.cat([torch.ones(width, 1), torch.randn(width, width - 1, generator=chance)], dim=1)
        axes = torch.linalg.qr(turned).Q[:, 1:]
        length = float(embedding.norm()) / vocabulary**0.5
        embedding.copy_(torch.cat([coordinates, rest], dim=1) @ axes.T * (length / size))
        text.text_projection[:, :count] = axes[:, :count]
        text.text_projection[:, count:] *= _LEFT_OVER

    def embed(self, inputs: Inputs, words: _Words) -> tuple[Tensor, Tensor]:
        """Unit vectors (N,K) and (M,K), of images as an evaluation sees them, and of captions."""
        assert inputs.features is not None
        images, texts = [], []
        for rows, captions in _parts(inputs.table):
            seen, there = _seen(inputs.features, rows, views=1)
            images.append(((seen - self.image_mean) * there[:, None]) @ self.from_images)
            vectors = torch.sparse.mm(words.vectors(inputs.tokens[captions]), self.from_words)
            texts.append(vectors - self.word_mean @ self.from_words)
        return normalize(torch.cat(images), dim=1), normalize(torch.cat(texts), dim=1)


def _correlate(inputs: Inputs, words: _Words, report: Report, stop: Stop) -> _Correlations | None:
    """From pairs of an image, which is the mean of its views, and any one of its captions."""
    features, owners = inputs.features, torch.from_numpy(inputs.table.owners)
    assert features is not None
    _, views, width = features.rows.shape
    shapes = ((width,), (words.count,), (width, width), (width, words.count), (words.count, words.count))
    sums = x, y, xx, xy, yy = [torch.zeros(shape, dtype=torch.float64) for shape in shapes]
    origin, counted = torch.zeros(width), 0
    for rows, captions in _parts(inputs.table):
        images, there = _seen(features, rows, views)
        if not counted:  # near it float32 is exact, and features that are constant are 0
            origin = images[int(there.int().argmax())]
        images = (images - origin) * there[:, None]
        texts, own = words.vectors(inputs.tokens[captions]), owners[captions] - rows.start
        shares = texts.to_dense() * (there / own.bincount())[own, None]
        means = shares.new_zeros(len(images), words.count).index_add_(0, own, shares)
        parts = images.sum(0), means.sum(0), images.T @ images, torch.sparse.mm(means.T.to_sparse(), images).T
        for total, part in zip(sums, (*parts, torch.sparse.mm(texts.T, shares)), strict=True):
            total += part
        counted += int(there.sum())
        report(Progress("closed form", rows.stop, len(inputs.table.files)))
        if stop():
            return None
    for total in sums:
        total /= max(1, counted)
    mean = origin + x.float()
    found = _solve(xx - x.outer(x), xy - x.outer(y), yy - y.outer(y), mean.double())
    from_images, from_words, steady = (part.float() for part in found)
    return _Correlations(mean, from_images, y.float(), from_words, steady)


def _solve(xx: Tensor, xy: Tensor, yy: Tensor, mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From covariances (F,F), (F,D), (D,D) and the mean image (F,): what projects onto coordinates weighted by their
    correlation, and the weighted sum of features that is nearest to 1 in all images.

    The stages of a backbone differ in scale: each feature is divided by the square root of its standard deviation.
    """
    deviation = xx.diagonal().clamp(min=0).sqrt()
    scale = torch.where(deviation > 0, deviation.rsqrt(), 0.0)
    left, right = (_with_ridge(side, ridge) for side, ridge in ((xx * scale.outer(scale), RIDGES[0]), (yy, RIDGES[1])))
    # With C = L L^T of captions: the eigenvectors of L^-1 C_yx C_xx^-1 C_xy L^-T, its eigenvalues squared correlations.
    predicted = torch.cholesky_solve(xy * scale[:, None], left)
    half = torch.linalg.solve_triangular(right, xy.T @ (predicted * scale[:, None]), upper=False)
    squares, vectors = torch.linalg.eigh(torch.linalg.solve_triangular(right, half.T, upper=False))
    squares, vectors = squares.flip(0)[:COORDINATES], vectors.flip(1)[:, :COORDINATES]
    words = torch.linalg.solve_triangular(right.T, vectors, upper=True)
    steady = scale * torch.cholesky_solve((scale * mean)[:, None], left)[:, 0]
    steady /= 1 + steady @ mean
    return scale[:, None] * (predicted @ words), words * squares.clamp(min=0).sqrt(), steady


def _with_ridge(covariance: Tensor, ridge: float) -> Tensor:
    """The Cholesky factor of it, with so many mean variances added to each variance."""
    mean = float(covariance.diagonal().mean().clamp(min=1e-12))  # above 0 where there is no variance at all
    factor: Tensor = torch.linalg.cholesky(covariance + ridge * mean * torch.eye(len(covariance)).double())
    return factor


def _parts(table: CaptionTable) -> Iterator[tuple[range, slice]]:
    """Images in their order, and their captions."""
    start = 0
    while start < len(table.files):
        stop = int(np.searchsorted(table.offsets, table.offsets[start] + _CAPTIONS, side="right")) - 1
        rows = range(start, max(start + 1, stop))
        yield rows, slice(int(table.offsets[rows.start]), int(table.offsets[rows.stop]))
        start = rows.stop


def _seen(features: Features, rows: range, views: int) -> tuple[Tensor, Tensor]:
    """float32 (b,F), the mean of an image's first `views`, or 0; bool (b,), whether it could be read and is finite."""
    seen = torch.zeros(len(rows), features.rows.shape[2])
    for view in range(views):
        seen += torch.from_numpy(features.take(rows, [view] * len(rows)))
    there = seen.isfinite().all(1) & torch.from_numpy(features.readable[rows.start : rows.stop])
    return torch.where(there[:, None], seen / views, 0.0), there
