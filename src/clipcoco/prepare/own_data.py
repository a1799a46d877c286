"""A person's own pictures and captions -> a folder in COCO's layout, from which training reads as from COCO.

Pictures are linked, never changed. The captions file is untrusted data: a name in it that leads out of the
folder of pictures is counted and left out, and only JPEG and PNG files are let near a parser.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from textwrap import shorten
from typing import Any

from pydantic import TypeAdapter, ValidationError

from clipcoco.data.annotations import FOLDERS, annotation_file
from clipcoco.disk.files import link, read_own, sync_volume, write_json
from clipcoco.disk.links import allow, own_folder
from clipcoco.errors import ConfigError, DataError, EnvironmentProblem
from clipcoco.events import ReportTask
from clipcoco.prepare.own_captions import PARTS, by_image, once
from clipcoco.prepare.own_found import STATE, captions_of
from clipcoco.prepare.own_packed import promised, unpack
from clipcoco.prepare.own_pictures import Sizes, find, looks, measure, nearly_named, same_content
from clipcoco.prepare.own_rows import IMAGE, chosen_columns
from clipcoco.prepare.own_split import Draw, Splits, annotations, divided, followed, keep, pictures_of, remembered

MAX_LOST = 0.05  # of the rows: what is more is left out only by --allow-missing
UNPACKED = "unpacked"

_SPLITS = tuple(FOLDERS.values())


@dataclass(frozen=True)
class Adopted:
    root: Path
    train_images: int
    train_captions: int
    val_images: int
    val_captions: int
    notes: tuple[str, ...]  # what was left out, how it was split and linked, a sentence each
    understood: tuple[str, ...] = ()  # what was found, then three of the pictures with a caption, a line each
    test_images: int = 0


def adopt(
    captions: Path | None,
    images: Path,
    root: Path,
    *,
    val_fraction: float = 0.1,
    seed: int = 0,
    allow_missing: bool = False,
    image_column: str = "",
    caption_column: str = "",
    dry_run: bool = False,
    tell: Callable[[tuple[str, ...]], object] = lambda lines: None,
    report: ReportTask,
) -> Adopted:
    """Make `root` a data set of the pictures in the folder `images` that the file `captions` describes; None takes
    the captions that are found there.

    `tell` is given what was understood before anything is written; with `dry_run` nothing is. The captions' own
    split decides what is for validation; without one, a share `val_fraction` of the pictures
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
        chosen = chosen_columns(image_column, caption_column)
        adoption = _Adoption(captions, images, root, chosen, Draw(val_fraction, seed), tell, report)
        return adoption.run(allow_missing, dry_run)
    except OSError as error:
        where = f"cannot adopt {images} into {root} ({error.strerror or error})"
        raise EnvironmentProblem(f"{where}. Check room and permissions, then run the same command") from error


