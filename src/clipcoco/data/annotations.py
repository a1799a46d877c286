"""An annotation file -> rows that can be trusted: ids, file names and texts of the right kinds.

The file is untrusted data: every row is checked before it is used, and no file that it names is opened here.
"""

import json
import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from clipcoco.config.schema import DataConfig
from clipcoco.config.text import one_line
from clipcoco.disk.links import check_link, check_root, may_lead
from clipcoco.errors import DataError, EnvironmentProblem

Rows = list[dict[str, Any]]

MAX_FILE_SIZE = 2 * 2**30  # bytes; captions_train2017.json has 92 MB
MAX_DROPPED = 0.01  # above this share, rows are not dropped: the file is at fault
PREPARE = "clipcoco prepare-data"
SPLITS = {"train": "train2017", "val": "val2017"}  # the folders of COCO's layout, and the names of its caption files
KARPATHY_TEST = "karpathy-test"  # a split of COCO, from both folders
MEASURED = ("val", "train", "test", KARPATHY_TEST)  # what `eval` takes; "test" is of a person's own pictures
ADOPTED = "adopted by clipcoco"  # how annotation files describe a person's own pictures
FOLDERS = {**SPLITS, "test": "test2017"}  # the last of a person's own pictures, where their captions say which
LAYOUT = ("annotations", *FOLDERS.values())

_FILE_NAME = re.compile(r"[a-z0-9._-]+\.(jpg|jpeg|png)", re.ASCII | re.IGNORECASE)
_INTEGER = re.compile(r"-?[0-9]{1,18}")
# No white space among them: that is collapsed, not removed. Lone surrogates cannot be encoded as UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff]")
_ID_FIELDS = {"images": ("id",), "annotations": ("id", "image_id")}
_TEXT_FIELD = {"images": "file_name", "annotations": "caption"}


def clean(caption: str) -> str:
    """NFC, without control characters, each stretch of white space one space, none at the ends."""
    if caption.isascii() and caption.isprintable():
        return " ".join(caption.split())
    return " ".join(unicodedata.normalize("NFC", _UNPRINTABLE.sub("", caption)).split())


def annotation_file(root: Path, split: str) -> Path:
    return root / "annotations" / f"captions_{split}.json"


def name_of(root: Path, split: str, adopted: bool) -> str:
    """Of a split, for a person; of one's own pictures with the folder's."""
    return f"{one_line(root.absolute().name)[:40]} {split.removesuffix('2017')}" if adopted else split


def count_entries(root: Path, split: str) -> tuple[int, int] | None:
    """Images and captions in the file, unchecked: 0.1 s for train2017 against 2 s. None without a file.

    A quotation mark inside a text is escaped there, so a key is counted where it is one.
    """
    path = annotation_file(root, split)
    try:
        check_link(root, str(path.relative_to(root)), may_lead(root))
        data = path.read_bytes() if path.is_file() else b""
    except (OSError, DataError):
        return None
    return (data.count(b'"file_name"'), data.count(b'"caption"')) if data else None


def check_captions(data: DataConfig, preset: str) -> None:
    """Raise DataError unless both splits have a file of captions: told before seconds go by with imports."""
    for split in SPLITS.values():
        _check_there(annotation_file(data.folder, split), prepare_command(data, preset))


def prepare_command(data: DataConfig, preset: str) -> str:
    """What gets the data of a configuration that came through `preset`."""
    if preset == "own":
        return f"{PREPARE} --images DIR --root {shlex.quote(data.root)}"
    which = f"--preset {preset}" if preset != "base" else f"--train-fraction {data.train_fraction:g}"
    return f"{PREPARE} {which} --root {shlex.quote(data.root)}"


def _check_there(path: Path, get_them: str) -> None:
    if not path.is_file():
        yours = "or use yours: --set data.root=DIR"
        raise DataError(f"no captions at {path} (data.root). Get them: {get_them}, {yours}")


@contextmanager
def opened(root: Path, split: str, get_them: str) -> Iterator[BinaryIO]:
    """The file of the captions, if it and its folders are where they may be. Raises as `checked_rows`."""
    path = annotation_file(root, split)
    try:
        check_root(root, LAYOUT)
        check_link(root, str(path.relative_to(root)), may_lead(root))
        _check_there(path, get_them)
        if (size := path.stat().st_size) > MAX_FILE_SIZE:
            raise DataError(f"{path} has {size:,} bytes (data.root). At most 2 GiB are read")
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        what = error.filename or path
        raise EnvironmentProblem(f"cannot read {what} ({error.strerror}). Check its permissions") from None


def _load(root: Path, split: str, get_them: str) -> Any:
    path, again = annotation_file(root, split), f"Get it again: {get_them}"
    with opened(root, split, get_them) as file:
        data = file.read()
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start:,}). {again}") from None
    except json.JSONDecodeError as error:
        place = f"byte {len(error.doc[: error.pos].encode()):,}, line {error.lineno:,}"
        raise DataError(f"{path} is not whole JSON: {error.msg} ({place}). {again}") from None
    except (ValueError, RecursionError):  # a number of thousands of digits; thousands of nested brackets
        raise DataError(f"{path} has absurd numbers or nesting (data.root). {again}") from None


