"""How a run stands, from its small files alone: no torch, and whatever a killed or strange process left there."""

import contextlib
import json
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clipcoco.config.load import load_config
from clipcoco.console import say_seconds
from clipcoco.disk.files import read_own
from clipcoco.disk.locks import is_held
from clipcoco.errors import ConfigError, ExitCode
from clipcoco.events import Evaluated, read_row
from clipcoco.runs.directory import RunDir, free_name

Count = Annotated[int, Field(ge=0, le=10**12)]
Clock = Annotated[float, Field(ge=0, le=10**11)]  # seconds: neither of these overflows what it is put into
_LATELY = 600.0  # seconds


class _Best(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)

    r1: float = Field(ge=0, le=100)
    epoch: Count


class _Status(BaseModel):
    """status.json; what is missing has its default, what is of another kind makes it damaged."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    state: str = ""
    step: Count = 0
    total_steps: Count | None = None
    epochs: Count | None = None
    best: _Best | None = None
    val_images: Count | None = None
    device: str | None = None
    seconds: Clock | None = None
    started: Clock | None = None
    exit_code: int | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Standing:
    """None: no file tells it."""

    run: RunDir
    # running, starting; finished, stopped, interrupted, diverged, failed; killed: it says that it runs, but does
    # not; half-made: it never began; damaged: its files can't be read
    state: str
    reason: str
    step: int
    total_steps: int | None
    epochs_done: int  # those evaluated
    epochs: int | None
    r1: float | None  # the best so far, percent
    best_epoch: int | None
    best: Evaluated | None  # the row of metrics.jsonl that tells of it
    images: int | None  # of the gallery of r1
    device: str | None
    seconds: float | None  # of training, all stops left out
    started: float  # seconds since 1970
    changed: float  # when the run was last heard of


def read_standing(run: RunDir) -> Standing:
    status, changed = _read_status(run)
    known = status or _Status()
    rows, last_step = _read_metrics(run)
    evaluations = [row for row in rows if 0 <= row.r1 <= 100 and row.epoch <= 10**6]
    state = _state(run, status)
    best = max(evaluations, key=lambda row: row.r1, default=None)
    seconds = known.seconds
    if seconds is not None and state == "running":
        seconds += max(0.0, time.time() - changed)  # it was written with the last checkpoint
    return Standing(
        run=run,
        state=state,
        reason=known.reason or "",
        step=max(known.step, last_step) if state == "running" else known.step,
        total_steps=known.total_steps,
        epochs_done=max((row.epoch for row in evaluations), default=0),
        epochs=known.epochs if known.epochs is not None else _epochs_of(run),
        r1=known.best.r1 if known.best else best.r1 if best else None,
        best_epoch=known.best.epoch if known.best else best.epoch if best else None,
        best=best,
        images=known.val_images,
        device=known.device,
        seconds=seconds,
        started=known.started or changed,
        changed=changed,
    )


def all_standings(runs_dir: Path) -> list[Standing]:
    """Every folder that is, was to be, or once was a run: the best R@1 first, then the newest."""
    if not runs_dir.is_dir():
        return []
    parts = ("config.yaml", "status.json", "metrics.jsonl", "checkpoints")
    folders = [
        path for path in runs_dir.iterdir() if not path.is_symlink() and any((path / part).exists() for part in parts)
    ]
    standings = [read_standing(RunDir(path)) for path in folders]
    return sorted(standings, key=lambda one: (-1.0 if one.r1 is None else one.r1, one.started), reverse=True)


def _read_status(run: RunDir) -> tuple[_Status | None, float]:
    path = run.path / "status.json"
    changed = 0.0
    for existing in (run.path, path):
        with contextlib.suppress(OSError):
            changed = existing.stat().st_mtime
    try:
        return _Status.model_validate_json(read_own(path, most=2**20)), changed
    except (OSError, ValidationError):
        return None, changed


def _state(run: RunDir, status: _Status | None) -> str:
    if status is None:
        return "damaged" if (run.path / "status.json").exists() else "half-made"
    if status.state in ("", "running") and _is_at_work(run):
        return "running" if status.state else "starting"
    if not run.config.is_file():
        return "damaged" if status.state else "half-made"
    if status.state == "failed":
        special: dict[int | None, str] = {ExitCode.NUMERIC: "diverged", ExitCode.INTERRUPTED: "interrupted"}
        return special.get(status.exit_code, "failed")
    names = {"": "half-made", "running": "killed", "finished": "finished", "stopped": "stopped"}
    return names.get(status.state, "damaged")


def _is_at_work(run: RunDir) -> bool:
    """Whether a process holds the run; on a file system without locks, whether it was heard of lately."""
    held = is_held(run.path / ".lock")
    if held is not None:
        return held
    changed = [path.stat().st_mtime for path in (run.metrics, run.path / "status.json") if path.exists()]
    return time.time() - max(changed, default=0.0) < _LATELY


def _read_metrics(run: RunDir) -> tuple[list[Evaluated], int]:
    """The evaluations, and the last step that was logged. Of the other rows only the last is looked at."""
    evaluations, last = list[Evaluated](), b""
    try:
        for line in read_own(run.metrics, most=2**30).splitlines(keepends=True):
            last = line if line.endswith(b"\n") else last  # a torn line is no row
            if b'"evaluation"' in line:
                with contextlib.suppress(ValidationError):
                    row = read_row(line)
                    evaluations += [row] if isinstance(row, Evaluated) else []
        step = json.loads(last)["step"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return evaluations, 0
    return evaluations, step if type(step) is int and 0 <= step <= 10**12 else 0


def _epochs_of(run: RunDir) -> int | None:
    if run.config.is_symlink() or not run.config.is_file():
        return None
    try:
        return load_config(file=run.config).config.train.epochs
    except ConfigError:
        return None


def where_it_stands(run: RunDir, step: int) -> str:
    """How the run ended, for who goes on with it at `step`."""
    found, changed = _read_status(run)
    status = found or _Status()
    state, reason, total = status.state, status.reason, status.total_steps or 0
    if state == "running":  # and yet its lock was free
        how = "killed"
    elif state == "stopped":
        how = f"stopped by {reason}"
    else:
        how = f"{state or 'interrupted'}" + (f" ({reason})" if reason else "")
    ago = say_seconds(max(0.0, time.time() - changed)) if changed else "some time"
    return f"{run.name}: {how} at step {step:,} of {total:,}, {ago} ago."


def what_remains(run: RunDir) -> str:
    """After a second Ctrl-C: how to go on, or the same command under a name that is free."""
    if any(run.checkpoints.glob("*.pt")):
        return f"Stopped at once. Go on with: clipcoco resume {run.words}"
    free = free_name(run.path.parent, run.name)
    anew = [word.replace(run.name, free) if word.endswith(run.name) else word for word in sys.argv[1:]]
    return f"Stopped at once, nothing was saved. Anew: {shlex.join(['clipcoco', *anew])}"
