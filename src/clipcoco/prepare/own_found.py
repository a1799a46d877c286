"""A folder of pictures -> what is said of them: in a text beside each, in tables and JSON, in tar shards or Parquet.

What describes the most pictures counts. Of several files all do that describe other pictures, as the parts of a split.
"""

import os
import re
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from clipcoco.config.text import one_line
from clipcoco.data.helpers import is_helper
from clipcoco.errors import ClipcocoError, DataError, EnvironmentProblem
from clipcoco.prepare.own_captions import kind_of, read_rows
from clipcoco.prepare.own_packed import (
    MOST_TEXT,
    PARQUET,
    PICTURES,
    TARS,
    TEXTS,
    Pack,
    packed_rows,
    said_beside,
    suffix_of,
)
from clipcoco.prepare.own_rows import SPLIT_NAMES, Row, row
from clipcoco.say import say_count

READ = (
    "What is read: a .txt beside each picture, tables (CSV, TSV), JSON (lines, arrays, COCO's, Karpathy's, LAVIS's), "
    "tar shards, Parquet"
)
STATE = Path(".clipcoco", "own.json")  # of a data folder that was made of pictures

_TABLES = (".csv", ".tsv", ".txt", ".token", ".json", ".jsonl", ".jsonlines", ".ndjson", *TARS, PARQUET)
_PART = re.compile(r"(?:.*[^a-z])?(train|val|valid|validation|dev|test)(?:20\d\d)?(?:[^a-z].*)?")
_MOST = 200  # files in a folder that may be tables: more are texts of something else


@dataclass(frozen=True)
class Said:
    """What is said of which pictures, and where."""

    rows: list[Row]
    what: str  # for a person
    where: Path  # the file, or the folder
    lacks: str = "rows lack an image or a caption"  # what a row of no use is
    needs: str = "Each row needs both"
    packs: tuple[Pack, ...] = ()  # which hold the pictures, where the folder does not
    described: frozenset[str] = field(default=frozenset(), repr=False)  # the pictures that have a caption, about
    notes: tuple[str, ...] = ()
    pictures: int = 0  # that there are in the folder


def captions_of(images: Path, captions: Path | None, chosen: Mapping[str, str]) -> Said:
    """What the file `captions` says, or what is found in the folder `images` where that is None.

    Raises DataError where that is nothing, EnvironmentProblem where Parquet can't be read for want of pyarrow.
    """
    if captions is not None:
        notes: list[str] = []
        rows, pack = _rows_of(captions, captions.name, chosen, notes)
        beside = _relative(captions.parent, images)
        rows = rows if pack or beside is None else _placed(rows, images, [".", beside])
        return Said(rows, captions.name, captions, packs=(pack,) if pack else (), notes=tuple(notes))
    pictures, others = _listed(images)
    stems = {os.path.splitext(name)[0] for name in pictures}
    beside_them = [
        name for name in others if os.path.splitext(name)[0] in stems and suffix_of(name) in (*TEXTS, ".json")
    ]
    tables = sorted(name for name in set(others).difference(beside_them) if name.lower().endswith(_TABLES))
    refused: list[ClipcocoError] = []
    found = [
        _beside(images, pictures, beside_them, refused),
        *_of_files(images, pictures, tables, chosen, refused),
    ]
    best = max(found, key=lambda said: len(said.described))
    if not best.described:
        if len(refused) == 1 and len(tables) == 1:
            raise refused[0]
        raise next((one for one in refused if isinstance(one, EnvironmentProblem)), None) or DataError(
            _nothing(images, pictures, others, refused)
        )
    if less := [said.what for said in found if said is not best and said.described]:
        more = f"{' and '.join(less)}: captions, too, of fewer pictures or of the same, not read"
        best = replace(best, notes=(*best.notes, more))
    return replace(best, pictures=len(pictures))


def _listed(images: Path) -> tuple[list[str], list[str]]:
    """Pictures, by name, and other files, relative to the folder; no hidden ones, none that a link leads out to."""
    pictures, others, waiting = list[str](), list[str](), [""]
    for inside in waiting:
        with os.scandir(images / inside) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                name = f"{inside}/{entry.name}" if inside else entry.name
                if entry.name.startswith(".") or (entry.is_symlink() and _relative(Path(entry.path), images) is None):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    if not is_helper(name) and not os.path.lexists(Path(entry.path) / STATE):
                        waiting.append(name)
                elif entry.is_file():
                    (pictures if suffix_of(name) in PICTURES else others).append(name)
    return pictures, others


