"""Whether the images of a table are on the disk, and below their folder: asked without opening any."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from clipcoco.data.annotations import PREPARE
from clipcoco.errors import DataError, EnvironmentProblem
from clipcoco.links import check_link, may_lead

if TYPE_CHECKING:
    from clipcoco.data.captions import CaptionTable


def check_files(table: "CaptionTable", *, get_them: str = PREPARE) -> None:
    """See that every image of the table is a file below its folder, without opening or asking after each.

    That folder itself may be a symbolic link; a link below it must not lead out of it, but into a folder that
    the user allowed. Raises DataError.
    """
    if missing := missing_files(table):
        some = f"{len(missing):,} of {len(table.files):,} images are missing in {table.folder} (data.root)"
        first = ", ".join(missing[:3])
        raise DataError(f"{some}, first {first}. Get them: {get_them}, or use yours: --set data.root=DIR")


def missing_files(table: "CaptionTable") -> list[str]:
    """The images of the table that are no files below its folder, sorted."""
    wanted, found, inside = set(table.files), set(), may_lead(table.folder)
    for folder in sorted({file.split("/")[0] for file in wanted}):
        check_link(table.folder, folder, inside)
        found |= _present(table.folder, folder, wanted, inside)
    return sorted(wanted - found)


def _present(root: Path, folder: str, wanted: set[str], inside: list[str]) -> set[str]:
    found = set()
    try:
        with os.scandir(root / folder) as entries:
            for entry in entries:
                if (file := f"{folder}/{entry.name}") in wanted:
                    if entry.is_symlink():
                        check_link(root, file, inside)
                    if entry.is_file():
                        found.add(file)
    except (FileNotFoundError, NotADirectoryError):
        pass  # all of it is missing
    except OSError as error:
        raise EnvironmentProblem(f"cannot list {root / folder} ({error.strerror}). May you read it?") from None
    return found
