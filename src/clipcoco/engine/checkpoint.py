"""Checkpoints: self-contained, written atomically, verified before use, plain data only.

In the folder lie `last.pt`, `previous.pt`, `best.pt` and `epoch_NNN.pt`. Before a new `last` takes its name the
old one becomes `previous`, so at every instant a whole file is there; the newest valid step wins.
"""

import hashlib
import json
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, BaseModel, Field, ValidationError

from clipcoco.config.text import one_line
from clipcoco.disk.files import FULL, copy_beside, sync_folder, take_name, temporary_name, write_temporary
from clipcoco.engine.state import Count, TrainState
from clipcoco.engine.weights import check_sums
from clipcoco.errors import CheckpointError, EnvironmentProblem
from clipcoco.events import check_row

FORMAT = 1
KIND = "clipcoco checkpoint"
_MAX_DEPTH = 32
_MAX_NODES = 5_000_000  # a row of metrics has about 20, a vocabulary 100,000


def save(folder: Path, content: dict[str, Any], *, best: bool, epoch: int | None, keep: int) -> tuple[int, float]:
    """Write `last.pt`, and as `best.pt` and `epoch_NNN.pt` too where asked; gives bytes and seconds.

    `keep` is how many of the newest epoch files stay. Raises EnvironmentProblem when the disk refuses; what
    was there before stays whole.
    """
    start = time.monotonic()
    temporary = None
    try:
        temporary = write_temporary(folder / "last.pt", lambda file: torch.save({"format": FORMAT, **content}, file))
        check_sums(temporary, KIND)
        size = temporary.stat().st_size
        _take_names(temporary, folder, best, epoch, keep)
    except (OSError, RuntimeError, CheckpointError) as error:
        # torch makes a RuntimeError of a full disk, and of a second Ctrl-C too
        cause = error if isinstance(error, OSError) else error.__context__
        if isinstance(cause, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        why = _refusal(folder, error, cause)
        raise EnvironmentProblem(f"the checkpoint can't be written to {folder}: {why}") from error
    finally:
        if temporary is not None:
            with suppress(OSError):  # of a sick disk: what happened before is told
                temporary.unlink(missing_ok=True)
    return size, time.monotonic() - start


def _refusal(folder: Path, error: Exception, cause: BaseException | None) -> str:
    if not isinstance(cause, OSError):
        return str(error).splitlines()[0]
    if cause.errno not in FULL:
        return f"{cause.strerror}. See that the folder is there and can be written to"
    free = shutil.disk_usage(folder).free
    return f"{cause.strerror}, {free / 2**20:,.0f} MiB are free there. Free space"


def _take_names(temporary: Path, folder: Path, best: bool, epoch: int | None, keep: int) -> None:
    if best:
        _link(temporary, folder / "best.pt")
    if epoch is not None and keep:
        _link(temporary, folder / f"epoch_{epoch:03d}.pt")
    if (folder / "last.pt").exists():
        os.replace(folder / "last.pt", folder / "previous.pt")
    os.replace(temporary, folder / "last.pt")
    sync_folder(folder)
    for old in sorted(folder.glob("epoch_*.pt"), key=_epoch_number)[: -keep or None]:
        old.unlink()


def load(path: Path, mapped: bool = False) -> dict[str, Any]:
    """The content of a checkpoint file, on the CPU. Raises CheckpointError for all that is not a whole one.

    Its plain parts are `checked`, its tensors are not: they may be a stranger's. `mapped` leaves these in the file
    until somebody reads them, and so the file must stay as it is.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}. See what is there: ls {path.parent}")
    try:
        check_sums(path, KIND)
        mapped = mapped and os.fsencode(path).isascii()  # torch maps no file whose name is not text
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file makes torch.load raise nearly anything; none of it is let past
        what = f"{path} is not a clipcoco checkpoint, or damaged: {type(error).__name__}"
        raise CheckpointError(f"{what}. Use another one") from error
    if not isinstance(content, dict) or type(content.get("format")) is not int or content["format"] < 1:
        raise CheckpointError(f"{path} is not a clipcoco checkpoint: it names no format. Use another file")
    if content["format"] > FORMAT:
        raise CheckpointError(f"{path} was made by a newer clipcoco (format {content['format']}). Upgrade clipcoco")
    missing = {"model", "config", "tokenizer", "state"} - content.keys()
    if missing:
        raise CheckpointError(f"{path} is not a clipcoco checkpoint: it lacks {', '.join(sorted(missing))}")
    return checked(content, path)


def _one_line(text: str) -> str:
    if one_line(text) != text:
        raise ValueError("Input should be one printable line")
    return text


Word = Annotated[str, Field(max_length=200), AfterValidator(_one_line)]


class _Data(BaseModel, extra="ignore", strict=True):
    """The fingerprint of the data."""

    source: Word = ""
    copies: Word = ""
    train: Word = ""
    val: Word = ""
    weights: Word = ""
    init: Word = ""
    train_images: Count = 0
    val_images: Count = 0


class _Parts(BaseModel, extra="ignore", strict=True, allow_inf_nan=False):
    state: TrainState
    data: _Data = _Data()
    versions: dict[Word, Word] = Field({})
    metrics: list[dict[str, Any]] = Field([])
    scaler: dict[Word, float] = Field({})


def checked(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """`content` itself, with its plain parts of the kinds that a save writes. Raises CheckpointError.

    What later versions add is passed over, what earlier ones lacked has its default.
    """
    try:
        _bound(content)
        for row in _Parts.model_validate(content).metrics:
            check_row(row)
        json.dumps(content.get("metrics"), allow_nan=False)
    except (ValueError, TypeError) as error:
        why = str(error)
        if isinstance(error, ValidationError):
            first = error.errors(include_url=False, include_input=False)[0]
            why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        said = f"{path} holds what no clipcoco wrote: {one_line(why)[:200]}"
        raise CheckpointError(f"{said}. Use another checkpoint") from error
    return content


def _bound(content: dict[str, Any]) -> None:
    """Few lists that hold each other many times are few bytes and endless to walk."""
    waiting: list[tuple[Any, int]] = [(content, 0)]
    nodes = 0
    while waiting:
        value, depth = waiting.pop()
        nodes += len(value)
        if nodes > _MAX_NODES or depth > _MAX_DEPTH:
            raise ValueError("lists within lists without end")
        inner = value.values() if isinstance(value, dict) else value
        waiting += [(one, depth + 1) for one in inner if isinstance(one, dict | list | tuple | set)]


def newest(folder: Path) -> tuple[Path, dict[str, Any], list[str]]:
    """The newest valid checkpoint, its content, and a line on each damaged one before it."""
    damaged: list[str] = []
    epochs = sorted(folder.glob("epoch_*.pt"), key=_epoch_number, reverse=True)
    for path in [folder / "last.pt", folder / "previous.pt", *epochs, folder / "best.pt"]:
        if path.exists():
            try:
                return path, load(path), damaged
            except CheckpointError as error:
                damaged.append(str(error))
    none = f"no checkpoint in {folder}. Start again: clipcoco train --config {folder.parent / 'config.yaml'}"
    raise CheckpointError(*damaged[:1] or [none])


def remove_leftovers(folder: Path) -> None:
    """Delete what an interrupted save left; the caller holds the run's lock."""
    for path in folder.glob(".*.tmp"):
        path.unlink()


def weights_sha256(state_dict: dict[str, torch.Tensor]) -> str:
    """The hash of all parameters and buffers in name order."""
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        digest.update(name.encode())
        digest.update(state_dict[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _link(source: Path, target: Path) -> None:
    """`target` becomes the same file, or a copy where the file system has no hard links, in one step."""
    beside = temporary_name(target)
    try:
        os.link(source, beside)
    except OSError:
        beside = copy_beside(source, target)
    take_name(beside, target)


def _epoch_number(path: Path) -> int:
    number = path.stem.removeprefix("epoch_")
    return int(number) if number.isdigit() else -1
