"""Where retrieval fails, in words that count: of the captions that do not find their image first, what they have in
common and what they are taken for.

Letters: N images, M captions.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipcoco.data.captions import CaptionTable
from clipcoco.engine.embeddings import Embeddings
from clipcoco.engine.interval import wilson
from clipcoco.engine.recall import Ranks

CHUNK = 2**22  # scores at a time
SHOWN = 8  # words, and confusions
FEWEST = 5  # images with a word, and misses of it, of which something is said
MOST = 5_000  # images of which it is kept what they are taken for
ALTERNATIVES = 0.9  # of chance: what excludes each other is rarely said of one image
NAMELESS = {
    *("a", "an", "and", "are", "at", "by", "for", "from", "has", "have", "in", "is", "it", "its", "of", "on"),
    *("that", "the", "there", "to", "with"),
}  # name no thing, no colour, no number, no place
_WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class _Words:
    of_caption: list[frozenset[str]]  # M
    of_image: list[frozenset[str]]  # N, of all its captions
    often: list[frozenset[str]]  # N, of at least half of them
    images: dict[str, set[int]]  # by word, the images that have it


def failures(embeddings: Embeddings, place: Ranks, table: CaptionTable) -> dict[str, Any]:
    """The part "failures" of evaluation.json, `clipcoco.runs.record.Failures`."""
    images, texts, owners = embeddings.images, embeddings.texts, embeddings.owners
    missed, missed_images = ((rank > 1).nonzero().flatten() for rank in (place.t2i, place.i2t))
    # ---- what stands in the place of the right answer
    taken = _nearest(texts[missed], images, owners[missed, None] == torch.arange(len(images)))
    said = _nearest(images[missed_images], texts, missed_images[:, None] == owners)
    pairs = list(zip(missed.tolist(), taken, strict=True))
    equal = [" ".join(caption.casefold().split()).rstrip(".") for caption in table.captions]
    of_image = [set(equal[low:high]) for low, high in zip(table.offsets[:-1], table.offsets[1:], strict=True)]
    words = _words_of(table)
    # ---- what of it is no failure, and what the others have in common
    alike = [words.of_caption[caption] <= words.of_image[image] for caption, image in pairs]
    same = [equal[caption] in of_image[image] for caption, image in pairs]
    return {
        "captions": len(pairs),
        "images": len(missed_images),
        "equal_captions": sum(same),
        "equal_images": sum(
            equal[caption] in of_image[image] for image, caption in zip(missed_images.tolist(), said, strict=True)
        ),
        "all_words": sum(alike) - sum(same),
        "words": _hard_words(words, missed.tolist()),
        "confusions": _confusions(words, owners.tolist(), pairs),
    }


def nearest_captions(embeddings: Embeddings, table: CaptionTable) -> list[dict[str, str]] | None:
    """What each image is taken for, by name and in the order of ids, for runs that are shown side by side; None where
    they are too many to keep."""
    if len(table.files) > MOST:
        return None
    rows = _nearest(embeddings.images, embeddings.texts)
    return [{"file": file, "caption": table.captions[row]} for file, row in zip(table.files, rows, strict=True)]


@torch.inference_mode()
def _nearest(queries: Tensor, gallery: Tensor, without: Tensor | None = None) -> list[int]:
    """The row of `gallery` (G,D) that is nearest to each of `queries` (Q,D), but for those of `without` (Q,G)."""
    found = []
    for rows in torch.arange(len(queries)).split(max(1, CHUNK // len(gallery))):
        scores = queries[rows] @ gallery.T
        found += (scores if without is None else scores.masked_fill(without[rows], -2)).argmax(1).tolist()
    return found


def _words_of(table: CaptionTable) -> _Words:
    of_caption = [frozenset(_WORD.findall(caption.casefold())) for caption in table.captions]
    of_image, often, images = [], [], dict[str, set[int]]()
    for image, (low, high) in enumerate(zip(table.offsets[:-1], table.offsets[1:], strict=True)):
        counts = Counter(word for words in of_caption[low:high] for word in words)
        of_image.append(frozenset(counts))
        often.append(frozenset(word for word, count in counts.items() if 2 * count >= high - low))
        for word in counts:
            images.setdefault(word, set()).add(image)
    return _Words(of_caption, of_image, often, images)


def _hard_words(words: _Words, missed: Sequence[int]) -> list[dict[str, Any]]:
    """Those whose captions are missed more often than captions are, beyond the 95 % interval: captions of one image
    are not independent, so that the images with a word count as its draws."""
    every = Counter(word for of_one in words.of_caption for word in of_one)
    failed = Counter(word for row in missed for word in words.of_caption[row])
    usual = len(missed) / len(words.of_caption)
    excess = {}
    for word, count in failed.items():
        share, draws = count / every[word], len(words.images[word])
        if min(count, draws) >= FEWEST and wilson(np.array([share * draws]), draws)[0, 0] > usual:
            excess[word] = count - every[word] * usual
    worst = sorted(excess, key=lambda word: (-excess[word], word))[:SHOWN]
    return [{"word": word, "missed": failed[word], "captions": every[word]} for word in worst]


def _confusions(words: _Words, owners: Sequence[int], pairs: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """A word of a missed caption that no caption of the image found has, and one that most of these have instead.

    Of words that stand for one another or side by side an image's captions have both as often as by chance, or more
    often: such pairs are none. Nor are those that any wrong image would give, but for two standard deviations.
    """
    lost, both = Counter[str](), Counter[tuple[str, str]]()
    usual = Counter(word for of_one in words.often for word in of_one)
    for caption, image in pairs:
        these = words.of_caption[caption] - words.of_image[image] - NAMELESS
        those = words.often[image] - words.of_image[owners[caption]] - NAMELESS
        lost.update(these)
        both.update(product(these, those))
    found = []
    for (word, other), count in sorted(both.items(), key=lambda one: (-one[1], one[0])):
        one, two = words.images[word], words.images[other]
        apart = len(one & two) * len(words.of_image) < ALTERNATIVES * len(one) * len(two)
        by_chance = lost[word] * usual[other] / len(words.often)
        if apart and count > max(1, by_chance + 2 * by_chance**0.5):
            found.append({"word": word, "taken_for": other, "count": count})
    return found[:SHOWN]