def checked_rows(root: Path, split: str, get_them: str) -> tuple[Rows, Rows, list[str], object]:
    """Images and annotations with sound ids, safe file names and cleaned texts, notes on the rest, and of what data
    the file says that it is."""
    path = annotation_file(root, split)
    content = _load(root, split, get_them)
    if not isinstance(content, dict):
        raise DataError(f"{path} holds {_kind(content)}, not an object (data.root). Expected captions_*.json")
    images: Any = content.get("images")
    annotations: Any = content.get("annotations", [])
    for key, rows in (("images", images), ("annotations", annotations)):
        if not isinstance(rows, list):
            raise DataError(f'"{key}" is {_kind(rows)}, not a list ({path}). Expected captions_*.json')
    if not any(isinstance(row, dict) and "caption" in row for row in annotations):
        raise DataError(f"{path} has no captions; expected captions_*.json, not instances or image_info")
    notes: list[str] = []
    images = _sound_rows(path, "images", images, notes)
    _number(path, annotations, notes)
    annotations = _sound_rows(path, "annotations", annotations, notes)
    for row in images:
        if not _FILE_NAME.fullmatch(row["file_name"]):
            name = f"{row['file_name'][:80]!r} of image {row['id']}"
            raise DataError(f"file_name {name} is not a plain .jpg or .png name ({path}). Rename it")
    often = Counter(row["file_name"] for row in images)
    if again := [name for name, count in often.items() if count > 1]:
        many = f"{len(images) - len(often):,} of {len(images):,} images have the same file as another id"
        notes.append(f"{path.name}: {many}, first {again[0]}: recall counts each as a picture of its own")
    info = content.get("info")
    described = info.get("description") if isinstance(info, dict) else None
    return *_joined(path, images, annotations, notes), notes, described


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", type(None): "missing or null"}
    return names.get(type(value), "a plain value")


def _number(path: Path, rows: list[Any], notes: list[str]) -> None:
    """Give ids to captions that have none, or whose ids start at 1 for each image: nothing else needs them."""
    rows = [row for row in rows if isinstance(row, dict)]
    ids = [(row.get("image_id"), row.get("id")) for row in rows]
    try:
        distinct, pairs = len({number for _, number in ids}), len(set(ids))
    except TypeError:  # a list or an object: its row is malformed
        return
    lacking = sum(number is None for _, number in ids)
    if rows and (lacking == len(rows) or (not lacking and distinct < pairs == len(rows))):
        notes.append(f"{path.name}: caption ids are missing or repeat: numbered in the order of the file")
        for number, row in enumerate(rows, start=1):
            row["id"] = number


def _sound_rows(path: Path, key: str, rows: list[Any], notes: list[str]) -> Rows:
    """Rows whose fields have the right kinds, with ids as int; at most 1 % are dropped."""
    sound: dict[int, dict[str, Any]] = {}
    malformed: list[str] = []
    for position, row in enumerate(rows):
        place = f"{key}[{position}]"
        if problem := _problem(row, key, place, path):
            malformed.append(f"{place} {problem}")
        elif row["id"] in sound:
            raise DataError(f"{place} repeats id {row['id']} ({path}). Each id must be unique")
        else:
            sound[row["id"]] = row
    _drop(path, len(malformed), len(rows), f"{key} are malformed", iter(malformed), notes)
    return list(sound.values())


def _problem(row: Any, key: str, place: str, path: Path) -> str | None:
    """What makes this row useless. Integers written as texts or as 1.0 become integers, in place."""
    if not isinstance(row, dict):
        return f"is {_kind(row)}"
    for field in _ID_FIELDS[key]:
        value: Any = row.get(field)
        whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53  # as pandas writes ids
        if whole or (isinstance(value, str) and _INTEGER.fullmatch(value)):
            value = row[field] = int(value)
        if isinstance(value, bool | float) or (isinstance(value, int) and value.bit_length() > 63):
            raise DataError(f"{field} of {place} is {value!r:.40} ({path}). Ids must be whole numbers")
        if not isinstance(value, int):
            return f"has no usable {field}"
    return None if isinstance(row.get(_TEXT_FIELD[key]), str) else f"has no usable {_TEXT_FIELD[key]}"


def _joined(path: Path, images: Rows, annotations: Rows, notes: list[str]) -> tuple[Rows, Rows]:
    """Only captions that have a text and an image, only images that have a caption."""
    for row in annotations:
        row["caption"] = clean(row["caption"])
    written = [row for row in annotations if row["caption"]]
    if empty := len(annotations) - len(written):
        notes.append(f"{path.name}: {empty:,} of {len(annotations):,} captions are empty, dropped")
    known = {row["id"] for row in images}
    owned = [row for row in written if row["image_id"] in known]
    orphans = (f"caption {row['id']}" for row in written if row["image_id"] not in known)
    _drop(path, len(written) - len(owned), len(written), "captions belong to no image", orphans, notes)
    described = {row["image_id"] for row in owned}
    kept = [row for row in images if row["id"] in described]
    bare = (f"image {row['id']}" for row in images if row["id"] not in described)
    _drop(path, len(images) - len(kept), len(images), "images have no caption", bare, notes)
    if not kept:
        raise DataError(f"{path} has no image with a caption (data.root). Expected captions_*.json")
    return kept, owned


def _drop(path: Path, dropped: int, total: int, what: str, bad: Iterator[str], notes: list[str]) -> None:
    if dropped:
        found = f"{dropped:,} of {total:,} {what}, first {next(bad)}"
        if dropped > MAX_DROPPED * total:
            raise DataError(f"{found} ({path}). At most 1 % may be so")
        notes.append(f"{path.name}: {found}, dropped")
