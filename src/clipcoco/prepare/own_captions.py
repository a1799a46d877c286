"""Captions files of one's own, in the forms in which they are published -> rows.

- A table with a header line, separated by commas, semicolons, tabs or bars (Flickr8k and Flickr30k on Kaggle,
  the Flickr30k table on Hugging Face).
- Flickr's token form without a header: "NAME.jpg#0", a tab, the caption.
- JSON lines, one object a line.
"""

import csv
import io
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from clipcoco.data.annotations import MAX_FILE_SIZE, clean
from clipcoco.errors import DataError, EnvironmentProblem

# The names of columns, in lower case; the first that is there counts.
IMAGE = ("image", "file_name", "filename", "image_name", "path", "filepath")
CAPTION = ("caption", "captions", "text", "comment", "raw", "title")
SPLIT = "split"
ACCEPTED = f"Name them {'|'.join(IMAGE)} and {'|'.join(CAPTION)}"
PARTS = ("train", "val", "test")  # a picture that is said to be in several belongs to the last of them
_SPLIT_NAMES = {"train": "train", "restval": "train", "test": "test"} | dict.fromkeys(
    ("val", "valid", "validation", "dev"), "val"
)
SUFFIXES = (".jpg", ".jpeg", ".png")

_QUOTING = ",;"  # separators of tables in which a caption may be quoted and run over several lines
_PLAIN = "\t|"  # and of those in which a line is a row
_TOKEN = re.compile(r"([^\t]+?)(?:#\d+)?\t(.*)")


@dataclass(frozen=True)
class Row:
    """One row; without an image or without a caption it is of no use."""

    line: int
    image: str = ""
    captions: tuple[str, ...] = ()  # cleaned, none of them empty
    split: str = ""  # in lower case; empty in files without that column

    @property
    def whole(self) -> bool:
        return bool(self.image and self.captions)


def read_rows(path: Path) -> list[Row]:
    """The rows of a captions file, those that are of no use included.

    Raises DataError when it is in none of the forms above, EnvironmentProblem when it may not be read.
    """
    text = _text(path)
    first = _lines(text).readline().rstrip("\n")
    if first.startswith("{"):
        return list(_json_rows(text, path))
    headers = {delimiter: _header(first, delimiter) for delimiter in _QUOTING + _PLAIN}
    for delimiter, header in headers.items():
        if _first(IMAGE, header) and _first(CAPTION, header):
            return list(_table_rows(text, delimiter, header))
    if (token := _TOKEN.fullmatch(first)) and token[1].lower().endswith(SUFFIXES):
        return list(_token_rows(text))
    raise _unknown(max(headers.values(), key=len), path)


def by_image(rows: list[Row], captions: Path) -> tuple[dict[str, list[str]], dict[str, str], list[str]]:
    """Captions and part, "train", "val" or "test", by the picture's name in the file, and notes on the rest.

    Without a column of splits all are "train". Raises DataError when more than half the rows are of no use.
    """
    notes: list[str] = []
    useless = [f"line {row.line:,}" for row in rows if not row.whole]
    hint = "Each row needs a picture's name and a text"
    left_out(useless, len(rows), f"rows lack an image or a caption ({captions})", hint, notes)
    rows = [row for row in rows if row.whole]
    texts: dict[str, list[str]] = {}
    parts: dict[str, str] = {}
    split_column = any(row.split for row in rows)
    for row in rows:
        part = _SPLIT_NAMES.get(row.split, "") if split_column else PARTS[0]
        if not part:
            where = f"split is {row.split!r:.40} ({captions}, line {row.line:,})"
            raise DataError(f"{where}. It must be train, val or test, or the column be called otherwise")
        texts.setdefault(row.image, []).extend(row.captions)
        parts[row.image] = max(parts.get(row.image, PARTS[0]), part, key=PARTS.index)
    if not texts:
        raise DataError(f"no captions in {captions}. Each row needs a picture's name and a text")
    return texts, parts, notes


