"""Captions in JSON -> rows.

- JSON lines, one object a line, and an array of such objects (LAVIS).
- COCO's {"images": [...], "annotations": [...]}; Karpathy's {"images": [{"filename", "split", "sentences"}]}.
- {"NAME.jpg": [captions]} and {"NAME.jpg": {"caption": ..., "split": ...}}.
- Columns, {"image": [...], "caption": [...]}, and pandas' {"0": {"image": ..., "caption": ...}}.
- {"train": ..., "val": ...}, each of them in one of these forms.

A name that occurs twice in an object has all its values: JSON allows it, and none is lost.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from clipcoco.errors import DataError
from clipcoco.prepare.own_rows import (
    CHOSEN,
    IMAGE,
    SPLIT,
    SPLIT_NAMES,
    SUFFIXES,
    Row,
    column,
    describes,
    holds_captions,
    row,
    split_name,
    tell,
    texts,
)

_FORMS = (
    "Read are JSON lines and JSON arrays of objects with image and caption, COCO's and Karpathy's JSON, "
    "and {NAME: [captions]}"
)


def json_rows(text: str, path: Path, notes: list[str], chosen: Mapping[str, str]) -> list[Row]:
    """Raises DataError for JSON of another form, and for text that is not JSON; `chosen` as `chosen_columns` has it."""
    seen: set[str] = set()

    def joined(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        pairs = [(chosen.get(column(name), name), value) for name, value in pairs] if chosen else pairs
        found = _joined(pairs)
        seen.update(found)
        return found

    try:
        whole = json.loads(text, object_pairs_hook=joined)
    except json.JSONDecodeError as error:
        lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
        if _object(lines[0][1], joined) is None:
            damage = f"{error.msg}, line {error.lineno:,}"
            raise DataError(f"the captions file is not whole JSON ({path}: {damage}). {_FORMS}") from None
        entries: list[Any] | None = [_object(line, joined) for _, line in lines]
        places = [f"line {number:,}" for number, _ in lines]
        whole = entries and entries[0]
    except (ValueError, RecursionError):  # a number of thousands of digits; thousands of nested brackets
        raise DataError(f"the captions file has absurd numbers or nesting ({path}). {_FORMS}") from None
    else:
        entries = _entries(whole, path, notes)
        places = [f"entry {number:,}" for number in range(1, len(entries or ()) + 1)]
    if lacking := [name for name, here in chosen.items() if here not in seen]:
        raise DataError(f"nothing in it is called {' or '.join(map(repr, lacking)):.100}, but {_shape(whole)} ({path})")
    fields = [_fields(entry) for entry in entries or ()]
    if entries is None or (entries and not any(map(describes, fields))):
        raise DataError(f"no images and captions in JSON of this form, {_shape(whole)} ({path}). {_FORMS}")
    tell(dict.fromkeys(name for entry in fields for name in entry), notes)
    return [row(place, entry.items()) for place, entry in zip(places, fields, strict=True)]


def _object(line: str, joined: Callable[[Iterable[tuple[str, Any]]], Any]) -> dict[str, Any] | None:
    try:
        value = json.loads(line, object_pairs_hook=joined)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _joined(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """An object in which a name that occurs several times has the list of all its values."""
    pairs = list(pairs)
    joined = dict(pairs)
    if len(joined) < len(pairs):
        several: dict[str, list[Any]] = {}
        for name, value in pairs:
            several.setdefault(name, []).append(value)
        for name, values in several.items():
            if any(value != values[0] for value in values):
                joined[name] = [item for value in values for item in (value if isinstance(value, list) else [value])]
    return joined


def _fields(entry: object) -> dict[str, Any]:
    return _joined((column(name), value) for name, value in entry.items()) if isinstance(entry, dict) else {}


def _shape(value: object) -> str:
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, dict) and "conversations" in first:
        return "conversations as LLaVA has them"
    annotations = value.get("annotations") if isinstance(value, dict) else None
    if isinstance(annotations, list) and annotations and isinstance(annotations[0], dict) and "bbox" in annotations[0]:
        return "boxes as COCO's instances have them"
    if isinstance(value, dict):
        return f"an object with {', '.join(map(repr, list(value)[:5]))[:100]}"
    if isinstance(value, list):
        return f"an array, first {value[0]!r:.60}" if value else "an empty array"
    return "a single value"


def _entries(value: Any, path: Path, notes: list[str]) -> list[Any] | None:
    """The objects with an image and captions each that this JSON holds; None for another form."""
    whole = value if isinstance(value, dict) else {}
    parts = {name: part for name, part in whole.items() if part and column(name) in SPLIT_NAMES}
    if len(parts) < 2:
        return _form(value, path, notes)
    tell([column(name) for name in whole if column(name) not in SPLIT_NAMES], notes)
    found: list[Any] = []
    for name, part in parts.items():
        entries = [_fields(entry) for entry in _form(part, path, notes) or ()]
        if not any(map(describes, entries)):
            return None
        found += [{**entry, SPLIT: entry.get(SPLIT) or name} for entry in entries]
    return found


def _form(value: Any, path: Path, notes: list[str]) -> list[Any] | None:
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        return None
    images, annotations = value.get("images"), value.get("annotations")
    if isinstance(images, list) and images and all(isinstance(name, str) for name in images):
        value = {"image" if name == "images" else name: entry for name, entry in value.items()}
    elif isinstance(images, list) and isinstance(annotations, list):
        first = annotations[0] if annotations and isinstance(annotations[0], dict) else {}
        if "bbox" in first and not any(map(holds_captions, first)):
            return None
        return _coco(images, annotations, notes)
    if describes(_fields(value)):
        return _columns(value, path) or [value]
    lists = [entry for entry in value.values() if isinstance(entry, list) and any(map(describes, map(_fields, entry)))]
    if len(lists) == 1:
        return lists[0]
    if not {"images", *IMAGE}.isdisjoint(_fields(value)):  # a column, not a picture that is called so
        return None
    unread: list[object] = []
    sound = [bool(texts(entry, unread)) for entry in value.values() if entry]  # an empty one is a row of no use
    return list(_named(value)) if sound and all(sound) else None


def _named(value: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of {NAME: captions}, where a name may have objects, and pandas numbers objects with names."""
    for name, entry in value.items():
        objects = isinstance(entry, list) and entry and all(isinstance(one, dict) for one in entry)
        for one in entry if objects else [entry]:
            fields = _fields(one) if isinstance(one, dict) else {"captions": one}
            if name.lower().endswith(SUFFIXES) or fields.keys().isdisjoint(IMAGE[:-1]):
                fields[next((free for free in IMAGE[1:] if free not in fields), IMAGE[1])] = name
            yield fields


