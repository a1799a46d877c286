"""Pictures with captions inside one file, tar shards (webdataset, img2dataset) and Parquet -> rows, and files.

What is packed is untrusted data. Of a tar only regular files with plain names are written, each below the shard's own
folder; in Parquet a picture has no name but its row's number.
"""

import json
import os
import posixpath
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clipcoco.disk.files import need_room, read_own, temporary_name, write_json
from clipcoco.disk.links import own_folder, refuse_links
from clipcoco.errors import DataError, EnvironmentProblem
from clipcoco.events import ReportTask, TaskProgress
from clipcoco.prepare.own_captions import decoded
from clipcoco.prepare.own_pictures import Found
from clipcoco.prepare.own_rows import IMAGE, SPLIT, SUFFIXES, Row, column, describes, holds_captions, row

PICTURES = (*SUFFIXES, ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".avif")  # by name; the content decides
TEXTS = (".txt", ".caption")  # beside a picture: one caption a line
TARS = (".tar", ".tar.gz", ".tgz")
PARQUET = ".parquet"

MOST_TEXT, _MOST_PICTURE = 2**20, 2**28  # bytes that are read
_SAID = ("caption", "captions", "text")  # in the JSON beside a picture, which has other texts, too
_DONE = ".done.json"


@dataclass(frozen=True)
class Pack:
    path: Path
    folder: str  # where its pictures come to lie, relative to that of all packs
    size: int  # of its pictures, in bytes, or somewhat more
    image: str = ""  # of Parquet: the column with the pictures


def packed_rows(path: Path, folder: str, chosen: Mapping[str, str]) -> tuple[list[Row], Pack | None]:
    """What a pack says of its pictures, by the names that they will have; no pack for Parquet with names of files.

    Raises DataError for one that is damaged, EnvironmentProblem where Parquet can't be read for want of pyarrow.
    """
    return (_parquet_rows if path.name.lower().endswith(PARQUET) else _tar_rows)(path, folder, chosen)


def unpack(packs: Sequence[Pack], target: Path, report: ReportTask) -> None:
    """Put the pictures below `target`, unless they are there from an earlier call. Raises as `packed_rows`."""
    own_folder(target)
    refuse_links(target, DataError)
    stamps = {pack: [pack.path.stat().st_size, pack.path.stat().st_mtime_ns] for pack in packs}
    left = [pack for pack in packs if _recorded(target / f"{pack.folder}{_DONE}") != stamps[pack]]
    need_room(target, sum(pack.size for pack in left), "unpacking needs", "--root", "give another --root")
    for pack in left:
        done = 0
        for name, data in _pictures(pack):
            report(TaskProgress(f"unpack {pack.path.name}", done, pack.size, "bytes"))
            done = min(pack.size - 1, done + len(data))
            file = target / pack.folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            half = temporary_name(file)
            half.write_bytes(data)
            os.replace(half, file)
        report(TaskProgress(f"unpack {pack.path.name}", pack.size, pack.size, "bytes"))
        (target / pack.folder).mkdir(parents=True, exist_ok=True)
        write_json(target / f"{pack.folder}{_DONE}", stamps[pack])


def promised(names: list[str]) -> Found:
    """The pictures that will be there; those whose names lead elsewhere stay in their pack."""
    plain = {name: name for name in names if is_plain(name)}
    return Found(plain, [], [name for name in names if name not in plain], [], [])


def is_plain(name: str) -> bool:
    """Whether a file may have this name below a folder: it leads nowhere else, and shows as it is."""
    parts = name.split("/")
    plain = name.isprintable() and "\\" not in name and ":" not in name
    return plain and len(parts) <= 20 and all(part not in ("", ".", "..") and len(part) <= 150 for part in parts)


def said_beside(suffix: str, data: bytes, path: Path) -> list[str]:
    """The captions in a file beside a picture. Raises DataError where it is no text."""
    text = decoded(data, path)
    if suffix in TEXTS:
        return [line for line in text.splitlines() if any(map(str.isalpha, line))]  # boxes of YOLO's are numbers
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return []
    found = [value.get(name) for name in _SAID] if isinstance(value, dict) else []
    return [text for one in found for text in (one if isinstance(one, list) else [one]) if isinstance(text, str)]


# ---- tar


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(path) as tar:
            yield tar
    except (tarfile.TarError, zlib.error, EOFError, ValueError, OverflowError) as error:
        raise DataError(f"{path} is a damaged tar archive: {error or 'it ends early'}. Get it again") from None
    except OSError as error:
        if error.errno is None:  # gzip's own
            raise DataError(f"{path} is a damaged tar archive: {error}. Get it again") from None
        raise EnvironmentProblem(f"cannot read {path} ({error.strerror}). Check its permissions") from None


