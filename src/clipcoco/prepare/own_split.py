"""Ids and sides of a person's own pictures: what they were once given they keep when pictures are added.

Checkpoints keep ids of what was trained on, and a picture that moved from training to validation would be
measured on by a run that was trained on it.
"""

import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from clipcoco.data.annotations import ADOPTED, MAX_FILE_SIZE, annotation_file
from clipcoco.disk.files import read_own
from clipcoco.errors import DataError
from clipcoco.prepare.own_captions import PARTS
from clipcoco.prepare.own_pictures import Sizes

MAX_VAL_IMAGES = 5_000  # as many as COCO has

_PLAIN_NAME = re.compile(r"[a-z0-9._-]+\.(jpg|jpeg|png)", re.ASCII | re.IGNORECASE)
_IDS = 10**12  # as many as the file names of COCO can hold


@dataclass(frozen=True)
class Draw:
    val_fraction: float
    seed: int


@dataclass(frozen=True)
class Picture:
    id: int
    path: str  # relative to the folder of pictures
    link: str  # its name in train2017 or val2017
    width: int
    height: int
    captions: list[str]


Splits = tuple[list[Picture], list[Picture], list[Picture]]  # for training, for validation, for neither


@dataclass(frozen=True)
class Known:
    """What an earlier call gave to the pictures, by path."""

    pictures: Mapping[str, tuple[int, str]]  # id and side: "train", "val" or, where it is not known, ""
    draw: Draw | None  # None: not known
    looks: Mapping[str, str]  # digests, of older versions none

    def side(self, path: str) -> str:
        return self.pictures[path][1] if path in self.pictures else ""


def remembered(root: Path, splits: Iterable[str], state: Mapping[str, Any]) -> Known:
    """From own.json; from the annotation files where an older version wrote none there."""
    pictures = state.get("pictures")
    if not isinstance(pictures, dict):
        pictures = {}
        for side, split in zip(PARTS, splits, strict=False):
            try:
                images = json.loads(read_own(annotation_file(root, split), MAX_FILE_SIZE))["images"]
                pictures |= {row["original"]: [row["id"], side] for row in images}
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                continue
    sound = {
        path: (entry[0], entry[1] if entry[1] in PARTS[:2] else "")
        for path, entry in pictures.items()
        if isinstance(entry, list) and len(entry) == 2 and type(entry[0]) is int and 0 < entry[0] < _IDS
    }
    if len({number for number, _ in sound.values()}) < len(sound):  # edited by hand
        sound = {}
    drawn, looks = state.get("draw"), state.get("looks")
    looks = looks if isinstance(looks, dict) else {}
    return Known(
        sound,
        Draw(drawn[0], drawn[1]) if isinstance(drawn, list) and len(drawn) == 2 else None,
        {path: look for path, look in looks.items() if path in sound and isinstance(look, str)},
    )


def followed(known: Known, looks: Mapping[str, str], images: Path, notes: list[str]) -> Known:
    """What is known, where pictures that were moved or renamed take over what their path of before was given."""
    pictures = dict(known.pictures)
    new: dict[str, list[str]] = {}
    for path in sorted(looks.keys() - pictures.keys(), reverse=True):
        new.setdefault(looks[path], []).append(path)
    moved = []
    for old, look in sorted(known.looks.items()):
        if new.get(look) and old not in looks and not os.path.lexists(images / old):
            path = new[look].pop()
            pictures[path] = pictures.pop(old)
            moved.append((old, path))
    if moved:
        first = " as ".join(f"{name!r:.80}" for name in moved[0])
        notes.append(f"{len(moved):,} images have moved, first {first}: they keep their ids and sides")
    return replace(known, pictures=pictures, looks={path: known.looks.get(path, "") for path in pictures})


def keep(known: Known, draw: Draw, splits: Splits, looks: Mapping[str, str]) -> dict[str, Any]:
    """What `remembered` finds in own.json the next time; pictures that are gone may come back."""
    now = {one.path: (one.id, side) for side, pictures in zip(PARTS, splits, strict=False) for one in pictures}
    pictures = {**known.pictures, **now}
    merged = {**known.looks, **looks}
    look = {path: merged[path] for path in sorted(pictures) if merged.get(path)}
    return {"draw": [draw.val_fraction, draw.seed], "pictures": pictures, "looks": look}


def numbered(paths: Iterable[str], known: Known) -> dict[str, int]:
    """Ids by path: a known one, else a hash of the path, the next free number where it is taken."""
    taken = {number for number, _ in known.pictures.values()}
    ids = {}
    for path in sorted(paths):
        number, _ = known.pictures.get(path, (0, ""))
        if not number:
            number = int.from_bytes(_hash(path)[:8], "big") % (_IDS - 1) + 1
            while number in taken:
                number = number % (_IDS - 1) + 1
            taken.add(number)
        ids[path] = number
    return ids


