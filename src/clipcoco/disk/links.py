"""Links in folders that a stranger may have filled: none decides what is read, written or deleted.

What only clipcoco writes may hold no link at all. Pictures and captions may be links into folders that the user
allowed, for a data folder: kept in the user's own configuration folder, never in the folder in question.
"""

import json
import os
import shlex
from collections.abc import Iterable
from pathlib import Path

from clipcoco.disk.files import write_json
from clipcoco.errors import ClipcocoError, DataError, EnvironmentProblem


def refuse_links(folder: Path, error: type[ClipcocoError]) -> None:
    """Raise `error` when `folder`, or anything below it, is a link, a pipe or the like. It need not exist."""
    waiting = [folder]
    while waiting:
        path = waiting.pop()
        if path.is_symlink():
            then = "Remove it, or put what it leads to in its place"
            raise error(f"{path} is a link to {os.readlink(path)!r:.200}, and clipcoco follows none there. {then}")
        if path.is_dir():
            try:
                waiting += [Path(one.path) for one in os.scandir(path) if not one.is_file(follow_symlinks=False)]
            except PermissionError:
                if os.access(path, os.X_OK):  # what is in it can be opened, but not looked for
                    raise
        elif path.exists() and not path.is_file():
            raise error(f"{path} is neither a file nor a folder, and clipcoco makes no other. Remove it")


def refuse_link(folder: Path) -> None:
    """Raise DataError for a link where pictures or captions are to be written."""
    if folder.is_symlink():
        raise DataError(f"{folder} is a link, and what is written there would go elsewhere. Put a folder in its place")


def own_folder(path: Path) -> None:
    """Make the folder `path`, unless it is there. Raises DataError for a link in its place."""
    refuse_link(path)
    path.mkdir(exist_ok=True)


def check_root(root: Path, folders: Iterable[str]) -> None:
    """Refuse links where only clipcoco writes in a data folder, caches and smaller copies, and `folders` of pictures
    and captions that lead where the user allowed nothing. Raises DataError.
    """
    for folder in (root / ".clipcoco", *root.glob("prepared-[0-9]*")):
        refuse_links(folder, DataError)
    inside = may_lead(root)
    for name in folders:
        check_link(root, name, inside)


def check_link(root: Path, name: str, inside: Iterable[str]) -> None:
    """See that root/name leads into one of the folders `inside`, as `may_lead` gives them. Raises DataError."""
    target = Path(os.path.realpath(root / name))
    if any(map(target.is_relative_to, inside)):
        return
    folder = target if target.is_dir() else target.parent
    line = shlex.join(["clipcoco", "prepare-data", "--root", str(root), "--allow-links", str(folder)])
    raise DataError(f"{root / name} is a link that leaves {root} (data.root), to {target}. If it is yours: {line}")


def may_lead(root: Path) -> list[str]:
    """The folders that links below `root` may lead into: itself, and those that the user allowed."""
    key = os.path.realpath(root)
    folders = _read(_path()).get(key)
    return [key, *(folder for folder in folders if isinstance(folder, str))] if isinstance(folders, list) else [key]


def allow(root: Path, folders: Iterable[Path]) -> None:
    """Let links below `root` lead into `folders`, from now on. Raises EnvironmentProblem."""
    key, *before = may_lead(root)
    real = [os.path.realpath(folder) for folder in folders]
    together = sorted({*before, *(folder for folder in real if not Path(folder).is_relative_to(key))})
    if together == before:
        return
    path = _path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, _read(path) | {key: together})
    except OSError as error:
        where = f"where links may lead can't be kept: {error.strerror or error} ({path})"
        raise EnvironmentProblem(f"{where}. Set XDG_CONFIG_HOME to a folder that you may write to") from error


def _path() -> Path:
    """In the user's configuration folder; at a name that can't be, where the user has none."""
    folders = (os.environ.get("XDG_CONFIG_HOME", ""), os.path.expanduser("~/.config"), os.devnull)
    return Path(next(folder for folder in folders if os.path.isabs(folder)), "clipcoco", "links.json")


def _read(path: Path) -> dict[str, object]:
    """By data.root: the folders that links below it may lead into. Of no file, or a damaged one: nothing."""
    try:
        kept = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return kept if isinstance(kept, dict) else {}
