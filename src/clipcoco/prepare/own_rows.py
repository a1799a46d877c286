"""A row of a captions file, whatever its form: from cells with the names of their columns."""

import ast
import html
import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from html.entities import html5

from clipcoco.data.annotations import clean

CHOSEN = ("chosen_image", "chosen_caption")  # what the columns are called here that a person named, alone to count
# Columns that may name the picture: the one whose values are found counts, of equals the first.
IMAGE = (
    CHOSEN[0],
    *("image", "file_name", "filename", "image_name", "path", "filepath"),
    *("image_path", "image_file", "img", "img_path", "file", "image_id"),
)
# Columns of captions: all count, those with a number as well (caption2, caption_1, pandas' caption.1).
CAPTION = (
    CHOSEN[1],
    *("caption", "captions", "text", "comment", "raw", "title", "description", "sentence", "sentences"),
)
SPLIT = "split"
SPLIT_NAMES = {"train": "train", "restval": "train", "test": "test"} | dict.fromkeys(
    ("val", "valid", "validation", "dev"), "val"
)
ACCEPTED = (
    f"Name them {'|'.join(IMAGE[1:7])} and {'|'.join(CAPTION[1:])}, or say which they are: "
    "--image-column NAME --caption-column NAME"
)
SUFFIXES = (".jpg", ".jpeg", ".png")

_NUMBERED = re.compile(rf"(?:{'|'.join(CAPTION)})[ _.-]?\d+")
_MARKUP = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z]\w{1,31});|<br\s*/?>|</?p>", re.IGNORECASE)
_INVISIBLE = re.compile("[\u00ad\u200b\u2060\ufeff]")  # joiners, which Persian and emoji need, stay
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f]")  # the words on both sides of one are two
_CONCATENATED = re.compile(r"""(['"])\s+\1""")  # numpy writes its arrays of texts without commas


@dataclass(frozen=True)
class Row:
    """One row, of use when it names a picture and has a caption."""

    place: str  # in the file: "line 5"
    names: Mapping[str, str] = field(default_factory=dict)  # by the column that may name the picture
    captions: tuple[str, ...] = ()  # cleaned, none of them empty
    split: str = ""  # in lower case; empty in files without that column
    mended: int = 0  # captions that held HTML or invisible characters
    unread: int = 0  # values among the captions that are none


@lru_cache(1000)  # the same few in each of a million objects
def column(name: str) -> str:
    """The name of a column as it is compared: "Image Name" is image_name."""
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def chosen_columns(image: str, caption: str) -> dict[str, str]:
    """By the names of columns that a person gave, "" for none: what they are called here."""
    return {column(given): here for given, here in zip((image, caption), CHOSEN, strict=True) if given}


def holds_captions(name: str) -> bool:
    return name in CAPTION or _NUMBERED.fullmatch(name) is not None


def describes(columns: Iterable[str]) -> bool:
    """Whether these are columns of pictures and captions."""
    columns = list(columns)
    return any(name in IMAGE for name in columns) and any(map(holds_captions, columns))


def tell(columns: Collection[str], notes: list[str]) -> None:
    """Say what is read of several columns of captions, and which columns are not read."""
    known = [name for name in columns if name and name != SPLIT and name not in (*IMAGE, *CHOSEN)]
    captions = [name for name in known if holds_captions(name) and CHOSEN[1] not in columns]
    if len(captions) > 1:
        notes.append(f"captions are read from {len(captions)} columns: {', '.join(captions):.200}")
    if others := [name for name in known if name not in captions]:
        names = ", ".join(repr(name)[:60] for name in others[:10])
        notes.append(f"{len(others):,} column{'s are' if len(others) > 1 else ' is'} not read: {names}")


def row(place: str, cells: Iterable[tuple[str, object]]) -> Row:
    cells = list(cells)
    given = {name for name, _ in cells}
    names: dict[str, str] = {}
    captions: list[str] = []
    unread: list[object] = []
    split, mended = "", 0
    for name, value in cells:
        if name == SPLIT:
            split = split_name(value)
        elif name not in CHOSEN and (CHOSEN[0] if name in IMAGE else CHOSEN[1]) in given:
            continue
        elif holds_captions(name):
            found = texts(value, unread)
            plain = [_readable(text) for text in found]
            mended += sum(map(str.__ne__, found, plain))
            captions += [text for text in map(clean, plain) if text]
        elif name in IMAGE and (picture := _picture(value)):
            names[name] = picture
    folder, file = names.get("filepath", ""), names.get("filename", "")
    if file and folder and not folder.lower().endswith(SUFFIXES):  # as Karpathy's files say it
        names["filepath"] = f"{folder}/{file}"
    return Row(place, names, tuple(captions), split, mended, len(unread))


def split_name(value: object) -> str:
    """In lower case; another value stays as it is written, so that it is refused by its name."""
    if isinstance(value, list) and len(value) < 2:
        value = value[0] if value else None
    return "" if value is None or value != value else str(value).strip().lower()


def texts(value: object, unread: list[object]) -> list[str]:
    """Of a text, of a text that is a list in JSON or Python, of a number, of lists, and of Karpathy's {"raw": text}.

    All else joins `unread`. No recursion: thousands of brackets must not end in a RecursionError.
    """
    found, left = [], [value]
    while left:
        value = left.pop()
        more: list[object] = []
        if isinstance(value, str):
            listed = _listed(value) if value.lstrip().startswith("[") else None
            found += [value] if listed is None else []
            more = listed or []
        elif isinstance(value, list | tuple):
            more = list(value)
        elif isinstance(value, dict) and (named := [name for name in value if holds_captions(column(str(name)))]):
            more = [value[name] for name in ([CHOSEN[1]] if CHOSEN[1] in named else named)]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found += [str(value)] if value == value else []  # pandas writes NaN where nothing is
        elif value is not None:
            unread.append(value)
        left += reversed(more)
    return found


def _listed(text: str) -> list[object] | None:
    for parse in (json.loads, ast.literal_eval):
        if parse is ast.literal_eval and (len(text) > 10**5 or _CONCATENATED.search(text)):
            return None
        try:
            value = parse(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
        if isinstance(value, list):
            return value
    return None


def _picture(value: object) -> str:
    """The name of a picture: a text, a number, or Hugging Face's {"path": text, "bytes": ...}."""
    if isinstance(value, dict):
        value = value.get("path")
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() else ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value.strip() if isinstance(value, str) else ""


def _readable(text: str) -> str:
    """What a browser shows of a text that was taken from a page."""
    if "&" in text or "<" in text:
        text = _MARKUP.sub(lambda mark: _character(mark[0]), text)
    text = _CONTROL.sub(" ", text)
    return text if text.isascii() else _INVISIBLE.sub("", text)


def _character(mark: str) -> str:
    if mark.startswith("<"):
        return " "
    return html.unescape(mark) if mark[1] == "#" or mark[1:] in html5 else mark
