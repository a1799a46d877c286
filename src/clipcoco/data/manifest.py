"""What is in a folder of images, file by file: a line of settings, then one JSON line a file.

A manifest grows while files arrive and is the memory of an interrupted preparation: a file that has its line
is whole. It says what `prepare-data --verify` compares with, and names the copies that a run was trained on.
"""

import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Self

from clipcoco.disk.files import open_to_append, read_own, write_atomically
from clipcoco.disk.seal import read_sealed_text, seal

_SUM = re.compile("[0-9a-f]{64}")
_FILE = re.compile(r"(?!\.+/)[\w.-]+/(?!\.+$)[\w.-]+")


@dataclass(frozen=True)
class Entry:
    file: str  # relative to the folder: "train2017/000000000009.jpg"
    size: int  # bytes
    sha256: str  # of the file, in hexadecimal
    source: str = ""  # SHA-256 of the original that a copy was made from


def copies_folder(root: Path, size: int) -> Path:
    """Where the copies are whose shorter side has `size` pixels, under their originals' names."""
    return root / f"prepared-{size}"


def copies_manifest(root: Path, size: int) -> Path:
    return copies_folder(root, size) / "manifest.jsonl"


def read_manifest(path: Path) -> tuple[dict[str, Any], dict[str, Entry]]:
    """The settings, and the entries by file; both empty without a file."""
    return parsed(content_of(path))


def content_of(path: Path) -> bytes:
    """Of a manifest; nothing without a file."""
    try:
        return read_own(path, most=2**30)
    except FileNotFoundError:
        return b""


def parsed(content: bytes) -> tuple[dict[str, Any], dict[str, Entry]]:
    """`read_manifest` of a manifest's content.

    A line that a kill cut short, or whose sum is wrong, is left out: its file will be made again.
    """
    lines = content.splitlines(keepends=True)
    settings: dict[str, Any] = {}
    entries: dict[str, Entry] = {}
    for number, line in enumerate(lines):
        try:
            row = read_sealed_text(line) if line.endswith(b"\n") else None
            if number == 0 and isinstance(row, dict):
                settings = row
            elif number and row is not None:
                entry = Entry(**row)
                sums = _SUM.fullmatch(entry.sha256) and (entry.source == "" or _SUM.fullmatch(entry.source))
                if sums and type(entry.size) is int and _FILE.fullmatch(entry.file):  # a name inside the folder
                    entries[entry.file] = entry
        except (ValueError, TypeError, RecursionError):
            continue
    return settings, entries


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(seal(row)).encode() + b"\n"


def same_settings(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """What "made_with" says, the libraries' versions, is not a setting: a new one may move a pixel by one step."""
    return {**one, "made_with": 0} == {**other, "made_with": 0}


class Manifest:
    """An open manifest: `entries` holds what is whole. Entries made with other `settings` are forgotten.

    `add` may be called from several threads.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        before, self.entries = read_manifest(path)
        if not same_settings(before, settings):
            self.entries = {}
        lines = [settings, *map(vars, self.entries.values())]
        content = b"".join(map(_line, lines))
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or read_own(path, most=2**30) != content:
            write_atomically(path, content)
        self._file = open_to_append(path)
        self._lock = Lock()

    def add(self, entry: Entry) -> None:
        """Note a file that is whole under its name."""
        line = _line(asdict(entry))
        with self._lock:
            self._file.write(line)
            self.entries[entry.file] = entry

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        os.fsync(self._file.fileno())
        self._file.close()