class _Adoption:
    """One call; `notes` are what there is to tell a person, in the order in which it was found."""

    def __init__(
        self,
        captions: Path | None,
        images: Path,
        root: Path,
        chosen: Mapping[str, str],
        draw: Draw,
        tell: Callable[[tuple[str, ...]], object],
        report: ReportTask,
    ) -> None:
        self.captions, self.images, self.root, self.chosen = captions, images, root, chosen
        self.draw, self.tell, self.report = draw, tell, report
        self.notes: list[str] = []

    def run(self, allow_missing: bool, dry_run: bool) -> Adopted:
        call = {"captions": os.path.realpath(self.captions) if self.captions else "", "images": str(self.images)}
        before = _claimed(self.root, call)

        # What is said of which pictures, told before anything is written.
        self.said = captions_of(self.images, self.captions, self.chosen)
        self.notes.extend(self.said.notes)
        self.rows = self.said.rows
        self._find()
        texts, parts = by_image(self.rows, self.column, self.said.where, self.notes)
        self._understand(texts)
        if self.said.packs and not dry_run:
            unpack(self.said.packs, self.images, self.report)
            self._find(unpacked=True)

        # Nothing more where neither has changed since the same call.
        promised = bool(self.said.packs) and dry_run
        paths = sorted(set(self.found.paths.values()))
        status = [] if promised else [(path, os.stat(self.images / path)) for path in paths]
        content = repr((self.draw, self.rows, [(path, file.st_size, file.st_mtime_ns) for path, file in status]))
        fingerprint = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
        if before.get("fingerprint") == fingerprint and (adopted := _complete(self.root, before)):
            if not dry_run and any(path.is_symlink() for path in self.root.glob("*2017/*")):
                allow(self.root, [self.images])
            return replace(adopted, understood=self.understood)

        # The captions of each picture that can be read.
        sizes = dict.fromkeys(paths, (0, 0, "")) if promised else self._measured(paths)
        self._count_lost(sizes, allow_missing)
        by_path: dict[str, list[str]] = {}
        part_of: dict[str, str] = {}
        for name, path in self.found.paths.items():  # several names may lead to one file: its captions stay on one side
            if path in sizes and name in texts:
                by_path.setdefault(path, []).extend(texts[name])
                part_of[path] = max(part_of.get(path, PARTS[0]), parts[name], key=PARTS.index)
        once(by_path, self.notes)

        # Ids and sides: those of before, then those of the new.
        look = {} if promised else looks(by_path, self.images)
        known = followed(remembered(self.root, _SPLITS, before), look, self.images, self.notes)
        pictures = pictures_of(sizes, by_path, known)
        alike = same_content(look, self.images)
        splits = divided(pictures, part_of, self.draw, known, alike, self.said.where, self.notes)
        if dry_run:
            return self._adopted(splits)
        return self._write(call | keep(known, self.draw, splits, look), fingerprint, splits)

    def _measured(self, paths: list[str]) -> Sizes:
        if (silent := self.said.pictures - len(paths)) > 0 and not self.said.packs:
            self.notes.append(f"{silent:,} of {self.said.pictures:,} pictures in the folder have no caption: left out")
        return measure(paths, self.images, self.report, self.notes)

    def _understand(self, texts: Mapping[str, list[str]]) -> None:
        """What was found, and three of the pictures with what is said of them."""
        names = sorted(name for name in texts if name in self.found.paths) or sorted(texts)
        three = [names[at] for at in sorted({0, len(names) // 2, len(names) - 1})] if names else []
        many = f"{sum(map(len, texts.values())):,} captions of {len(texts):,} pictures"
        examples = [
            f"  {PurePosixPath(name).name:.60}: '{shorten(texts[name][0], 80, placeholder=' …')}'" for name in three
        ]
        self.understood = (f"{self.said.what}: {many}", *examples)
        self.tell(self.understood)

    def _find(self, unpacked: bool = False) -> None:
        """The column whose values are the names of pictures in the folder, and where these are, or will be."""
        if self.said.packs:
            self.images, self.column = Path(os.path.realpath(self.root), UNPACKED), IMAGE[1]
            packed = list(dict.fromkeys(one.names[self.column] for one in self.rows))
            self.found = find(packed, self.images, lambda name: "") if unpacked else promised(packed)
            return
        nearly, images, rows = nearly_named(self.images), self.images, self.rows
        columns = [column for column in IMAGE if any(column in row.names for row in rows)]
        if not columns:
            raise DataError(f"no captions in {self.said.where}. Each row needs a picture's name and a text")
        named = {column: dict.fromkeys(row.names[column] for row in rows if column in row.names) for column in columns}
        found = {column: find(names, images, nearly) for column, names in named.items()}
        self.column = max(columns, key=lambda column: (len(found[column].paths), -len(found[column].nearly)))
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
        if self.said.packs:
            relative = "Only files with plain names are unpacked"
        helpers = "images are in folders that a system keeps for itself, as of thumbnails"
        names = len(found.paths) + len(found.missing) + len(found.outside) + len(found.helpers)
        reasons = [
            (useless, len(rows), f"{self.said.lacks} ({self.said.where})", self.said.needs),
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
        for split in _SPLITS:
            annotation_file(root, split).unlink(missing_ok=True)
        there = [(split, some) for split, some in zip(_SPLITS, splits, strict=True) if some or (root / split).is_dir()]
        for split in ("annotations", *(split for split, _ in there)):
            own_folder(root / split)
        symbolic = 0
        for split, pictures in there:
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
        for split, pictures in there:
            if pictures:
                write_json(annotation_file(root, split), content := annotations(pictures, first))
                first += len(content["annotations"])

        # And what a later call finds.
        adopted = self._adopted(splits)
        told = {key: value for key, value in asdict(adopted).items() if key != "root"}
        write_json(file, state | {"fingerprint": fingerprint, "adopted": told})
        return adopted

    def _adopted(self, splits: Splits) -> Adopted:
        counts = [(len(pictures), sum(len(one.captions) for one in pictures)) for pictures in splits]
        return Adopted(self.root, *counts[0], *counts[1], tuple(self.notes), self.understood, counts[2][0])


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
            by = f" with {state['captions']!r:.100}" if state.get("captions") else ""
            of = f"{state.get('images')!r:.100}{by}"
            raise DataError(f"{root} holds the pictures of {of}. Choose another folder: --root DIR")
        return state
    if any(os.path.lexists(root / name) for name in ("annotations", *_SPLITS)):
        raise DataError(f"other data are in the way ({root}). Choose another folder: --root DIR")
    return {}


def _complete(root: Path, state: dict[str, Any]) -> Adopted | None:
    """What was adopted, if it is all there still."""
    try:
        adopted = TypeAdapter(Adopted).validate_python({**state["adopted"], "root": root})
        wanted = [adopted.train_images, adopted.val_images, state["adopted"]["test_images"]]
        whole = [len(list((root / split).glob("*"))) for split in _SPLITS] == wanted
        whole &= [annotation_file(root, split).is_file() for split in _SPLITS] == [many > 0 for many in wanted]
    except (KeyError, TypeError, ValidationError, OSError):
        return None
    return replace(adopted, notes=(*adopted.notes, "nothing to do: nothing has changed")) if whole else None


def _clear(folder: Path) -> None:
    """Drop the links of an earlier call, but never the only name that a picture has left."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink() or (entry.is_file() and entry.stat().st_nlink > 1):
                os.unlink(entry)
