"""The embedded data set: scenes of one or two coloured shapes with captions, in COCO's layout.

What stands in a scene is said by composition.py, how it is told by wording.py, how it looks by drawing.py. What
chance decides comes from generators seeded by split or scene: every drawing of the data set gives the same bytes.
"""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random

from clipcoco.config.load import LoadedConfig, load_config
from clipcoco.data.annotations import SPLITS, annotation_file
from clipcoco.data.captions import CaptionTable
from clipcoco.data.changed_words import false_captions as changed_words
from clipcoco.data.false_captions import Encode, FalseCaptions, FalseTexts
from clipcoco.disk.files import open_new, read_own, sync_volume, write_atomically
from clipcoco.disk.links import refuse_link
from clipcoco.errors import DataError
from clipcoco.prepare.composition import PLACES, Scene, Split, scenes
from clipcoco.prepare.drawing import Piece, draw
from clipcoco.prepare.wording import KINDS, captions, false_captions, kinds_told

RADIUS = {"large": 0.215, "small": 0.15}  # of the picture's side

_LOOKED_AT = 1000  # captions, until one is found that can be made false
SCENES: dict[Split, int] = {"train": 6000, "val": 500}  # of the data set; there are a few more
FIRST_ID: dict[Split, int] = {"train": 1, "val": 500_001}  # no image id occurs in both splits
INFO = {"description": "clipcoco scenes", "version": "4", "year": 2026, "contributor": "clipcoco"}
LICENCE = {"url": "https://creativecommons.org/publicdomain/zero/1.0/", "id": 1, "name": "CC0 1.0"}
README = "README.txt"
README_TEXT = """Scenes of coloured shapes with captions, drawn by clipcoco (drawing 4).

Every picture and every caption here was made by the program from random numbers with a fixed seed; nothing
was photographed, copied or collected. The layout is that of COCO: train2017, val2017 and annotations. No
composition (shapes, colours, sizes and where they stand) of val2017 occurs in train2017.

Licence: CC0 1.0, https://creativecommons.org/publicdomain/zero/1.0/. To the extent possible under law, all
copyright and related rights in these pictures and captions are waived: use them for anything.
"""


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


def scenes_of(root: Path, table: CaptionTable) -> list[Scene] | None:
    """The scene of each image of a split that was drawn into `root`, or of a part of it, by its id.

    None of other images, and of scenes of a version whose captions name other things."""
    split: Split = "train" if table.name == SPLITS["train"] else "val"
    numbers = table.image_ids - FIRST_ID[split]
    if not _is_ours(root) or numbers[0] < 0 or numbers[-1] >= SCENES[split]:
        return None
    drawn = scenes(int(numbers[-1]) + 1, split)
    found = [drawn[number] for number in numbers.tolist()]
    for scene, start, end in zip(found, table.offsets[:-1].tolist(), table.offsets[1:].tolist(), strict=True):
        told = set().union(*map(kinds_told, table.captions[start:end]))
        if not told or not told <= {(thing.colour, thing.shape) for thing in scene.things}:
            return None
    return found


def false_texts(root: Path, table: CaptionTable, count: int, encode: Encode) -> FalseTexts | None:
    """What training shows of the captions of `table` made false, `count` at most of each: of drawn scenes by what
    stands in them, of photographs by words alone. Raises DataError where nothing can be made of any caption."""
    if not count:
        return None
    drawn, owners = scenes_of(root, table), table.owners

    def made(caption: int) -> list[str]:
        text = table.captions[caption]
        of_text = false_captions(drawn[owners[caption]], text) if drawn else changed_words(text)
        return [false for _, false in of_text]

    if not any(map(made, range(min(_LOOKED_AT, len(table.captions))))):
        raise DataError(
            f"none of the first captions of {table.name} has a word that could be swapped or replaced "
            f"(train.text_negatives): English colours, things, numbers and places are known. Set it to 0"
        )
    return FalseTexts(count, made, encode)


def drawn_false_captions(root: Path, table: CaptionTable) -> tuple[FalseCaptions | None, str]:
    """Of each drawn image and each kind of false caption one pair, with the first of its captions that allows the kind;
    or None, and why drawn scenes have none."""
    drawn = scenes_of(root, table)
    if drawn is None:
        older = "these scenes were drawn by another version, of which it is not known what is false"
        return None, older if _is_ours(root) else ""
    pairs = []
    for row, scene in enumerate(drawn):
        of_kind: dict[str, tuple[str, str]] = {}
        for caption in table.captions[table.offsets[row] : table.offsets[row + 1]]:
            for kind, false in false_captions(scene, caption):
                of_kind.setdefault(kind, (caption, false))
            if len(of_kind) == len(KINDS):
                break
        pairs += [(kind, row, *both) for kind, both in of_kind.items()]
    pairs.sort(key=lambda pair: KINDS.index(pair[0]))
    return FalseCaptions.of("drawn scenes", table, pairs), ""


def draw_scenes(
    root: Path,
    train: int = SCENES["train"],
    val: int = SCENES["val"],
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
            picture = draw(_pieces(scene, rng), scene.paper, size, rng)
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
    """Where the things are: places are clear, but the hand is not a ruler's."""
    if scene.place:
        places, spread = [scene.place], (0.02, 0.02)
    elif len(scene.rows) == 1:
        places, spread = ["left", "right"], (0.015, 0.06)
    else:
        places, spread = ["top", "bottom"], (0.06, 0.015)
    pieces = []
    for thing, place in zip(scene.things, places, strict=True):
        x, y = (middle + rng.uniform(-far, far) for middle, far in zip(PLACES[place], spread, strict=True))
        radius = RADIUS[thing.size] * rng.uniform(0.96, 1.04)
        pieces.append(Piece(thing.shape, thing.colour, (x, y), radius, rng.uniform(-8, 8)))
    return pieces


def _claim(root: Path) -> None:
    """Sign the folder as ours and incomplete, or refuse it: photographs must not be mixed with drawings."""
    if not _is_ours(root) and any((root / name).exists() for name in ("annotations", "train2017", "val2017")):
        raise DataError(f"other data are in the way ({root}). Draw the scenes elsewhere: --root DIR")
    for name in ("annotations", "train2017", "val2017"):
        refuse_link(root / name)
    for split in FIRST_ID:
        annotation_file(root, SPLITS[split]).unlink(missing_ok=True)
    root.mkdir(parents=True, exist_ok=True)
    write_atomically(root / README, README_TEXT)


def _is_ours(root: Path) -> bool:
    """Whether these or an older version's scenes were, or are being, drawn into `root`."""
    return _readme(root).startswith(README_TEXT.splitlines()[0][:40])


def _readme(root: Path) -> str:
    try:
        return read_own(root / README, most=2**16).decode("utf-8", "replace")
    except OSError:
        return ""