def _members(tar: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, str, str, str]]:
    """The regular files, each with its name, key and suffix: webdataset's begins at the first dot."""
    for member in tar:
        name = posixpath.normpath(member.name)
        folder, base = posixpath.split(name)
        stem, dot, suffix = base.partition(".")
        if member.isreg() and stem:  # else hidden
            yield member, name, f"{folder}/{stem}", dot + suffix.lower()


def _tar_rows(path: Path, folder: str, chosen: Mapping[str, str]) -> tuple[list[Row], Pack]:
    pictures: dict[str, str] = {}
    texts: dict[str, dict[str, list[str]]] = {}
    size = 0
    with _opened(path) as tar:
        for member, name, key, suffix in _members(tar):
            if suffix in PICTURES:
                pictures.setdefault(key, name)
                size += member.size
            elif suffix in (*TEXTS, ".json") and member.size <= MOST_TEXT and (content := tar.extractfile(member)):
                try:
                    texts.setdefault(key, {})[suffix] = said_beside(suffix, content.read(), path / name)
                except DataError:
                    continue  # no text: its picture counts among those without
    rows = []
    for key, name in pictures.items():
        said = texts.get(key, {})
        captions = next((said[suffix] for suffix in (*TEXTS, ".json") if said.get(suffix)), [])
        names = {"image": f"{folder}/{name}" if is_plain(name) else name}
        rows.append(replace(row(f"{path.name}, {name!r:.80}", [("caption", captions)]), names=names))
    return rows, Pack(path, folder, size + 1)


# ---- Parquet


def _parquet(path: Path) -> Any:
    try:
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise EnvironmentProblem(
            f"{path} is a Parquet file, which only pyarrow reads, not installed here. pip install 'clipcoco[parquet]'"
        ) from None
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} is a damaged Parquet file: {' '.join(str(error).split()):.120}. Get it again")


def _parquet_rows(path: Path, folder: str, chosen: Mapping[str, str]) -> tuple[list[Row], Pack | None]:
    file = _parquet(path)
    columns = {field.name: chosen.get(column(field.name), column(field.name)) for field in file.schema_arrow}
    kinds = {field.name: str(field.type) for field in file.schema_arrow}
    inside = [name for name, kind in kinds.items() if kind in ("binary", "large_binary") or "bytes: " in kind]
    inside.sort(key=lambda name: columns[name] not in IMAGE)
    read = [name for name in columns if holds_captions(columns[name]) or columns[name] == SPLIT]
    if lacking := [name for name, here in chosen.items() if here not in columns.values()]:
        raise DataError(f"no columns called {' and '.join(map(repr, lacking))}, but {', '.join(columns):.100} ({path})")
    if not inside:
        read += [name for name in columns if columns[name] in IMAGE]
    if not describes([*(columns[name] for name in read), *(["image"] if inside else [])]):
        raise DataError(f"no columns of images and captions, but {', '.join(columns):.100} ({path})")
    rows: list[Row] = []
    try:
        for batch in file.iter_batches(columns=read):
            for values in batch.to_pylist():
                number = len(rows) + 1
                one = row(f"{path.name}, row {number:,}", [(columns[name], value) for name, value in values.items()])
                rows.append(replace(one, names={"image": f"{folder}/{number:08d}.jpg"}) if inside else one)
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from None
    return rows, Pack(path, folder, path.stat().st_size, inside[0]) if inside else None


# ---- both


def _pictures(pack: Pack) -> Iterator[tuple[str, bytes]]:
    """The name of each picture below the pack's folder, and its content."""
    if pack.image:
        number = 0
        try:
            for batch in _parquet(pack.path).iter_batches(batch_size=64, columns=[pack.image]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    data = value.get("bytes") if isinstance(value, dict) else value
                    if data:
                        yield f"{number:08d}.jpg", data
        except (OSError, ValueError) as error:
            raise _damaged(pack.path, error) from None
        return
    with _opened(pack.path) as tar:
        for member, name, _, suffix in _members(tar):
            if suffix in PICTURES and is_plain(name) and member.size <= _MOST_PICTURE:
                content = tar.extractfile(member)
                if content is not None:
                    yield name, content.read()


def _recorded(path: Path) -> object:
    try:
        return json.loads(read_own(path))
    except (OSError, ValueError, RecursionError):
        return None


def suffix_of(name: str) -> str:
    return posixpath.splitext(name)[1].lower()
