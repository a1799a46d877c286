"""The drawn world: which shapes, of which colour and size, stand in which rows of a scene.

A scene is written in one way only: "a star above a heart" and "a heart below a star" are the same scene. A checksum
of the composition decides its split, so that nothing of training is met again in validation. What chance decides
comes from generators seeded by split or scene: every drawing of the data set is the same.
"""

import itertools
import zlib
from dataclasses import dataclass
from random import Random
from typing import Literal

from clipcoco.prepare.drawing import COLOURS, SHAPES

Split = Literal["train", "val"]

SIZES = ("large", "small")
VALIDATION_SHARE = 8  # one composition in so many belongs to validation


@dataclass(frozen=True)
class Thing:
    shape: str
    colour: str
    size: str


@dataclass(frozen=True)
class Scene:
    """Two or three things in rows, from top to bottom, each row from left to right.

    One row of two: side by side. Two rows: one above the other, or two side by side above or below a third.
    Equal scenes are equal compositions, however they are put into words.
    """

    rows: tuple[tuple[Thing, ...], ...]

    @property
    def things(self) -> tuple[Thing, ...]:
        return tuple(itertools.chain(*self.rows))

    @property
    def split(self) -> Split:
        return "val" if zlib.crc32(repr(self).encode()) % VALIDATION_SHARE == 0 else "train"


def scenes(count: int, split: Split) -> list[Scene]:
    """`count` different scenes of `split`, always the same ones; fewer are the first of more."""
    rng = Random(f"scenes {split}")
    found: dict[Scene, None] = {}
    while len(found) < count:
        scene = _scene(rng)
        if scene.split == split:
            found[scene] = None
    return list(found)


def _scene(rng: Random) -> Scene:
    layout = rng.choices(((2,), (1, 1), (1, 2), (2, 1)), weights=(8, 8, 2, 2))[0]
    kinds = rng.sample([(shape, colour) for shape in SHAPES for colour in COLOURS], sum(layout))
    things = (Thing(shape, colour, rng.choice(SIZES)) for shape, colour in kinds)
    return Scene(tuple(tuple(itertools.islice(things, width)) for width in layout))
