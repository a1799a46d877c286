"""One `prepare-data` at a time for a folder."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clipcoco.data.annotations import LAYOUT
from clipcoco.disk.links import check_root
from clipcoco.disk.locks import claim
from clipcoco.errors import EnvironmentProblem
from clipcoco.prepare.plan import WORK


@contextmanager
def lock(root: Path) -> Iterator[str]:
    """Hold `root`, which is made where needed; gives a line to tell where the file system has no locks, else ""."""
    path, was_there = root / WORK / "lock", root.exists()
    check_root(root, LAYOUT)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentProblem(f"{root} can't be made: {error.strerror} (--root). Give another") from error
    with claim(path, str(root), "is being prepared by") as note:
        try:
            yield note
        finally:
            if not was_there and {entry.name for entry in root.rglob("*")} <= {WORK, "lock"}:
                shutil.rmtree(root)  # nothing came of it: a wrong name leaves no folder behind