def _relative(path: Path, images: Path) -> str | None:
    """As a real path below the folder; None of what lies elsewhere."""
    real = Path(os.path.realpath(path))
    return real.relative_to(images).as_posix() if real.is_relative_to(images) else None


def _beside(images: Path, pictures: list[str], texts: list[str], refused: list[ClipcocoError]) -> Said:
    """A row for each picture, whether or not there is a text beside it."""
    by_stem: dict[str, list[str]] = {}
    for name in texts:
        by_stem.setdefault(os.path.splitext(name)[0], []).append(name)
    rows, no_text = [], Counter[str]()
    parts = {name: _folder_part(name) for name in pictures}
    whole = {"train"} < set(parts.values())
    for name in pictures if texts else ():
        captions, place = list[str](), f"{name!r:.80}"
        for text in sorted(by_stem.get(os.path.splitext(name)[0], ()), key=lambda one: suffix_of(one) == ".json"):
            try:
                captions = captions or said_beside(suffix_of(text), _read(images / text), images / text)
            except DataError:
                place = f"{text!r:.80} (not UTF-8)"
            no_text[suffix_of(text)] += not captions
        one = row(place, [("caption", caption) for caption in captions])
        rows.append(replace(one, names={"image": name}, split=parts[name] if whole else ""))
    described = frozenset(one.names["image"] for one in rows if one.captions)
    if texts and not described:
        hold = "hold no words, as YOLO's boxes and labelme's outlines" if no_text else "are empty"
        refused.append(DataError(f"the files beside the pictures, first {texts[0]!r:.80}, {hold}"))
    first = next((name for name in texts if suffix_of(name) in TEXTS), texts[0] if texts else "")
    what = f"{len(described):,} of {len(pictures):,} pictures have a text beside them, as {first}"
    return Said(rows, what, images, "pictures have no caption beside them", "Write one", described=described)


