"""Files that are whole or absent: written beside, synced, then renamed into place."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_temporary(path: Path, write: Callable[[BinaryIO], object]) -> Path:
    """Let `write` fill a new file beside `path`, on disk before this returns; gives its name.

    Nothing is left behind when `write` fails.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace `path` by `content` in one step: a reader sees the old file or the new one, whole."""
    data = content.encode() if isinstance(content, str) else content
    os.replace(write_temporary(path, lambda file: file.write(data)), path)
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value) + "\n")


def link(source: Path, target: Path) -> bool:
    """`target` becomes the same file; whether by a symbolic link, as between volumes.

    A copy only where the file system knows no links at all.
    """
    target.unlink(missing_ok=True)
    for make in (os.link, os.symlink):
        try:
            make(source.resolve(), target)
        except OSError:
            continue
        return make is os.symlink
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.copyfile(source, temporary)
    os.replace(temporary, target)
    return False
