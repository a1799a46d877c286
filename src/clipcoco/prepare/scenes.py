"""The embedded data set: scenes of two or three coloured shapes with captions, in COCO's layout.

A scene is a composition: which shapes, of which colour and size, stand in which rows. It is written in one
way only: "a star above a heart" and "a heart below a star" are the same scene. A checksum of the composition
decides its split, so that nothing of training is met again in validation. What chance decides comes from
generators seeded by split or scene, so that every drawing of the data set gives the same bytes.
"""

import itertools
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

from clipcoco.config.load import LoadedConfig, load_config
from clipcoco.data.annotations import SPLITS, annotation_file
from clipcoco.disk.files import open_new, read_own, sync_volume, write_atomically
from clipcoco.disk.links import refuse_link
from clipcoco.errors import DataError
from clipcoco.prepare.drawing import COLOURS, SHAPES, Piece, draw

Split = Literal["train", "val"]

SIZES = {"large": ("big", "large"), "small": ("small", "little", "tiny")}  # and the words for them
RADIUS = {"large": 0.215, "small": 0.15}  # of the picture's side
RELATIONS = {
    "left": ("to the left of", "left of", "on the left of"),
    "right": ("to the right of", "right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under", "beneath", "underneath"),
}
LOOSE_SHARE = 0.4  # of the scenes have a caption that leaves open how the things stand
VALIDATION_SHARE = 8  # one composition in so many belongs to validation

FIRST_ID: dict[Split, int] = {"train": 1, "val": 500_001}  # no image id occurs in both splits
INFO = {"description": "clipcoco scenes", "version": "1", "year": 2026, "contributor": "clipcoco"}
LICENCE = {"url": "https://creativecommons.org/publicdomain/zero/1.0/", "id": 1, "name": "CC0 1.0"}
README = "README.txt"
README_TEXT = """Scenes of coloured shapes with captions, drawn by clipcoco (drawing 1).

Every picture and every caption here was made by the program from random numbers with a fixed seed; nothing
was photographed, copied or collected. The layout is that of COCO: train2017, val2017 and annotations. No
composition (shapes, colours, sizes and how they stand) of val2017 occurs in train2017.

Licence: CC0 1.0, https://creativecommons.org/publicdomain/zero/1.0/. To the extent possible under law, all
copyright and related rights in these pictures and captions are waived: use them for anything.
"""


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
    things = (Thing(shape, colour, rng.choice(tuple(SIZES))) for shape, colour in kinds)
    return Scene(tuple(tuple(itertools.islice(things, width)) for width in layout))


def captions(scene: Scene) -> list[str]:
    """Five differing captions, as different people would word them, each naming every shape and its colour.

    Three say all there is to know, one leaves out a size, and sometimes one leaves open how they stand.
    """
    rng = Random(f"captions {scene}")
    full, loose = (_three if len(scene.things) == 3 else _two)(scene, rng)
    chosen = rng.sample(full, 5)
    if rng.random() < LOOSE_SHARE:
        chosen[4] = rng.choice(loose)
    unsized = rng.choice(scene.things)
    texts = [sentence(_naming(rng, unsized if i == 3 else None)) for i, sentence in enumerate(chosen)]
    rng.shuffle(texts)
    return [f"{text[0].upper()}{text[1:]}." for text in texts]


Naming = Callable[[Thing], str]
Sentence = Callable[[Naming], str]


def _naming(rng: Random, unsized: Thing | None = None) -> Naming:
    """How one person names things: the same word for the same size, none for `unsized`."""
    sizes = {size: rng.choice(words) for size, words in SIZES.items()}

    def name(thing: Thing) -> str:
        words = [thing.colour, thing.shape] if thing == unsized else [sizes[thing.size], thing.colour, thing.shape]
        return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])

    return name


def _two(scene: Scene, rng: Random) -> tuple[list[Sentence], list[Sentence]]:
    """Sentences that tell how two things stand, and sentences that leave it open."""
    first, second = scene.things
    beside = len(scene.rows) == 1

    def related() -> tuple[Thing, str, Thing]:
        """One thing, where it is, and the other, told from either side."""
        if rng.random() < 0.5:
            return first, rng.choice(RELATIONS["left" if beside else "above"]), second
        return second, rng.choice(RELATIONS["right" if beside else "below"]), first

    def plain(opening: str, verb: str = "") -> Sentence:
        one, where, other = related()
        return lambda name: f"{opening}{name(one)}{verb} {where} {name(other)}"

    def fronted() -> Sentence:
        one, where, other = related()
        return lambda name: f"{where} {name(other)} there is {name(one)}"

    places = ("on the left", "on the right") if beside else ("at the top", "at the bottom")
    full: list[Sentence] = [
        plain(""),
        plain("there is "),
        plain(rng.choice(("a picture of ", "a drawing of ", "an image of ", "we see "))),
        plain("", rng.choice((" is", " sits"))),
        fronted(),
        lambda name: f"{name(first)} {places[0]} and {name(second)} {places[1]}",
    ]
    one, other = rng.sample((first, second), 2)
    join = rng.choice(("next to", "beside")) if beside else rng.choice(("and", "with"))
    loose: list[Sentence] = [
        lambda name: f"{name(one)} {join} {name(other)}",
        lambda name: f"there are two shapes, {name(one)} and {name(other)}",
    ]
    return full, loose