def _read(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(MOST_TEXT)


def _of_files(
    images: Path, pictures: list[str], names: list[str], chosen: Mapping[str, str], refused: list[ClipcocoError]
) -> tuple[Said, Said]:
    """What tables say and what packs say, each of all that describe other pictures."""
    known = {os.path.splitext(PurePosixPath(name).name)[0].casefold() for name in pictures} | set(pictures)
    tables, packs = list[tuple[str, Said]](), list[tuple[str, Said]]()
    for name in _likely(names, refused):
        notes: list[str] = []
        try:
            rows, pack = _rows_of(images / name, name, chosen, notes)
        except (DataError, EnvironmentProblem) as error:
            refused.append(error)
            continue
        folder = PurePosixPath(name).parent.as_posix()
        own_folder = PurePosixPath(name).stem.rpartition("_")[2]  # captions_train2017.json speaks of train2017
        rows = rows if pack else _placed(rows, images, [folder, own_folder, "."])
        values = {value for one in rows if one.captions for value in one.names.values()}
        of = frozenset(values if pack else (_about(value, known) for value in values)) - {""}
        if not of:
            has = f"{len(values):,} pictures with a caption, first {min(values)!r:.60}," if values else "no caption"
            refused.append(DataError(f"{name} has {has}{' of which none is here' * bool(values)} ({images})"))
        said = Said(rows, name, images / name, packs=(pack,) if pack else (), described=of, notes=tuple(notes))
        (packs if pack else tables).append((name, said))
    return _together(images, tables), _together(images, packs)


def _likely(names: list[str], refused: list[ClipcocoError]) -> list[str]:
    """Of the files of a folder those that say that they are captions, if any does; none where there are very many."""
    by_folder: dict[PurePosixPath, list[str]] = {}
    for name in names:
        by_folder.setdefault(PurePosixPath(name).parent, []).append(name)
    chosen = []
    for folder, files in by_folder.items():
        said = [name for name in files if "caption" in PurePosixPath(name).name.lower()]
        packs = [name for name in files if name.lower().endswith((*TARS, PARQUET))]
        others = said or [name for name in files if name not in packs]
        if len(others) > _MOST:
            refused.append(DataError(f"{len(others):,} files in {folder}, as {others[0]!r:.80}, are beside no picture"))
            others = []
        chosen += [*others, *packs]
    return chosen


def _rows_of(path: Path, name: str, chosen: Mapping[str, str], notes: list[str]) -> tuple[list[Row], Pack | None]:
    if path.name.lower().endswith((*TARS, PARQUET)) and path.is_file():
        suffix = next(one for one in (*TARS, PARQUET) if name.lower().endswith(one))
        return packed_rows(path, name[: -len(suffix)], chosen)
    return read_rows(path, notes, chosen), None


def _placed(rows: list[Row], images: Path, bases: list[str]) -> list[Row]:
    """With names that are relative to the folder of pictures where a file is there, by the first of `bases`."""

    def there(name: str) -> str:
        for base in bases:
            path = os.path.normpath(os.path.join(base, name))
            if not path.startswith(("/", "..")) and os.path.isfile(images / path):
                return path
        return name

    return [replace(one, names={key: there(value) for key, value in one.names.items()}) for one in rows]


def _about(name: str, known: set[str]) -> str:
    """The picture, of which the folder may be another; "" where there is none of that name."""
    stem = os.path.splitext(PurePosixPath(name.replace("\\", "/")).name)[0].casefold()
    return name if name in known else stem if stem in known else ""


def _together(images: Path, found: list[tuple[str, Said]]) -> Said:
    """As one: the file that describes the most pictures, and all others that describe mostly others.

    Where no row says its split, the names of files and folders do, if they speak of training and of another part.
    """
    chosen, left, described = dict[str, Said](), list[str](), set[str]()
    for name, said in sorted(found, key=lambda one: (-len(one[1].described), len(one[0]), one[0])):
        if len(said.described - described) > len(said.described) / 2:
            chosen[name] = said
            described |= said.described
        elif said.described:
            left.append(name)
    rows = [
        replace(one, place=f"{name!r:.80}, {one.place}") if len(chosen) > 1 else one
        for name, said in chosen.items()
        for one in said.rows
    ]
    parts = {name: _part_of(PurePosixPath(name).stem) or _folder_part(name) for name in chosen}
    if {"train"} < set(parts.values()) and not any(one.split for one in rows):
        split = (parts[name] or "train" for name, said in chosen.items() for _ in said.rows)
        rows = [replace(one, split=part) for one, part in zip(rows, split, strict=True)]
    notes = list(dict.fromkeys(note for said in chosen.values() for note in said.notes))
    if left:
        notes.append(f"{', '.join(left[:3])}: captions of the same pictures, not read. To take it: --captions FILE")
    names = list(chosen)
    more = f" and {len(names) - 2:,} more" if len(names) > 2 else ""
    packs = tuple(pack for said in chosen.values() for pack in said.packs)
    said = Said(rows, " and ".join(names[:2]) + more, images / names[0] if len(names) == 1 else images)
    said = replace(said, lacks="pictures have no caption", needs="Each needs one") if packs else said
    return replace(said, packs=packs, described=frozenset(described), notes=tuple(notes))


def _part_of(word: str) -> str:
    """The part of a split that a name speaks of: val of captions_val2017; "" for none."""
    found = _PART.fullmatch(word.lower())
    return SPLIT_NAMES[found[1]] if found else ""


def _folder_part(name: str) -> str:
    """That of the first folder that is called like one."""
    folders = (re.sub(r"20\d\d$", "", folder.lower()) for folder in PurePosixPath(name).parent.parts)
    return next((SPLIT_NAMES[folder] for folder in folders if folder in SPLIT_NAMES), "")


def _nothing(images: Path, pictures: list[str], others: list[str], refused: list[ClipcocoError]) -> str:
    """What is there instead of captions, each by what it is."""
    if not pictures and not others:
        real = "Name the folder that really holds them: --images DIR"
        return one_line(f"there is no picture in {images}, links out of it apart. {real}")
    there = [say_count(len(pictures), "picture")]
    suffixes = Counter(map(suffix_of, others))
    for suffix, count in suffixes.most_common(4):
        first = next(name for name in others if suffix_of(name) == suffix)
        with open(images / first, "rb") as file:
            kind = kind_of(file.read(300))
        there.append(f"{count:,} {suffix or 'other'} (as {first!r:.60}{f': {kind}' if kind else ''})")
    why = f"; {refused[0]}".rstrip(".") if refused else ""
    search = (
        f'search without captions: clipcoco search "a dog on a sofa" --images {shlex.quote(str(images))} --model MODEL'
    )
    return one_line(f"no captions in {images}: {', '.join(there)}{why:.400}. {READ}. Or {search}")