def pictures_of(sizes: Sizes, captions: dict[str, list[str]], known: Known) -> list[Picture]:
    """In the order of their ids. A name that annotation files may not hold, or that several files have in different
    folders, gives way to the id."""
    names = {path: PurePosixPath(path).name for path in sorted(captions)}
    often = Counter(name.lower() for name in names.values())
    ids = numbered(names, known)
    by_id = {path: f"{number:012d}{sizes[path][2]}" for path, number in ids.items()}
    links = {
        path: name if _PLAIN_NAME.fullmatch(name) and often[name.lower()] == 1 else by_id[path]
        for path, name in names.items()
    }
    if len({link.lower() for link in links.values()}) < len(links):  # some file is called like the id of another
        links = by_id
    pictures = [Picture(ids[path], path, links[path], *sizes[path][:2], captions[path]) for path in names]
    return sorted(pictures, key=lambda one: one.id)


def annotations(pictures: list[Picture], first: int) -> dict[str, Any]:
    """COCO's annotation file, with caption ids from `first` on."""
    images = [
        {"id": one.id, "file_name": one.link, "width": one.width, "height": one.height, "original": one.path}
        for one in pictures
    ]
    texts = [(one.id, text) for one in pictures for text in one.captions]
    rows = [{"id": number, "image_id": owner, "caption": text} for number, (owner, text) in enumerate(texts, first)]
    return {"info": {"description": ADOPTED}, "licenses": [], "images": images, "annotations": rows}


def divided(
    pictures: list[Picture],
    parts: Mapping[str, str],
    draw: Draw,
    known: Known,
    alike: list[list[str]],
    captions: Path,
    notes: list[str],
) -> Splits:
    """What is for training, for validation and for a test, in the order of ids; `alike` are groups of the same bytes.

    A test split beside no other takes the place of validation.
    """
    test: list[Picture] = []
    of = {part: [one for one in pictures if parts[one.path] == part] for part in PARTS}
    held = next((part for part in ("val", "test") if of[part]), "")
    if held:
        train, val = of["train"], of[held]
        notes.append(f"split as {captions.name} says: {len(train):,} train and {len(val):,} {held} images")
        if held == "val" and (test := of["test"]):
            then = "neither trained nor validated on, but measured by clipcoco eval --split test"
            notes.append(f"{len(test):,} test images are left out: {then}")
    else:
        chosen = _drawn([one.path for one in pictures], draw, known, alike)
        train = [one for one in pictures if one.path not in chosen]
        val = [one for one in pictures if one.path in chosen]
        notes.append(f"{len(val):,} of {len(pictures):,} images, drawn with seed {draw.seed}, are for validation")
    if not train or not val:
        same = ", all of the same bytes" if alike and len(alike[0]) == len(pictures) else ""
        raise DataError(f"{len(train):,} train and {len(val):,} val images{same} ({captions}). Both need at least one")
    _tell_of_twins(train, val, alike, bool(held), notes)
    if moved := sum(known.side(one.path) == "train" for one in val):
        notes.append(f"{moved:,} images move from training to validation: runs of before were trained on them")
    return train, val, test


def _drawn(paths: list[str], draw: Draw, known: Known, alike: list[list[str]]) -> set[str]:
    """What is for validation: what was, and of the new as much as the share wants. Twins share a side."""
    together = {path: group for group in alike for path in group}
    groups = [together.get(path, [path]) for path in sorted(paths) if together.get(path, [path])[0] == path]
    before = known.draw or draw
    stay = before.seed == draw.seed

    def place(group: list[str]) -> tuple[int, bytes]:
        side = {known.side(path) for path in group if stay}
        return 2 if "train" in side else 0 if "val" in side else 1, _hash(f"{draw.seed}:{group[0]}")

    order = sorted(groups, key=place)
    count = min(MAX_VAL_IMAGES, max(1, math.floor(len(paths) * draw.val_fraction + 0.5)))
    if stay and known.pictures and before.val_fraction == draw.val_fraction:  # no old picture moves
        old, new = (sum(len(group) for group in groups if place(group)[0] == rank) for rank in (0, 1))
        count = max(old, min(count, old + new))
    chosen: set[str] = set()
    for group in order:
        if len(chosen) + len(group) <= count:
            chosen.update(group)
    return chosen or set(sorted(groups, key=len)[0])


def _tell_of_twins(
    train: list[Picture], val: list[Picture], alike: list[list[str]], given: bool, notes: list[str]
) -> None:
    if alike:
        names = " and ".join(f"{path!r:.80}" for path in alike[0][:2])
        twins = f"{sum(map(len, alike)) - len(alike):,} pictures are byte for byte the same as another, first {names}"
        notes.append(twins if given else f"{twins}: they stay on one side of the split")
    trained, validated = ({one.path for one in side} for side in (train, val))
    if both := [path for group in alike if trained.intersection(group) for path in group if path in validated]:
        first = f"{both[0]!r:.80}"
        notes.append(f"{len(both):,} pictures for validation are in training too, byte for byte, first {first}")
    seen = {caption for one in train for caption in one.captions}
    texts = [caption for one in val for caption in one.captions]
    if same := sum(caption in seen for caption in texts):
        notes.append(f"{same:,} of {len(texts):,} captions for validation stand in training too, word for word")


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