def _columns(value: dict[str, Any], path: Path) -> list[Any]:
    """The rows of {"image": [...], "caption": [...]}, where pandas writes {"0": ...} for each list."""
    lists = {key: [*entry.values()] if isinstance(entry, dict) else entry for key, entry in value.items()}
    pictures = next(key for key in value if column(key) in IMAGE)
    if all(isinstance(entry, list) and len(entry) == len(lists[pictures]) for entry in lists.values()):
        return [dict(zip(lists, cells, strict=True)) for cells in zip(*lists.values(), strict=True)]
    if not isinstance(value[pictures], list):
        return []
    sizes = [f"{key!r:.40} {len(entry) if isinstance(entry, list) else 'no list'}" for key, entry in lists.items()]
    where = f"columns of different lengths ({path}: {', '.join(sizes):.200})"
    raise DataError(f"{where}. Each column needs a value for each picture")


def _coco(images: list[Any], annotations: list[Any], notes: list[str]) -> list[Any]:
    rows = [_fields(entry) for entry in images]
    exact = {_id(entry.get("id")) for entry in rows}
    of_number = Counter(map(_number, exact))
    owners = {_number(one): one for one in exact if of_number[_number(one)] == 1}  # "0007" where the other says 7
    captions: dict[str, dict[str, list[Any]]] = {}  # by image and split
    names = {name: None for entry in rows for name in entry if holds_captions(name)}
    for entry in (_fields(entry) or {"captions": entry} for entry in annotations):
        names |= dict.fromkeys(entry)
        owner = _id(entry.get("image_id"))
        owner = owner if owner in exact else owners.get(_number(owner), owner)
        captions.setdefault(owner, {}).setdefault(split_name(entry.get(SPLIT)), []).append(entry)
    tell([name for name in names if name != "id"], notes)
    often = Counter(str(entry.get("file_name")) for entry in rows)
    if again := sum(count - 1 for count in often.values()):
        notes.append(f"{again:,} of {len(rows):,} images name a file that another id names: they are one picture here")
    found = []
    for entry in rows:
        own = {name: value for name, value in entry.items() if holds_captions(name)}
        for part, more in (captions.pop(_id(entry.get("id")), None) or {"": []}).items():
            split = sorted({part, split_name(entry.get(SPLIT))} - {""})  # two of them are refused by name
            name = entry.get(CHOSEN[0], entry.get("file_name"))
            found.append({"file_name": name, SPLIT: split, "captions": [own, *more] if own else more})
    return found + [{"captions": more} for parts in captions.values() for more in parts.values()]  # of no image: no use


def _id(value: object) -> str:
    return f"{value:.0f}" if isinstance(value, float) and value.is_integer() else str(value).strip()


def _number(name: str) -> str:
    return (name.lstrip("0") or "0") if name.isdecimal() else name
