"""Captions in JSON -> rows.

- JSON lines, one object a line, and an array of such objects (LAVIS).
- COCO's {"images": [...], "annotations": [...]}; Karpathy's {"images": [{"filename", "split", "sentences"}]}.
- {"NAME.jpg": [captions]}, and columns, {"image": [...], "caption": [...]}.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from clipcoco.errors import DataError
from clipcoco.prepare.own_rows import IMAGE, SPLIT, Row, column, describes, row, tell, texts

_FORMS = (
    "Read are JSON lines and JSON arrays of objects with image and caption, COCO's and Karpathy's JSON, "
    "and {NAME: [captions]}"
)


def json_rows(text: str, path: Path, notes: list[str]) -> list[Row]:
    """Raises DataError for JSON of another form, and for what is none."""
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
        if _object(lines[0][1]) is None:
            damage = f"{error.msg}, line {error.lineno:,}"
            raise DataError(f"the captions file is not whole JSON ({path}: {damage}). {_FORMS}") from None
        entries: list[Any] | None = [_object(line) for _, line in lines]
        places = [f"line {number:,}" for number, _ in lines]
        whole = entries and entries[0]
    except (ValueError, RecursionError):  # a number of thousands of digits; thousands of nested brackets
        raise DataError(f"the captions file has absurd numbers or nesting ({path}). {_FORMS}") from None
    else:
        entries = _entries(whole, notes)
        places = [f"entry {number:,}" for number in range(1, len(entries or ()) + 1)]
    fields = [_fields(entry) for entry in entries or ()]
    if entries is None or (entries and not any(map(describes, fields))):
        raise DataError(f"no images and captions in JSON of this form, {_shape(whole)} ({path}). {_FORMS}")
    tell(dict.fromkeys(name for entry in fields for name in entry), notes)
    return [row(place, entry.items()) for place, entry in zip(places, fields, strict=True)]


def _object(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _fields(entry: object) -> dict[str, Any]:
    return {column(name): value for name, value in entry.items()} if isinstance(entry, dict) else {}


def _shape(value: object) -> str:
    if isinstance(value, dict):
        return f"an object with {', '.join(map(repr, list(value)[:5]))[:100]}"
    if isinstance(value, list):
        return f"an array, first {value[0]!r:.60}" if value else "an empty array"
    return "a single value"


def _entries(value: Any, notes: list[str]) -> list[Any] | None:
    """The objects with an image and captions each that this JSON holds; None for another form."""
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        return None
    images, annotations = value.get("images"), value.get("annotations")
    if isinstance(images, list) and isinstance(annotations, list):
        return _coco(images, annotations, notes)
    if describes(_fields(value)):
        return _columns(value) or [value]
    lists = [entry for entry in value.values() if isinstance(entry, list) and any(map(describes, map(_fields, entry)))]
    if len(lists) == 1:
        return lists[0]
    if value and all(map(texts, value.values())):
        return [{"image": name, "captions": captions} for name, captions in value.items()]
    return None


def _columns(value: dict[str, Any]) -> list[Any]:
    """The rows of {"image": [...], "caption": [...]}, where pandas writes {"0": ...} for each list."""
    lists = {key: [*entry.values()] if isinstance(entry, dict) else entry for key, entry in value.items()}
    pictures = [entry for key, entry in lists.items() if column(key) in IMAGE]
    if not all(isinstance(entry, list) and len(entry) == len(pictures[0]) for entry in lists.values()):
        return []
    return [dict(zip(lists, cells, strict=True)) for cells in zip(*lists.values(), strict=True)]


def _coco(images: list[Any], annotations: list[Any], notes: list[str]) -> list[Any]:
    captions: dict[str, list[Any]] = {}
    for entry in annotations:
        if isinstance(entry, dict):
            captions.setdefault(_id(entry.get("image_id")), []).append(entry.get("caption"))
    rows = [entry if isinstance(entry, dict) else {} for entry in images]
    often = Counter(str(entry.get("file_name")) for entry in rows)
    if again := sum(count - 1 for count in often.values()):
        notes.append(f"{again:,} of {len(rows):,} images name a file that another id names: they are one picture here")
    found = [
        {
            "file_name": entry.get("file_name"),
            SPLIT: entry.get(SPLIT),
            "captions": captions.pop(_id(entry.get("id")), []),
        }
        for entry in rows
    ]
    return found + [{"captions": texts} for texts in captions.values()]  # of no image: of no use


def _id(value: object) -> str:
    return f"{value:.0f}" if isinstance(value, float) and value.is_integer() else str(value)
