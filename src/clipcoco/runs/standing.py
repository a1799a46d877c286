"""How a run stands, from its small files alone: no torch, and whatever a killed or strange process left there."""

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

from clipcoco.config.load import load_config
from clipcoco.disk.locks import is_held
from clipcoco.errors import ConfigError, ExitCode
from clipcoco.events import Evaluated
from clipcoco.runs.directory import RunDir, Status
from clipcoco.runs.metrics import read_history
from clipcoco.say import say_seconds

_LATELY = 600.0  # seconds


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
    caution: str  # what stands beside its recalls
    seconds: float | None  # of training, all stops left out
    started: float  # seconds since 1970
    changed: float  # when the run was last heard of


def read_standing(run: RunDir) -> Standing:
    status, changed = run.read_status(), _changed(run)
    known = status or Status()
    history = read_history(run, briefly=True)
    evaluations = [row for row in history.evaluations if 0 <= row.r1 <= 100 and row.epoch <= 10**6]
    state = _state(run, status)
    best = max(evaluations, key=lambda row: row.r1, default=None)
    seconds = known.seconds
    if seconds is not None and state == "running":
        seconds += max(0.0, time.time() - changed)  # it was written with the last checkpoint
    return Standing(
        run=run,
        state=state,
        reason=known.reason or "",
        step=max(known.step, history.last_step) if state == "running" else known.step,
        total_steps=known.total_steps,
        epochs_done=max((row.epoch for row in evaluations), default=0),
        epochs=known.epochs if known.epochs is not None else _epochs_of(run),
        r1=known.best.r1 if known.best else best.r1 if best else None,
        best_epoch=known.best.epoch if known.best else best.epoch if best else None,
        best=best,
        images=known.val_images,
        device=known.device,
        caution=known.caution or "",
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


def _changed(run: RunDir) -> float:
    """When status.json was written, or the folder made."""
    changed = 0.0
    for existing in (run.path, run.status_file):
        with contextlib.suppress(OSError):
            changed = existing.stat().st_mtime
    return changed


def _state(run: RunDir, status: Status | None) -> str:
    if status is None:
        return "damaged" if run.status_file.exists() else "half-made"
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
    changed = [path.stat().st_mtime for path in (run.metrics, run.status_file) if path.exists()]
    return time.time() - max(changed, default=0.0) < _LATELY


def _epochs_of(run: RunDir) -> int | None:
    if run.config.is_symlink() or not run.config.is_file():
        return None
    try:
        return load_config(file=run.config).config.train.epochs
    except ConfigError:
        return None


def where_it_stands(run: RunDir, step: int) -> str:
    """How the run ended, for who goes on with it at `step`."""
    status, changed = run.status(), _changed(run)
    state, reason, total = status.state, status.reason, status.total_steps or 0
    if state == "running":  # and yet its lock was free
        how = "killed"
    elif state == "stopped":
        how = f"stopped by {reason}"
    else:
        how = f"{state or 'interrupted'}" + (f" ({reason})" if reason else "")
    ago = say_seconds(max(0.0, time.time() - changed)) if changed else "some time"
    return f"{run.name}: {how} at step {step:,} of {total:,}, {ago} ago."