def left_out(bad: Collection[str], total: int, what: str, hint: str, notes: list[str]) -> None:
    """A note; an error when it is more than half: then the wrong file or folder was named."""
    if bad:
        found = f"{len(bad):,} of {total:,} {what}, first {', '.join(list(bad)[:3])}"
        if 2 * len(bad) > total:
            raise DataError(f"{found}. {hint}")
        notes.append(f"{found}: left out")


def _unknown(columns: list[str], path: Path) -> DataError:
    found = ", ".join(columns)[:100]
    return DataError(f"no columns of images and captions, but {found!r} ({path}, line 1). {ACCEPTED}")


def _text(path: Path) -> str:
    try:
        if not path.is_file():
            raise DataError(f"no captions file at {path}. Name the file that lists pictures and captions")
        if (size := path.stat().st_size) > MAX_FILE_SIZE:
            raise DataError(f"the captions file has {size:,} bytes ({path}). At most 2 GiB are read")
        data = path.read_bytes()
    except OSError as error:
        raise EnvironmentProblem(f"cannot read {path} ({error.strerror}). Check its permissions") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"the captions file is not UTF-8 ({path}, line {line:,}). Save it as UTF-8") from None


def _lines(text: str) -> io.StringIO:
    """All three kinds of line ends are one; other separators of lines stay in the captions."""
    return io.StringIO(text, newline=None)


def _header(line: str, delimiter: str) -> list[str]:
    return [_unquoted(name).strip().lower() for name in line.split(delimiter)]


def _unquoted(field: str) -> str:
    """Without the quotation marks that some programs write around fields; those of a caption stay."""
    inner = field.strip()
    if len(inner) < 2 or not inner.startswith('"') or not inner.endswith('"'):
        return field
    inner = inner[1:-1]
    return field if '"' in inner.replace('""', "") else inner.replace('""', '"')


def _first(names: tuple[str, ...], columns: list[str] | Mapping[str, object]) -> str:
    return next((name for name in names if name in columns), "")


def _row(line: int, fields: Mapping[str, object]) -> Row:
    image = fields.get(_first(IMAGE, fields))
    split = fields.get(SPLIT)
    captions = _captions(fields.get(_first(CAPTION, fields)))
    split = split.strip().lower() if isinstance(split, str) else ""
    return Row(line, image.strip(), captions, split) if isinstance(image, str) else Row(line)


def _captions(value: object) -> tuple[str, ...]:
    """Of a text, of a list, or of a text that is a list in JSON."""
    if isinstance(value, str):
        try:
            listed = json.loads(value) if value.lstrip().startswith("[") else None
        except (ValueError, RecursionError):
            listed = None
        value = listed if isinstance(listed, list) else [value]
    if not isinstance(value, list):
        return ()
    return tuple(text for text in (clean(item) for item in value if isinstance(item, str)) if text)


def _table_rows(text: str, delimiter: str, header: list[str]) -> Iterator[Row]:
    quoted = delimiter in _QUOTING
    reader = csv.reader(
        _lines(text), delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE, strict=True
    )
    next(reader)
    last = len(header) - 1
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error:  # a quotation mark without its other one: all lines until the next are lost
            yield from map(Row, range(line, reader.line_num + 1))
            continue
        if not any(fields):
            continue
        if len(fields) > len(header) and header[last] in CAPTION:  # it holds separators and is not quoted
            fields[last:] = [delimiter.join(fields[last:])]
        if not quoted:
            fields = [_unquoted(field) for field in fields]
        yield _row(line, dict(zip(header, fields, strict=False)))


def _token_rows(text: str) -> Iterator[Row]:
    for number, line in enumerate(_lines(text), start=1):
        if token := _TOKEN.fullmatch(line.rstrip("\n")):
            yield _row(number, {"image": token[1], "caption": token[2]})
        elif line.strip():
            yield Row(number)


def _json_rows(text: str, path: Path) -> Iterator[Row]:
    for number, line in enumerate(_lines(text), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        fields = {key.lower(): field for key, field in value.items()} if isinstance(value, dict) else {}
        if number == 1 and fields and not (_first(IMAGE, fields) and _first(CAPTION, fields)):
            raise _unknown(list(fields), path)
        yield _row(number, fields)
