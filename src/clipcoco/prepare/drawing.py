"""Pictures of coloured shapes: cut paper with soft shadows, lit from the upper left.

Coordinates are rounded before Pillow sees them, so that another machine's last bits do not change a picture.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from random import Random

from PIL import Image, ImageChops, ImageDraw, ImageFilter

Point = tuple[float, float]

COLOURS = {
    "red": (214, 48, 49),
    "orange": (245, 134, 32),
    "yellow": (255, 208, 40),
    "green": (46, 160, 84),
    "blue": (38, 98, 204),
    "purple": (132, 74, 178),
    "pink": (246, 146, 184),
    "black": (44, 44, 54),
}
SUPERSAMPLING = 4  # outlines are drawn so many times larger, then averaged: smooth edges
PAPERS = {  # of the sheet behind, lit from above, and of the wavy one before it
    "cream": ((255, 250, 236), (253, 241, 216), (246, 228, 196)),
    "azure": ((240, 248, 255), (222, 237, 250), (202, 224, 243)),
    "mint": ((242, 252, 243), (223, 241, 227), (203, 229, 211)),
    "lilac": ((249, 244, 255), (235, 227, 248), (220, 209, 239)),
    "peach": ((255, 244, 238), (252, 228, 218), (245, 211, 198)),
    "grey": ((250, 250, 249), (236, 237, 240), (220, 222, 228)),
}
SHADOW = (58, 50, 82)


def _circle(radius: float, x: float = 0.0, y: float = 0.0) -> list[Point]:
    angles = (math.tau * i / 64 for i in range(64))
    return [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]


def _star(points: int, inner: float) -> list[Point]:
    corners = ((1.0 if i % 2 == 0 else inner, math.pi * i / points) for i in range(2 * points))
    return [(1.12 * r * math.sin(angle), 0.08 - 1.12 * r * math.cos(angle)) for r, angle in corners]


def _heart() -> list[Point]:
    angles = [math.tau * i / 64 for i in range(64)]
    return [
        (
            1.02 * math.sin(t) ** 3,
            -0.08 - (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 15.5,
        )
        for t in angles
    ]


ARM = 0.3  # half the width of the cross's arms
OUTLINES: dict[str, list[Point]] = {
    "circle": _circle(0.92),
    "square": [(-0.87, -0.87), (0.87, -0.87), (0.87, 0.87), (-0.87, 0.87)],
    "triangle": [(0.0, -0.98), (1.03, 0.82), (-1.03, 0.82)],
    "star": _star(5, 0.42),
    "heart": _heart(),
    "ring": _circle(1.0),
    "cross": [
        *((-ARM, -1.0), (ARM, -1.0), (ARM, -ARM), (1.0, -ARM), (1.0, ARM), (ARM, ARM)),
        *((ARM, 1.0), (-ARM, 1.0), (-ARM, ARM), (-1.0, ARM), (-1.0, -ARM), (-ARM, -ARM)),
    ],
    "moon": _circle(1.0, x=0.1),
}
HOLES: dict[str, list[Point]] = {"ring": _circle(0.58), "moon": _circle(0.84, x=0.56, y=-0.2)}


SHAPES = tuple(OUTLINES)


@dataclass(frozen=True)
class Piece:
    """One shape of paper; lengths are parts of the picture's side, `turn` is in degrees."""

    shape: str
    colour: str
    centre: Point
    radius: float
    turn: float


def draw(pieces: Sequence[Piece], paper: str, size: int, rng: Random) -> Image.Image:
    """An RGB picture of `size` x `size` pixels, on one of PAPERS or, of "", on one that `rng` chooses."""
    picture = _sheet(paper or rng.choice(list(PAPERS)), size, rng)
    masks = [_mask(piece, size) for piece in pieces]
    corners = [
        (round(piece.centre[0] * size) - mask.width // 2, round(piece.centre[1] * size) - mask.height // 2)
        for piece, mask in zip(pieces, masks, strict=True)
    ]
    shade = Image.new("L", (size, size))
    for mask, (x, y) in zip(masks, corners, strict=True):
        shade.paste(110, (x + round(0.012 * size), y + round(0.03 * size)), mask)
    picture.paste(SHADOW, (0, 0), shade.filter(ImageFilter.GaussianBlur(0.022 * size)))
    for piece, mask, corner in zip(pieces, masks, corners, strict=True):
        picture.paste(_paint(piece.colour, mask.width), corner, mask)
        rim = ImageChops.subtract(mask, ImageChops.offset(mask, 1, 1), scale=2.5)
        picture.paste((255, 255, 255), corner, rim)
    return picture


@cache
def _gradient(top: tuple[int, ...], bottom: tuple[int, ...], side: int) -> Image.Image:
    ends = Image.new("RGB", (1, 2), top)
    ends.putpixel((0, 1), bottom)
    return ends.resize((side, side), Image.Resampling.BICUBIC)


def _sheet(paper: str, size: int, rng: Random) -> Image.Image:
    top, bottom, wave = PAPERS[paper]
    picture = _gradient(top, bottom, size).copy()
    height, swing, phase = rng.uniform(0.55, 0.85), rng.uniform(0.03, 0.08), rng.uniform(0, math.tau)
    fine = 2 * size
    edge = [(x, round(fine * (height + swing * math.sin(phase + 5.0 * x / fine)))) for x in range(0, fine + 8, 8)]
    sheet = Image.new("L", (fine, fine))
    ImageDraw.Draw(sheet).polygon([*edge, (fine, fine), (0, fine)], fill=255)
    picture.paste(wave, (0, 0), sheet.reduce(2))
    return picture


def _mask(piece: Piece, size: int) -> Image.Image:
    """The piece's outline as coverage 0..255, in a square around its centre."""
    side = 2 * math.ceil(1.25 * piece.radius * size)
    middle, scale = side * SUPERSAMPLING / 2, piece.radius * size * SUPERSAMPLING
    angle = math.radians(piece.turn)
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)

    def placed(points: list[Point]) -> list[tuple[int, int]]:
        return [(round(middle + cos * x - sin * y), round(middle + sin * x + cos * y)) for x, y in points]

    mask = Image.new("L", (side * SUPERSAMPLING, side * SUPERSAMPLING))
    pen = ImageDraw.Draw(mask)
    pen.polygon(placed(OUTLINES[piece.shape]), fill=255)
    if piece.shape in HOLES:
        pen.polygon(placed(HOLES[piece.shape]), fill=0)
    return mask.reduce(SUPERSAMPLING)


@cache
def _paint(colour: str, side: int) -> Image.Image:
    """A square of the colour, a little lighter at the top than at the bottom."""
    levels = COLOURS[colour]
    return _gradient(
        tuple(level + (255 - level) // 7 for level in levels),
        tuple(level - level // 9 for level in levels),
        side,
    )
