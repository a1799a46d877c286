"""Whether every image that recall is measured on can be decoded: told before the first step, not after an epoch."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from clipcoco.cores import usable_cores
from clipcoco.data.captions import CaptionTable
from clipcoco.data.images import read
from clipcoco.data.viewer import UnreadableImage
from clipcoco.errors import DataError
from clipcoco.events import Progress, Report


def check_readable(table: CaptionTable, report: Report) -> None:
    """Decode every image of the table once. Raises DataError for those that can't be."""
    broken = []
    with ThreadPoolExecutor(usable_cores()) as pool:
        for row, why in enumerate(pool.map(_why_not, (table.folder / file for file in table.files))):
            if why:
                broken.append(row)
            report(Progress("check", row + 1, len(table.files)))
    refuse_unreadable(table, broken)


def refuse_unreadable(table: CaptionTable, rows: Sequence[int]) -> None:
    """Raise DataError that names the first of these rows of the table, if there are any."""
    if rows:
        others = f", nor can {len(rows) - 1:,} others" if len(rows) > 1 else ""
        path = table.folder / table.files[rows[0]]
        why = _why_not(path) or "though now it can: is the disk sound?"
        raise DataError(
            f"{path} can't be read ({why}){others}, and recall over the rest would be another number "
            f"(data.root). Get {'them' if others else 'it'} again; clipcoco prepare-data --verify names all"
        )


def _why_not(path: Path) -> str:
    try:
        read(path)
    except UnreadableImage as error:
        return str(error.__cause__)
    return ""
