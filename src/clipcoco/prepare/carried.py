"""What a person carried here by hand: images that lie in another folder, or in an archive."""

import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from clipcoco.disk.files import link
from clipcoco.disk.links import allow, own_folder
from clipcoco.errors import EnvironmentProblem
from clipcoco.events import ReportTask, TaskProgress
from clipcoco.prepare.plan import FOLDERS, Wish, in_source
from clipcoco.prepare.resize import CopyStore


def take(source: Path, wish: Wish, missing: Sequence[str], report: ReportTask) -> list[str]:
    """Link those of `missing` that lie below `source`, or keep their smaller copies alone; gives their names."""
    there = in_source(source, missing)
    if wish.only_prepared:
        with CopyStore(wish.root, wish.prepared_size) as copies:
            for done, file in enumerate(there, start=1):
                copies.store(file, (source / file).read_bytes())
                report(TaskProgress(f"copies of {file.split('/')[0]}", done, len(there), "images"))
        return there
    for file in there:
        own_folder((wish.root / file).parent)
        link(source / file, wish.root / file)
    return there


def copy_members(archive: Path, wish: Wish, missing: Sequence[str], report: ReportTask) -> None:
    """Smaller copies of what an archive holds, which is the published one to the bit: its members are no strangers."""
    with zipfile.ZipFile(archive) as members, CopyStore(wish.root, wish.prepared_size) as copies:
        there = sorted(set(copies.missing(missing)) & set(members.namelist()))
        for done, file in enumerate(there, start=1):
            copies.store(file, members.read(file))
            report(TaskProgress(f"copies of {archive.name}", done, len(there), "images"))


def allow_source(source: Path, root: Path) -> None:
    """The user named it, so links below `root` may lead there. Its folders may themselves be links to another volume.

    Where that can't be kept it is asked for by name, once a link turns out to be no hard one.
    """
    folders = [source, *(source / name for name in (*FOLDERS, "annotations"))]
    with suppress(EnvironmentProblem):
        allow(root, folders)
        allow(source, folders)
