"""One's own pictures and captions -> a folder in COCO's layout, from which training reads as from COCO.

Pictures are linked, never changed. The captions file is untrusted data: a name in it that leads out of the
folder of pictures is counted and left out, and only JPEG and PNG files are let near a parser.
"""

import hashlib
import json
import math
import os
import re
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import TypeAdapter, ValidationError

from clipcoco.data.annotations import annotation_file
from clipcoco.errors import ConfigError, DataError, EnvironmentProblem
from clipcoco.events import ReportTask
from clipcoco.files import link, read_own, sync_volume, write_json
from clipcoco.links import allow, own_folder
from clipcoco.prepare.own_captions import PARTS, by_image, read_rows
from clipcoco.prepare.own_pictures import Sizes, find, measure

MAX_VAL_IMAGES = 5_000  # as many as COCO has
STATE = Path(".clipcoco", "own.json")

_SPLITS = ("train2017", "val2017")
_PLAIN_NAME = re.compile(r"[a-z0-9._-]+\.(jpg|jpeg|png)", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Adopted:
    root: Path
    train_images: int
    train_captions: int
    val_images: int
    val_captions: int
    notes: tuple[str, ...]  # what was left out, how it was split and linked, a sentence each


@dataclass(frozen=True)
class _Picture:
    id: int
    path: str  # relative to the folder of pictures
    link: str  # its name in train2017 or val2017
    width: int
    height: int
    captions: list[str]


def adopt(
    captions: Path, images: Path, root: Path, *, val_fraction: float = 0.1, seed: int = 0, report: ReportTask
) -> Adopted:
    """Make `root` a data set of the pictures in the folder `images` that the file `captions` describes.

    Its own column of splits decides what is for validation; without one, a share `val_fraction` of the pictures
    (at most 5,000), drawn by `seed`, whatever the order of the rows. Pictures get hard links, symbolic links on
    another file system. The annotation files come last: an interrupted call is never taken for complete, and
    the same call does nothing when it was complete and nothing has changed. Raises DataError, ConfigError for
    `val_fraction`, EnvironmentProblem.
    """
    if not 0 < val_fraction < 1:
        raise ConfigError(f"the share for validation is {val_fraction} (val_fraction). It lies between 0 and 1")
    try:
        return _adopt(captions, images, root, val_fraction, seed, report)
    except OSError as error:
        where = f"cannot adopt {images} into {root} ({error.strerror or error})"
        raise EnvironmentProblem(f"{where}. Check room and permissions, then run the same command") from error


def _adopt(captions: Path, images: Path, root: Path, val_fraction: float, seed: int, report: ReportTask) -> Adopted:
    if not images.is_dir():
        raise DataError(f"no folder of pictures at {images}. Name the folder that holds them")
    images = Path(os.path.realpath(images))
    call = {"captions": os.path.realpath(captions), "images": str(images)}
    before = _claimed(root, call)
    rows = read_rows(captions)
    texts, parts, notes = by_image(rows, captions)
    found = find(texts, images, notes)
    status = [(path, os.stat(images / path)) for path in sorted(set(found.values()))]
    content = repr((val_fraction, seed, rows, [(path, file.st_size, file.st_mtime_ns) for path, file in status]))
    fingerprint = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
    if before.get("fingerprint") == fingerprint and (adopted := _complete(root, before)):
        if any(path.is_symlink() for split in _SPLITS for path in (root / split).iterdir()):
            allow(root, [images])
        return adopted
    sizes = measure([path for path, _ in status], images, report, notes)
    by_path: dict[str, list[str]] = {}
    part_of: dict[str, str] = {}
    for name, path in found.items():  # several names may lead to one file: its captions stay on one side
        by_path.setdefault(path, []).extend(texts[name])
        part_of[path] = max(part_of.get(path, "train"), parts[name], key=PARTS.index)
    pictures = _numbered(sizes, by_path)
    train, val = _divided(pictures, part_of, val_fraction, seed, captions, notes)
    return _write(root, call, fingerprint, images, (train, val), notes)


def _claimed(root: Path, call: dict[str, str]) -> dict[str, Any]:
    """What the same call left in `root` before. Another data set is never written over."""
    try:
        state = json.loads(read_own(root / STATE))
    except (OSError, ValueError, RecursionError):
        state = None
    if isinstance(state, dict):
        if any(state.get(key) != value for key, value in call.items()):
            of = f"{state.get('images')!r:.100} with {state.get('captions')!r:.100}"
            raise DataError(f"{root} holds the pictures of {of}. Choose another folder: --root DIR")
        return state
    if any(os.path.lexists(root / name) for name in ("annotations", *_SPLITS)):
        raise DataError(f"other data are in the way ({root}). Choose another folder: --root DIR")
    return {}


def _complete(root: Path, state: dict[str, Any]) -> Adopted | None:
    """What was adopted, if it is all there still."""
    try:
        adopted = TypeAdapter(Adopted).validate_python({**state["adopted"], "root": root})
        whole = all(annotation_file(root, split).is_file() for split in _SPLITS)
        counts = [len(os.listdir(root / split)) for split in _SPLITS]
    except (KeyError, TypeError, ValidationError, OSError):
        return None
    if not whole or counts != [adopted.train_images, adopted.val_images]:
        return None
    return replace(adopted, notes=(*adopted.notes, "nothing to do: nothing has changed"))


def _numbered(sizes: Sizes, captions: dict[str, list[str]]) -> list[_Picture]:
    """Ids from 1 in the order of paths. A name that annotation files may not hold, or that several files have
    in different folders, gives way to the id."""
    names = {path: PurePosixPath(path).name for path in sorted(sizes)}
    often = Counter(name.lower() for name in names.values())
    by_id = {path: f"{number:012d}{sizes[path][2]}" for number, path in enumerate(names, start=1)}
    links = {
        path: name if _PLAIN_NAME.fullmatch(name) and often[name.lower()] == 1 else by_id[path]
        for path, name in names.items()
    }
    if len({link.lower() for link in links.values()}) < len(links):  # some file is called like the id of another
        links = by_id
    return [
        _Picture(number, path, links[path], *sizes[path][:2], captions[path])
        for number, path in enumerate(names, start=1)
    ]


def _divided(
    pictures: list[_Picture], parts: dict[str, str], fraction: float, seed: int, captions: Path, notes: list[str]
) -> tuple[list[_Picture], list[_Picture]]:
    """What is for training and for validation, each in the order of ids."""
    of = {part: [one for one in pictures if parts[one.path] == part] for part in PARTS}
    if held := next((part for part in ("val", "test") if of[part]), ""):
        train, val = of["train"], of[held]
        notes.append(f"split as {captions.name} says: {len(train):,} train and {len(val):,} {held} images")
        if held == "val" and of["test"]:
            notes.append(f"{len(of['test']):,} test images are left out: neither trained nor validated on")
    else:
        count = min(MAX_VAL_IMAGES, max(1, math.floor(len(pictures) * fraction + 0.5)))
        keys = {one.id: hashlib.sha256(f"{seed}:{one.path}".encode("utf-8", "surrogateescape")) for one in pictures}
        chosen = set(sorted(keys, key=lambda number: keys[number].digest())[:count])
        train = [one for one in pictures if one.id not in chosen]
        val = [one for one in pictures if one.id in chosen]
        notes.append(f"{len(val):,} of {len(pictures):,} images, drawn with seed {seed}, are for validation")
    if not train or not val:
        raise DataError(f"{len(train):,} train and {len(val):,} val images ({captions}). Both need at least one")
    return train, val


def _write(
    root: Path,
    call: dict[str, str],
    fingerprint: str,
    images: Path,
    splits: tuple[list[_Picture], list[_Picture]],
    notes: list[str],
) -> Adopted:
    state = root / STATE
    state.parent.mkdir(parents=True, exist_ok=True)
    write_json(state, call)
    for folder, name in ((state.parent, state.name), (root / "annotations", "captions_")):
        for half in folder.glob(f".{name}*.tmp"):  # of a call that was killed
            half.unlink()
    for folder in (root / "annotations", *(root / split for split in _SPLITS)):
        own_folder(folder)
    for split in _SPLITS:
        annotation_file(root, split).unlink(missing_ok=True)
    symbolic = 0
    for split, pictures in zip(_SPLITS, splits, strict=True):
        _clear(root / split)
        symbolic += sum([link(images / one.path, root / split / one.link) for one in pictures])
    if symbolic:
        allow(root, [images])
        notes.append(f"{symbolic:,} pictures are symbolic links into {images}: keep that folder where it is")
    for manifest in root.glob("prepared-*/manifest.jsonl"):  # copies of what may be other pictures now
        manifest.unlink()
    sync_volume(root)
    first = 1
    for split, pictures in zip(_SPLITS, splits, strict=True):
        content = _annotations(pictures, first)
        write_json(annotation_file(root, split), content)
        first += len(content["annotations"])
    counts = [(len(pictures), sum(len(one.captions) for one in pictures)) for pictures in splits]
    adopted = Adopted(root, *counts[0], *counts[1], tuple(notes))
    told = {key: value for key, value in asdict(adopted).items() if key != "root"}
    write_json(state, call | {"fingerprint": fingerprint, "adopted": told})
    return adopted


def _clear(folder: Path) -> None:
    """Drop the links of an earlier call, but never the only name that a picture has left."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink() or (entry.is_file() and entry.stat().st_nlink > 1):
                os.unlink(entry)


def _annotations(pictures: list[_Picture], first: int) -> dict[str, Any]:
    """COCO's annotation file, with caption ids from `first` on."""
    images = [
        {"id": one.id, "file_name": one.link, "width": one.width, "height": one.height, "original": one.path}
        for one in pictures
    ]
    texts = [(one.id, text) for one in pictures for text in one.captions]
    rows = [{"id": number, "image_id": owner, "caption": text} for number, (owner, text) in enumerate(texts, first)]
    return {"info": {"description": "adopted by clipcoco"}, "licenses": [], "images": images, "annotations": rows}
