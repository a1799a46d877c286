"""A person's own pictures and captions -> a folder in COCO's layout, from which training reads as from COCO.

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
from clipcoco.prepare.own_pictures import Sizes, find, looks, measure, nearly_named, same_content
from clipcoco.prepare.own_rows import IMAGE
from clipcoco.prepare.own_split import Draw, Known, Picture, Splits, divided, followed, keep, numbered, remembered

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
        raise ConfigError(f"the share for validation is {val_fraction} (val_fraction). It must be between 0 and 1")
    try:
        if not images.is_dir():
            raise DataError(f"no folder of pictures at {images}. Name the folder that holds them")
        images = Path(os.path.realpath(images))
        return _Adoption(captions, images, root, Draw(val_fraction, seed), report).run(allow_missing)
    except OSError as error:
        where = f"cannot adopt {images} into {root} ({error.strerror or error})"
        raise EnvironmentProblem(f"{where}. Check room and permissions, then run the same command") from error


class _Adoption:
    """One call; `notes` are what there is to tell a person, in the order in which it was found."""

    def __init__(self, captions: Path, images: Path, root: Path, draw: Draw, report: ReportTask) -> None:
        self.captions, self.images, self.root, self.draw, self.report = captions, images, root, draw, report
        self.notes: list[str] = []

    def run(self, allow_missing: bool) -> Adopted:
        call = {"captions": os.path.realpath(self.captions), "images": str(self.images)}
        before = _claimed(self.root, call)

        # What the captions file says, and which files it names.
        self.rows = read_rows(self.captions, self.notes)
        self._find()
        texts, parts = by_image(self.rows, self.column, self.captions, self.notes)

        # Nothing more where neither has changed since the same call.
        status = [(path, os.stat(self.images / path)) for path in sorted(set(self.found.paths.values()))]
        content = repr((self.draw, self.rows, [(path, file.st_size, file.st_mtime_ns) for path, file in status]))
        fingerprint = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
        if before.get("fingerprint") == fingerprint and (adopted := _complete(self.root, before)):
            if any(path.is_symlink() for split in _SPLITS for path in (self.root / split).iterdir()):
                allow(self.root, [self.images])
            return adopted

        # The captions of each picture that can be read.
        sizes = measure([path for path, _ in status], self.images, self.report, self.notes)
        self._count_lost(sizes, allow_missing)
        by_path: dict[str, list[str]] = {}
        part_of: dict[str, str] = {}
        for name, path in self.found.paths.items():  # several names may lead to one file: its captions stay on one side
            if path in sizes and name in texts:
                by_path.setdefault(path, []).extend(texts[name])
                part_of[path] = max(part_of.get(path, PARTS[0]), parts[name], key=PARTS.index)
        once(by_path, self.notes)

        # Ids and sides: those of before, then those of the new.
        look = looks(by_path, self.images)
        known = followed(remembered(self.root, _SPLITS, before), look, self.images, self.notes)
        pictures = _numbered(sizes, by_path, known)
        alike = same_content(look, self.images)
        splits = divided(pictures, part_of, self.draw, known, alike, self.captions, self.notes)
        return self._write(call | keep(known, self.draw, splits, look), fingerprint, splits)

    def _find(self) -> None:
        """The column whose values are the names of pictures in the folder, and where these are."""
        nearly, images, rows = nearly_named(self.images), self.images, self.rows
        columns = [column for column in IMAGE if any(column in row.names for row in rows)]
        if not columns:
            raise DataError(f"no captions in {self.captions}. Each row needs a picture's name and a text")
        named = {column: dict.fromkeys(row.names[column] for row in rows if column in row.names) for column in columns}
        found = {column: find(names, images, nearly) for column, names in named.items()}
        self.column = max(columns, key=lambda column: len(found[column].paths))
        self.found = found[self.column]
        if len(columns) > 1:
            counts = ", ".join(f"{column} {len(one.paths):,}" for column, one in found.items())
            self.notes.append(f"the column {self.column} names the pictures (found in {images}: {counts})")
        if nearly_same := self.found.nearly:
            first = f"{nearly_same[0]!r:.80} as {self.found.paths.get(nearly_same[0], '')!r:.80}"
            self.notes.append(f"{len(nearly_same):,} images are found by nearly the same name, first {first}")

    def _count_lost(self, sizes: Sizes, allow_missing: bool) -> None:
        """Notes on what is left out. Raises DataError when that is a large share, so that nobody loses it unawares."""
        rows, column, found, images = self.rows, self.column, self.found, self.images
        useless = [row.place for row in rows if not (row.captions and row.names.get(column))]
        unreadable = [path for path in dict.fromkeys(found.paths.values()) if path not in sizes]
        relative = "Name the folder that the names in the captions file are relative to"
        helpers = "images are in folders that a system keeps for itself, as of thumbnails"
        names = len(found.paths) + len(found.missing) + len(found.outside) + len(found.helpers)
        reasons = [
            (useless, len(rows), f"rows lack an image or a caption ({self.captions})", "Each row needs both"),
            (_shown(found.outside), names, f"images are outside of {images}", relative),
            (_shown(found.helpers), names, helpers, relative),
            (_shown(found.missing), names, f"images are missing in {images}", relative),
            (_shown(unreadable), names, f"files in {images} are not JPEG or PNG pictures", "Convert them to JPEG"),
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
        self.notes.extend(f"{what}: left out" for _, what, _ in said)

    def _write(self, state: dict[str, Any], fingerprint: str, splits: Splits) -> Adopted:
        root, file = self.root, self.root / STATE
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, state)
        for folder, name in ((file.parent, file.name), (root / "annotations", "captions_")):
            for half in folder.glob(f".{name}*.tmp"):  # of a call that was killed
                half.unlink()

        # No annotation file says that all is there while it is not.
        for folder in (root / "annotations", *(root / split for split in _SPLITS)):
            own_folder(folder)
        for split in _SPLITS:
            annotation_file(root, split).unlink(missing_ok=True)
        symbolic = 0
        for split, pictures in zip(_SPLITS, splits, strict=True):
            _clear(root / split)
            symbolic += sum([link(self.images / one.path, root / split / one.link) for one in pictures])
        if symbolic:
            allow(root, [self.images])
            self.notes.append(
                f"{symbolic:,} pictures are symbolic links into {self.images}: keep that folder where it is"
            )
        for manifest in root.glob("prepared-*/manifest.jsonl"):  # copies of what may be other pictures now
            manifest.unlink()
        sync_volume(root)
        first = 1
        for split, pictures in zip(_SPLITS, splits, strict=True):
            content = _annotations(pictures, first)
            write_json(annotation_file(root, split), content)
            first += len(content["annotations"])

        # And what a later call finds.
        counts = [(len(pictures), sum(len(one.captions) for one in pictures)) for pictures in splits]
        adopted = Adopted(root, *counts[0], *counts[1], tuple(self.notes))
        told = {key: value for key, value in asdict(adopted).items() if key != "root"}
        write_json(file, state | {"fingerprint": fingerprint, "adopted": told})
        return adopted


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
