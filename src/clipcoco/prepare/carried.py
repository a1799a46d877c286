"""What a person carried here by hand: images that lie in another folder, or in an archive."""

import json
import zipfile
from collections.abc import Collection, Sequence
from pathlib import Path

from clipcoco.data.presence import LINKED
from clipcoco.events import ReportTask, TaskProgress
from clipcoco.files import link, write_json
from clipcoco.prepare.plan import Wish, in_source
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
    # A split's folder may itself be a link to where its images lie.
    _trust(wish.root, {source, *((source / file).parent for file in there)})
    for file in there:
        (wish.root / file).parent.mkdir(exist_ok=True)
        link(source / file, wish.root / file)
    return there


def copy_members(archive: Path, wish: Wish, missing: Sequence[str], report: ReportTask) -> None:
    """Smaller copies of what an archive holds, which is the published one to the bit: its members are no strangers."""
    with zipfile.ZipFile(archive) as members, CopyStore(wish.root, wish.prepared_size) as copies:
        there = sorted(set(copies.missing(missing)) & set(members.namelist()))
        for done, file in enumerate(there, start=1):
            copies.store(file, members.read(file))
            report(TaskProgress(f"copies of {archive.name}", done, len(there), "images"))


def _trust(root: Path, folders: Collection[Path]) -> None:
    """Let links below `root` lead into `folders`: their user named them."""
    try:
        before = json.loads((root / LINKED).read_text())["folders"]
    except (OSError, ValueError, KeyError, TypeError):
        before = []
    write_json(root / LINKED, {"folders": sorted({*before, *(str(folder.resolve()) for folder in folders)})})
