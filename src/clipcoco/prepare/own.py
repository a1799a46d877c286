"""One's own pictures and captions -> a folder in COCO's layout, from which training reads as from COCO.

Pictures are linked, never changed. The captions file is untrusted data: a name in it that leads out of the
folder of pictures is counted and left out, and only JPEG and PNG files are let near a parser.
"""

import hashlib
import json
import os
import re
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import TypeAdapter, ValidationError

from clipcoco.data.annotations import SPLITS, annotation_file
from clipcoco.disk.files import link, read_own, sync_volume, write_json
from clipcoco.disk.links import allow, own_folder
from clipcoco.errors import ConfigError, DataError, EnvironmentProblem
from clipcoco.events import ReportTask
from clipcoco.prepare.own_captions import PARTS, by_image, once, read_rows
from clipcoco.prepare.own_pictures import Found, Sizes, find, looks, measure, nearly_named, same_content
from clipcoco.prepare.own_rows import IMAGE, Row
from clipcoco.prepare.own_split import Draw, Known, Picture, divided, followed, keep, numbered, remembered

MAX_LOST = 0.05  # of the rows: what is more is left out only by --allow-missing
STATE = Path(".clipcoco", "own.json")

_SPLITS = tuple(SPLITS.values())
_PLAIN_NAME = re.compile(r"[a-z0-9._-]+\.(jpg|jpeg|png)", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Adopted:
    root: Path
    train_images: int
    train_captions: int
    val_images: int
    val_captions: int
    notes: tuple[str, ...]  # what was left out, how it was split and linked, a sentence each


def adopt(
    captions: Path,
    images: Path,
    root: Path,
    *,
    val_fraction: float = 0.1,
    seed: int = 0,
    allow_missing: bool = False,
    report: ReportTask,
) -> Adopted:
    """Make `root` a data set of the pictures in the folder `images` that the file `captions` describes.

    Its own column of splits decides what is for validation; without one, a share `val_fraction` of the pictures
    (at most 5,000), drawn by `seed`, whatever the order of the rows. Called again, with more pictures, it leaves
    the ids and the sides of the old ones as they are, of those that were moved or renamed, too. Pictures get hard
    links, symbolic links on another file system. The annotation files come last: an interrupted call is never taken
    for complete, and the same call does nothing when it was complete and nothing has changed. Raises DataError, also
    when more than 5 % of the rows would be left out and not `allow_missing`, ConfigError for `val_fraction`,
    EnvironmentProblem.
    """
    if not 0 < val_fraction < 1:
        raise ConfigError(f"the share for validation is {val_fraction} (val_fraction). It lies between 0 and 1")
    try:
        return _adopt(captions, images, root, Draw(val_fraction, seed), allow_missing, report)
    except OSError as error:
        where = f"cannot adopt {images} into {root} ({error.strerror or error})"
        raise EnvironmentProblem(f"{where}. Check room and permissions, then run the same command") from error


def _adopt(captions: Path, images: Path, root: Path, draw: Draw, allow_missing: bool, report: ReportTask) -> Adopted:
    if not images.is_dir():
        raise DataError(f"no folder of pictures at {images}. Name the folder that holds them")
    images = Path(os.path.realpath(images))
    call = {"captions": os.path.realpath(captions), "images": str(images)}
    before = _claimed(root, call)
    notes: list[str] = []
    rows = read_rows(captions, notes)
    column, found = _find(rows, images, captions, notes)
    texts, parts = by_image(rows, column, captions, notes)
    status = [(path, os.stat(images / path)) for path in sorted(set(found.paths.values()))]
    content = repr((draw, rows, [(path, file.st_size, file.st_mtime_ns) for path, file in status]))
    fingerprint = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
    if before.get("fingerprint") == fingerprint and (adopted := _complete(root, before)):
        if any(path.is_symlink() for split in _SPLITS for path in (root / split).iterdir()):
            allow(root, [images])
        return adopted
    sizes = measure([path for path, _ in status], images, report, notes)
    _count_lost(rows, column, found, sizes, captions, images, allow_missing, notes)
    by_path: dict[str, list[str]] = {}
    part_of: dict[str, str] = {}
    for name, path in found.paths.items():  # several names may lead to one file: its captions stay on one side
        if path in sizes and name in texts:
            by_path.setdefault(path, []).extend(texts[name])
            part_of[path] = max(part_of.get(path, PARTS[0]), parts[name], key=PARTS.index)
    once(by_path, notes)
    look = looks(by_path, images)
    known = followed(remembered(root, _SPLITS, before), look, images, notes)
    pictures = _numbered(sizes, by_path, known)
    alike = same_content(by_path, images)
    train, val = divided(pictures, part_of, draw, known, alike, captions, notes)
    state = call | keep(known, draw, (train, val), look)
    return _write(root, state, fingerprint, images, (train, val), notes)


def _find(rows: list[Row], images: Path, captions: Path, notes: list[str]) -> tuple[str, Found]:
    """The column whose values are the names of pictures in the folder, and where they lie."""
    nearly = nearly_named(images)
    columns = [column for column in IMAGE if any(column in row.names for row in rows)]
    if not columns:
        raise DataError(f"no captions in {captions}. Each row needs a picture's name and a text")
    named = {column: dict.fromkeys(row.names[column] for row in rows if column in row.names) for column in columns}
    found = {column: find(names, images, nearly) for column, names in named.items()}
    best = max(columns, key=lambda column: len(found[column].paths))
    if len(columns) > 1:
        counts = ", ".join(f"{column} {len(one.paths):,}" for column, one in found.items())
        notes.append(f"the column {best} names the pictures (found in {images}: {counts})")
    if nearly_same := found[best].nearly:
        first = f"{nearly_same[0]!r:.80} as {found[best].paths.get(nearly_same[0], '')!r:.80}"
        notes.append(f"{len(nearly_same):,} images are found by nearly the same name, first {first}")
    return best, found[best]


def _count_lost(
    rows: list[Row],
    column: str,
    found: Found,
    sizes: Sizes,
    captions: Path,
    images: Path,
    allow_missing: bool,
    notes: list[str],
) -> None:
    """Notes on what is left out. Raises DataError when that is a large share, so that nobody loses it unawares."""
    useless = [row.place for row in rows if not (row.captions and row.names.get(column))]
    unreadable = [path for path in dict.fromkeys(found.paths.values()) if path not in sizes]
    relative = "Name the folder that the names in the captions file are relative to"
    names = len(found.paths) + len(found.missing) + len(found.outside) + len(found.helpers)
    reasons = [
        (useless, len(rows), f"rows lack an image or a caption ({captions})", "Each row needs both"),
        (_shown(found.outside), names, f"images lie outside of {images}", relative),
        (
            _shown(found.helpers),
            names,
            "images lie in folders that a system keeps for itself, as of thumbnails",
            relative,
        ),
        (_shown(found.missing), names, f"images are missing in {images}", relative),
        (_shown(unreadable), names, f"files in {images} are no JPEG or PNG picture", "Convert them to JPEG"),
    ]
    said = [
        (len(bad), f"{len(bad):,} of {total:,} {what}, first {', '.join(bad[:3])}", hint)
        for bad, total, what, hint in reasons
        if bad
    ]
    kept = sum(bool(row.captions) and found.paths.get(row.names.get(column, "")) in sizes for row in rows)
    if len(rows) - kept > MAX_LOST * len(rows) and not (allow_missing and kept):
        hint = max(said)[2] + (", or leave them out: the same command with --allow-missing" if kept else "")
        raise DataError(f"{'; '.join(what for _, what, _ in said)}. {hint}")
    notes.extend(f"{what}: left out" for _, what, _ in said)


def _shown(names: list[str]) -> list[str]:
    return [f"{name!r:.80}" for name in names]


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


def _numbered(sizes: Sizes, captions: dict[str, list[str]], known: Known) -> list[Picture]:
    """A name that annotation files may not hold, or that several files have in different folders, gives way to
    the id."""
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


def _write(
    root: Path,
    state: dict[str, Any],
    fingerprint: str,
    images: Path,
    splits: tuple[list[Picture], list[Picture]],
    notes: list[str],
) -> Adopted:
    file = root / STATE
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, state)
    for folder, name in ((file.parent, file.name), (root / "annotations", "captions_")):
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
    write_json(file, state | {"fingerprint": fingerprint, "adopted": told})
    return adopted


def _clear(folder: Path) -> None:
    """Drop the links of an earlier call, but never the only name that a picture has left."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink() or (entry.is_file() and entry.stat().st_nlink > 1):
                os.unlink(entry)


def _annotations(pictures: list[Picture], first: int) -> dict[str, Any]:
    """COCO's annotation file, with caption ids from `first` on."""
    images = [
        {"id": one.id, "file_name": one.link, "width": one.width, "height": one.height, "original": one.path}
        for one in pictures
    ]
    texts = [(one.id, text) for one in pictures for text in one.captions]
    rows = [{"id": number, "image_id": owner, "caption": text} for number, (owner, text) in enumerate(texts, first)]
    return {"info": {"description": "adopted by clipcoco"}, "licenses": [], "images": images, "annotations": rows}
