"""The drawn world: which shapes, of which colour and size, stand where in a scene.

A scene is written in one way only: "a star above a heart" and "a heart below a star" are the same scene. A checksum
of the composition decides its split, so that nothing of training is met again in validation. What chance decides
comes from generators seeded by split or scene: every drawing of the data set is the same.
"""

import itertools
import zlib
from dataclasses import dataclass
from random import Random
from typing import Literal

from clipcoco.prepare.drawing import COLOURS, PAPERS, SHAPES

Split = Literal["train", "val"]

SIZES = ("large", "small")
PLACES = {  # of a single thing's middle, from left to right and from top to bottom
    f"{y} {x}".strip() or "middle": (along, across)
    for y, across in (("top", 0.26), ("", 0.5), ("bottom", 0.74))
    for x, along in (("left", 0.26), ("", 0.5), ("right", 0.74))
}
COLOURED_SHAPES = [(shape, colour) for shape in SHAPES for colour in COLOURS]
ALONE = (True, True, False)  # of three scenes of the same coloured shape
VALIDATION_SHARE = 8  # one composition in so many belongs to validation


@dataclass(frozen=True)
class Thing:
    shape: str
    colour: str
    size: str


@dataclass(frozen=True)
class Scene:
    """One thing somewhere on a sheet of paper, or two in rows, from top to bottom, each row from left to right.

    One row of two: side by side. Two rows: one above the other. Equal scenes are equal compositions, however they are
    put into words.
    """

    rows: tuple[tuple[Thing, ...], ...]
    place: str = ""  # of a single thing, one of PLACES
    paper: str = ""  # behind a single thing, one of PAPERS

    @property
    def things(self) -> tuple[Thing, ...]:
        return tuple(itertools.chain(*self.rows))

    @property
    def split(self) -> Split:
        return "val" if zlib.crc32(repr(self).encode()) % VALIDATION_SHARE == 0 else "train"


def scenes(count: int, split: Split) -> list[Scene]:
    """`count` different scenes of `split`, always the same ones; fewer are the first of more.

    Coloured shapes are dealt like cards: each is there as often, alone and with another one.
    """
    rng = Random(f"scenes {split}")
    found: dict[Scene, None] = {}
    cards: list[tuple[tuple[str, str], bool]] = []
    while len(found) < count:
        if not cards:
            cards = [(coloured, alone) for coloured in COLOURED_SHAPES for alone in ALONE]
            rng.shuffle(cards)
        scene = _scene(rng, *cards[-1])
        if scene.split == split and scene not in found:
            found[scene] = None
            cards.pop()
    return list(found)


def _scene(rng: Random, coloured: tuple[str, str], alone: bool) -> Scene:
    one = Thing(*coloured, rng.choice(SIZES))
    if alone:
        return Scene(((one,),), rng.choice(list(PLACES)), rng.choice(list(PAPERS)))
    others = [other for other in COLOURED_SHAPES if other != coloured]
    first, second = rng.sample((one, Thing(*rng.choice(others), rng.choice(SIZES))), 2)
    return Scene(rng.choice((((first, second),), ((first,), (second,)))))
