"""Captions made false by swapping and replacing their words: what a training may be told is wrong of a picture."""

import itertools
import re
from collections.abc import Iterable
from random import Random

Change = tuple[int, int, str]  # of the text from start to end, into this

_COLOURS = ["red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"]
_THINGS = (
    "dog cat horse cow elephant giraffe zebra bear bird",
    "car truck train boat motorcycle bicycle airplane",
    "table chair sofa bed desk",
    "pizza cake banana apple salad donut",
    "kitchen bathroom bedroom",
    "skateboard surfboard snowboard",
)
# Who says one of these words of a thing does not mean another of its kind.
_KINDS = [
    _COLOURS,
    ["man", "woman", "boy", "girl"],
    ["men", "women", "boys", "girls"],
    ["two", "three", "four", "five", "six"],
    ["tennis", "baseball", "soccer", "basketball"],
    ["beach", "street", "forest"],
    ["sitting", "standing", "running", "jumping", "sleeping"],
    *(line.split() for line in _THINGS),
    *([f"{word}s" for word in line.split()] for line in _THINGS),
]
_KIND_OF = {word: number for number, words in enumerate(_KINDS) for word in words}
_REVERSED = {"above": "below", "over": "under", "in front of": "behind", "inside": "outside"}
_REVERSED |= {"to the left of": "to the right of", "on the left": "on the right"}
_REVERSED |= {other: word for word, other in _REVERSED.items()}
_WORD = re.compile(rf"\b({'|'.join(_KIND_OF)})\b", re.IGNORECASE)
_RELATION = re.compile(rf"\b({'|'.join(_REVERSED)})\b", re.IGNORECASE)
# What makes "a man behind a woman" another thing than "a woman behind a man".
_ASYMMETRIC = re.compile(r"\b(above|below|over|under|behind|in front of|on|in|inside|riding|holding|chasing)\b")


def false_captions(caption: str) -> list[tuple[str, str]]:
    """What was changed, and `caption` with that change; at most one "swapped", one "replaced" and one "relation
    reversed", always the same ones, and none where no known word stands.

    Swapped are two colours of different things, or two words of a kind between which a relation stands; replaced is a
    word by another of its kind that the caption does not have. Nobody looked at the picture: most of these captions are
    false of it, not all. As NegCLIP does (Yuksekgonul et al. 2023), with a list for a parser.
    """
    rng, found, made = Random(f"false {caption}"), list(_WORD.finditer(caption)), []
    # ---- two words that change places
    words = [word[0].lower() for word in found]
    once = [word for word in found if words.count(word[0].lower()) == 1]
    pairs = [pair for pair in itertools.combinations(once, 2) if _may_swap(caption, *pair)]
    if pairs:
        one, other = rng.choice(pairs)
        swapped = with_words(caption, [(*one.span(), other[0].lower()), (*other.span(), one[0].lower())])
        made.append(("swapped", swapped))
    # ---- one word in the place of another
    if found:
        word = rng.choice(found)
        others = [other for other in _KINDS[_KIND_OF[word[0].lower()]] if other not in words]
        if others:
            made.append(("replaced", with_words(caption, [(*word.span(), rng.choice(others))])))
    # ---- all relations
    relations = [(*word.span(), _REVERSED[word[0].lower()]) for word in _RELATION.finditer(caption)]
    return [*made, ("relation reversed", with_words(caption, relations))] if relations else made


def _may_swap(caption: str, one: re.Match[str], other: re.Match[str]) -> bool:
    kind, other_kind = (_KIND_OF[word[0].lower()] for word in (one, other))
    between, after = caption[one.end() : other.start()].lower(), caption[other.end() :].lower()
    if kind != other_kind or kind:
        return kind == other_kind and bool(_ASYMMETRIC.search(between))
    # "A black and white dog" is a white and black one, and "a black dog and a white dog" are both as well.
    named = [word for word in re.findall("[a-z]+", between) if word not in ("and", "or", "with", "a", "an", *_COLOURS)]
    return bool(named) and named[:1] != re.findall("[a-z]+", after)[:1]


def with_words(text: str, changes: Iterable[Change]) -> str:
    """`text` with other words at some places, each with the capital of the old one and the article that it asks for.

    >>> with_words("A red box on an orange one.", [(2, 5, "orange"), (16, 22, "red")])
    'An orange box on a red one.'
    """
    for start, end, word in sorted(changes, reverse=True):
        before = text[:start]
        if found := re.search(r"\b(a)n? $", before, re.IGNORECASE):
            before = before[: found.end(1)] + ("n " if word[0] in "aeiou" else " ")
        text = before + (word.capitalize() if text[start].isupper() else word) + text[end:]
    return text
