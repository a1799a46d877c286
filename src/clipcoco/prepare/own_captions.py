"""A person's own captions file, in whatever published form -> captions and split by picture."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from clipcoco.data.annotations import MAX_FILE_SIZE
from clipcoco.errors import DataError, EnvironmentProblem
from clipcoco.prepare.own_json import json_rows
from clipcoco.prepare.own_rows import SPLIT_NAMES, Row
from clipcoco.prepare.own_tables import table_rows

PARTS = ("train", "val", "test")  # a picture that is said to be in several belongs to the last of them
_BOMS = ((b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_BINARY = (  # how files begin that people name by mistake
    (b"PK\x03\x04", "a zip archive, as workbooks (.xlsx, .ods) and .npz files are"),
    (b"\xd0\xcf\x11\xe0", "an old workbook (.xls)"),
    (b"PAR1", "a Parquet file"),
    (b"ARROW1", "an Arrow file"),
    (b"\xff\xff\xff\xff", "an Arrow file"),
    (b"\x1f\x8b", "a gzip file"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ", "an xz file"),
    (b"\x28\xb5\x2f\xfd", "a zstd file"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"\x93NUMPY", "a NumPy array (.npy)"),
    (b"\x89HDF", "an HDF5 file"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"GIF8", "a picture"),
    (b"RIFF", "a picture or a sound"),
    (b"%PDF", "a PDF"),
    (b"{\\rtf", "a rich text document (.rtf)"),
    (b"\x80\x04", "a pickle"),
    (b"\x80\x05", "a pickle"),
    (b"<", "a web page or XML"),
)


def read_rows(path: Path, notes: list[str], chosen: Mapping[str, str]) -> list[Row]:
    """The rows of a captions file, those that are of no use included; `chosen` as `chosen_columns` has it.

    Raises DataError when it is in no form that is read, EnvironmentProblem when it may not be read.
    """
    text = _text(path).replace("\r\n", "\n").replace("\r", "\n")  # other separators of lines stay in the captions
    return (json_rows if text.lstrip().startswith(("{", "[")) else table_rows)(text, path, notes, chosen)


def by_image(
    rows: list[Row], column: str, captions: Path, notes: list[str]
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Captions, each once, and part, "train", "val" or "test", by the picture's name in `column`.

    Without a column of splits all are "train".
    """
    texts: dict[str, list[str]] = {}
    parts: dict[str, str] = {}
    split_column = any(row.split for row in rows)
    for row in rows:
        if not (name := row.names.get(column)) or not row.captions:
            continue
        part = SPLIT_NAMES.get(row.split, "") if split_column else PARTS[0]
        if not part:
            where = f"split is {row.split!r:.40} ({captions}, {row.place})"
            raise DataError(f"{where}. It must be train, val or test, or the column be called otherwise")
        texts.setdefault(name, []).extend(row.captions)
        parts[name] = max(parts.get(name, PARTS[0]), part, key=PARTS.index)
    mended = sum(row.mended for row in rows)
    if mended:
        notes.append(f"{mended:,} captions held HTML (&amp;, <br/>) or invisible characters: cleaned")
    if unread := [row for row in rows if row.unread]:
        many = f"{sum(row.unread for row in unread):,} values among the captions are not texts"
        notes.append(f"{many}, first in {unread[0].place}: not read")
    return texts, parts


def once(texts: dict[str, list[str]], notes: list[str]) -> None:
    """Leave out what repeats a caption of the same picture, and say which captions several pictures share."""
    total = sum(map(len, texts.values()))
    for name, captions in texts.items():
        texts[name] = list(dict.fromkeys(captions))
    kept = sum(map(len, texts.values()))
    if kept < total:
        notes.append(f"{total - kept:,} of {total:,} captions repeat another of the same picture: each is kept once")
    often = Counter(caption for captions in texts.values() for caption in captions)
    if shared := sum(count for count in often.values() if count > 1):
        notes.append(f"{shared:,} of {kept:,} captions stand word for word with several pictures")


def _text(path: Path) -> str:
    try:
        if path.is_dir():
            beside = "Texts beside the pictures, NAME.txt, are found by --images DIR alone: leave out --captions"
            raise DataError(f"no captions file at {path}, but a folder. {beside}")
        if not path.is_file():
            raise DataError(f"no captions file at {path}. Name the file that lists pictures and captions")
        if (size := path.stat().st_size) > MAX_FILE_SIZE:
            raise DataError(f"the captions file has {size:,} bytes ({path}). At most 2 GiB are read")
        data = path.read_bytes()
    except OSError as error:
        raise EnvironmentProblem(f"cannot read {path} ({error.strerror}). Check its permissions") from None
    return decoded(data, path)


def decoded(data: bytes, path: Path) -> str:
    """Text in UTF-8, or in the other Unicode that a spreadsheet saves. Raises DataError, which says what it is."""
    encoding = next((name for mark, name in _BOMS if data.startswith(mark)), "")
    if not encoding and len(data) > 3 and data[:4].count(0) == 2:  # UTF-16 without its mark
        encoding = "utf-16-le" if data[0] else "utf-16-be"
    if encoding:
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            raise DataError(f"the captions file is not whole {encoding.upper()} ({path}). Save it as UTF-8") from None
    if what := kind_of(data):
        raise DataError(f"the captions file is {what} ({path}), not text. Save its table as CSV in UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        how = f"Save it as UTF-8; if it is Windows-1252, by: iconv -f CP1252 -t UTF-8 {path.name} > utf-8.csv"
        raise DataError(f"the captions file is not UTF-8 ({path}, line {line:,}). {how}") from None


def kind_of(data: bytes) -> str:
    """What a file is that begins with `data`, in words; "" where it may be text."""
    if data[257:262] == b"ustar":
        return "a tar archive"
    return next((what for start, what in _BINARY if data.startswith(start)), "")
