"""Which definition of recall gives these numbers: what the field calls recall, counted on the same embeddings.

Letters: N images, M captions, K of a cutoff.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from clipcoco.data.karpathy import coco_ids, known_images
from clipcoco.engine.embeddings import Embeddings
from clipcoco.engine.evaluate import in_order
from clipcoco.engine.nearest import nearest
from clipcoco.engine.recall import CUTOFFS, Ranks, ranks
from clipcoco.events import Recalls, Report

FOLD = 1000
ALL = "all captions"
WAYS = ("i2t", "t2i")
FIGURES = (*(f"{way} r{k}" for way in (*WAYS, "mean") for k in CUTOFFS), "rsum")
_SIX = FIGURES[:6]
# What so many numbers may be, in the order in which they are given.
READINGS: dict[int, list[tuple[str, ...]]] = {
    1: [(name,) for name in FIGURES],
    2: [(f"i2t r{k}", f"t2i r{k}") for k in CUTOFFS],
    3: [tuple(f"{way} r{k}" for k in CUTOFFS) for way in (*WAYS, "mean")],
    6: [_SIX, tuple(f"{way} r{k}" for k, way in product(CUTOFFS, WAYS))],
    7: [(*_SIX, "rsum")],
}


@dataclass(frozen=True)
class Definition:
    name: str
    meaning: str  # and who counts so
    figures: dict[str, float]  # in percent, by FIGURES; "rsum" is the sum of six


@dataclass(frozen=True)
class Match:
    definition: Definition
    reading: tuple[str, ...]  # which figure each number is
    swapped: bool  # the directions stand in the other order: some name them by what is retrieved
    exact: bool
    off: float  # the largest distance, in points


def definitions(
    embeddings: Embeddings, dots: Embeddings | None, order: str, report: Report, fold: int = FOLD
) -> tuple[list[Definition], list[str], Ranks]:
    """What each definition prints of these embeddings; the names of those that print the same as ALL, the first; and
    the ranks behind that.

    `dots` are the rows as they were before they were brought to unit length, None where they had it; `order` is that
    of the images in folds. Raises NumericError.
    """
    found = ranks(embeddings.images, embeddings.texts, embeddings.owners, report)
    first = Definition(ALL, "this package, CLIP_benchmark, big_vision, VSE++, ECCV's 5K", _reached(found))
    others = [*_counted_otherwise(embeddings, bool(found.ties)), *_of_parts(embeddings, order, fold)]
    if dots is not None:
        others.append(Definition("not normalised", "the dot product of rows as they are", _ranked(dots)))
    differing = [one for one in others if one.figures != first.figures]
    return [first, *differing], [one.name for one in others if one.figures == first.figures], found


def matches(found: list[Definition], numbers: list[str]) -> list[Match]:
    """The definitions that print all of the numbers, rounded as they are written; the nearest one where none does.

    There are as many numbers as READINGS has, image to text first. They are percent; where no definition prints them
    so, and none is above 1, they are shares.
    """
    values = [float(number) for number in numbers]
    places = [10.0 ** -len(number.partition(".")[2]) for number in numbers]
    near: list[Match] = []
    for scale in (1, 100) if max(values) <= 1 else (1,):
        for one in found:
            readings = [
                _read(
                    one,
                    reading,
                    swapped,
                    [(scale * value, scale * place) for value, place in zip(values, places, strict=True)],
                )
                for swapped in (False, True)
                for reading in READINGS[len(values)]
            ]
            near.append(min(readings, key=lambda match: (not match.exact, match.swapped if match.exact else match.off)))
        if exact := [match for match in near if match.exact]:
            return exact
    return [min(near, key=lambda match: match.off)]


def _read(one: Definition, reading: tuple[str, ...], swapped: bool, numbers: list[tuple[float, float]]) -> Match:
    """As if the numbers, each with the place of its last digit, were these figures, or those of the other direction."""
    if swapped:
        reading = tuple({"i2t": "t2i", "t2i": "i2t"}.get(name[:3], name[:3]) + name[3:] for name in reading)
    offs = [abs(one.figures[name] - value) for name, (value, _) in zip(reading, numbers, strict=True)]
    exact = all(off <= place / 2 + 1e-9 for off, (_, place) in zip(offs, numbers, strict=True))
    return Match(one, reading, swapped and len({name[:3] for name in reading} & {*WAYS}) == 2, exact, max(offs))


def _ranked(some: Embeddings) -> dict[str, float]:
    return _reached(ranks(some.images, some.texts, some.owners))


def _reached(found: Ranks) -> dict[str, float]:
    """As this package counts."""
    return _figures(*({f"r{k}": _percent(places <= k) for k in CUTOFFS} for places in (found.i2t, found.t2i)))


def _figures(i2t: Recalls, t2i: Recalls) -> dict[str, float]:
    six = [recalls[f"r{k}"] for recalls in (i2t, t2i) for k in CUTOFFS]
    means = [(a + b) / 2 for a, b in zip(six[:3], six[3:], strict=True)]
    return dict(zip(FIGURES, (*six, *means, math.fsum(six)), strict=True))


def _counted_otherwise(embeddings: Embeddings, ties: bool) -> Iterator[Definition]:
    """By the lists of the nearest, equal scores in the order of the rows."""
    owners = embeddings.owners
    images, counts = torch.arange(len(embeddings.images)), torch.bincount(owners)
    captions = _nearest(embeddings.images, embeddings.texts)
    found = _nearest(embeddings.texts, embeddings.images)
    own, right = owners[captions] == images[:, None], found == owners[:, None]
    yield Definition(
        "share of own captions",
        "torchmetrics RetrievalRecall, sentence-transformers recall@k, NVIDIA TAO: with five, R@1 is at most 20",
        _figures(
            {f"r{k}": _percent(own[:, :k].sum(1) / counts) for k in CUTOFFS},
            {f"r{k}": _percent(right[:, :k].any(1)) for k in CUTOFFS},
        ),
    )
    # A caption's own row stands among those of its image, behind the rows of all images above.
    earlier = torch.arange(len(owners)) - (counts.cumsum(0) - counts)[owners]
    above = (counts[found] * (right.cumsum(1) == 0)).sum(1) + earlier
    pairs_of = {f"r{k}": 100 * float(own[:, :k].sum()) / len(owners) for k in CUTOFFS}
    reached = {f"r{k}": _percent(right.any(1) & (above < k)) for k in CUTOFFS}
    yield Definition(
        "pairs",
        "open_clip in training: each caption with a row of its image, own others are rivals",
        _figures(pairs_of, reached),
    )
    for last in (False, True) if ties else ():
        if last:
            own = owners[_nearest(embeddings.images, embeddings.texts, last)] == images[:, None]
            right = _nearest(embeddings.texts, embeddings.images, last) == owners[:, None]
        by_index = ({f"r{k}": _percent(hits[:, :k].any(1)) for k in CUTOFFS} for hits in (own, right))
        name = f"ties by index, {'last' if last else 'first'} wins"
        yield Definition(
            name, "argsort()[::-1], as VSE++ and BLIP" if last else "a stable argsort or topk", _figures(*by_index)
        )


def _of_parts(embeddings: Embeddings, order: str, fold: int) -> Iterator[Definition]:
    """Recall as this package counts it, in other galleries."""
    counts = torch.bincount(embeddings.owners)
    slots = torch.arange(len(embeddings.owners)) - (counts.cumsum(0) - counts)[embeddings.owners]
    everything = torch.ones(len(counts), dtype=torch.bool)
    for many, name in ((1, "first caption"), (5, "first five captions")):
        some = _part(embeddings, everything, slots < many)
        yield Definition(name, f"the gallery has no more than {many} of each image", _ranked(some))
    if len(counts) >= fold:
        ordered = in_order(embeddings, order)
        places, every = torch.arange(len(counts)) // fold, torch.ones_like(slots, dtype=torch.bool)
        each = [_ranked(_part(ordered, places == number, every)) for number in range(len(counts) // fold)]
        mean = {name: math.fsum(one[name] for one in each) / len(each) for name in FIGURES}
        yield Definition("1k", f"the mean of folds of {fold:,} images", mean)
        yield Definition("first fold alone", f"a gallery of the first {fold:,} images", each[0])
    coco = known_images(embeddings.image_ids)
    if coco and 0 < coco["karpathy_test"] < len(counts):
        test = torch.isin(torch.from_numpy(embeddings.image_ids), torch.from_numpy(coco_ids()["test"]))
        six = _ranked(_part(embeddings, test, slots < 5))
        yield Definition(
            "Karpathy's test images", f"the {coco['karpathy_test']:,} that are here, five captions each", six
        )


def _part(embeddings: Embeddings, images: Tensor, captions: Tensor) -> Embeddings:
    """Only these images (N,), and of them only these captions (M,)."""
    captions = captions & images[embeddings.owners]
    return replace(
        embeddings,
        images=embeddings.images[images],
        texts=embeddings.texts[captions],
        image_ids=embeddings.image_ids[images.numpy()],
        caption_ids=embeddings.caption_ids[captions.numpy()],
        owners=(images.cumsum(0) - 1)[embeddings.owners[captions]],
    )


def _percent(hits: Tensor) -> float:
    return 100 * float(hits.double().sum()) / len(hits)


def _nearest(queries: Tensor, gallery: Tensor, last: bool = False) -> Tensor:
    """(Q,10): of equal scores the first row, or the `last`, comes first."""
    rows = torch.arange(len(gallery))
    places = rows if last else len(gallery) - 1 - rows
    return nearest(queries, gallery, CUTOFFS[-1], lambda start: places)