def _three(scene: Scene, rng: Random) -> tuple[list[Sentence], list[Sentence]]:
    """The same for two things side by side above or below a third."""
    pair_above = len(scene.rows[0]) == 2
    (left, right), (single,) = scene.rows if pair_above else scene.rows[::-1]
    over, under = rng.choice(RELATIONS["above"]), rng.choice(RELATIONS["below"])
    pair_is, single_is = (over, under) if pair_above else (under, over)
    pair_at, single_at = ("at the top", "at the bottom") if pair_above else ("at the bottom", "at the top")
    alone = "below" if pair_above else "above"
    told = (left, "left of", right) if rng.random() < 0.5 else (right, "right of", left)

    def pair(name: Naming) -> str:
        return f"{name(told[0])} {told[1]} {name(told[2])}"

    opening = rng.choice(("there is", "we see"))
    full: list[Sentence] = [
        lambda name: f"{pair(name)}, both {pair_is} {name(single)}",
        lambda name: f"{name(left)} on the left, {name(right)} on the right and {name(single)} {alone}",
        lambda name: f"{pair_is} {name(single)} there is {pair(name)}",
        lambda name: f"{opening} {pair(name)}, and {name(single)} {single_at}",
        lambda name: f"{pair_at} {pair(name)}, {single_at} {name(single)}",
    ]
    one, other = rng.sample((left, right), 2)
    loose: list[Sentence] = [
        lambda name: f"{name(single)} {single_is} {name(one)} and {name(other)}",
        lambda name: f"{name(one)} and {name(other)} {pair_is} {name(single)}",
        lambda name: f"there are three shapes, {name(one)}, {name(single)} and {name(other)}",
    ]
    return full, loose


def to_be_drawn(loaded: LoadedConfig) -> bool:
    """Whether a run begins by drawing: into the demo's own folder, an empty one, or one where it had begun.

    Any other folder without captions is a mistyped name, and no place for thousands of files.
    """
    root = loaded.config.data.folder
    if "demo" not in loaded.chain or (root / "annotations").exists():
        return False
    own = load_config("demo").config.data.folder
    return (
        root.absolute() == own.absolute() or _readme(root) == README_TEXT or (root.is_dir() and not any(root.iterdir()))
    )


def is_drawn(root: Path) -> bool:
    """Whether `root` holds these scenes, completely. Other data in COCO's layout are not taken for them."""
    return _readme(root) == README_TEXT and all(annotation_file(root, SPLITS[split]).is_file() for split in FIRST_ID)


def draw_scenes(
    root: Path,
    train: int = 6000,
    val: int = 500,
    size: int = 96,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Draw `train` and `val` scenes of `size` x `size` pixels into `root`, each with five captions.

    The annotation files come last and whole: an interrupted drawing is never taken for complete, and drawing
    again gives the same bytes. `progress(done, total)` counts pictures. Raises DataError when `root` holds
    other data.
    """
    _claim(root)
    counts: dict[Split, int] = {"train": train, "val": val}
    annotations: dict[Split, str] = {}
    done = 0
    for split, count in counts.items():
        folder = root / SPLITS[split]
        folder.mkdir(exist_ok=True)
        images, texts = [], []
        for index, scene in enumerate(scenes(count, split)):
            image_id = FIRST_ID[split] + index
            name = f"{image_id:012d}.jpg"
            rng = Random(f"picture {scene}")
            picture = draw(_pieces(scene, rng), size, rng)
            # Full colour resolution: halved, the edges of small shapes would bleed.
            with open_new(folder / name) as file:
                picture.save(file, "JPEG", quality=92, subsampling=0)
            images.append({"license": 1, "file_name": name, "height": size, "width": size, "id": image_id})
            for number, text in enumerate(captions(scene)):
                texts.append({"image_id": image_id, "id": 10 * image_id + number, "caption": text})
            done += 1
            if progress:
                progress(done, train + val)
        annotations[split] = json.dumps({"info": INFO, "licenses": [LICENCE], "images": images, "annotations": texts})
    sync_volume(root)  # the pictures are on the disk before anything says that they are
    (root / "annotations").mkdir(exist_ok=True)
    for split, text in annotations.items():
        write_atomically(annotation_file(root, SPLITS[split]), text + "\n")


def _pieces(scene: Scene, rng: Random) -> list[Piece]:
    """Where the things are: rows and columns are clear, but the hand is not a ruler's."""
    pieces = []
    for row, y in zip(scene.rows, (0.5,) if len(scene.rows) == 1 else (0.26, 0.74), strict=True):
        for thing, x in zip(row, (0.26, 0.74) if len(row) == 2 else (0.5,), strict=True):
            along, across = rng.uniform(-0.015, 0.015), rng.uniform(-0.06, 0.06)
            if len(scene.things) == 3:
                across /= 2
            dx, dy = (along, across) if len(row) == 2 else (across, along)
            radius = RADIUS[thing.size] * rng.uniform(0.96, 1.04)
            pieces.append(Piece(thing.shape, thing.colour, (x + dx, y + dy), radius, rng.uniform(-8, 8)))
    return pieces


def _claim(root: Path) -> None:
    """Sign the folder as ours and incomplete, or refuse it: photographs must not be mixed with drawings."""
    ours = _readme(root).startswith(README_TEXT.splitlines()[0][:40])
    if not ours and any((root / name).exists() for name in ("annotations", "train2017", "val2017")):
        raise DataError(f"other data are in the way ({root}). Draw the scenes elsewhere: --root DIR")
    for name in ("annotations", "train2017", "val2017"):
        refuse_link(root / name)
    for split in FIRST_ID:
        annotation_file(root, SPLITS[split]).unlink(missing_ok=True)
    root.mkdir(parents=True, exist_ok=True)
    write_atomically(root / README, README_TEXT)


def _readme(root: Path) -> str:
    try:
        return read_own(root / README, most=2**16).decode("utf-8", "replace")
    except OSError:
        return ""
