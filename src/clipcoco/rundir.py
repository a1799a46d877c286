"""A run directory: its file names, its lock, its status, and how a run is named on the command line."""

import difflib
import json
import os
import re
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipcoco.config.load import preset_names
from clipcoco.config.text import expanded
from clipcoco.errors import CheckpointError, ConfigError, EnvironmentProblem
from clipcoco.files import read_own, write_json
from clipcoco.links import refuse_links
from clipcoco.locks import Held, lock


@dataclass(frozen=True)
class RunDir:
    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def words(self) -> str:
        """What to type for it in a shell: its name where that is enough, else its path."""
        return shlex.quote(self.name if self.path.parent == Path("runs") else str(self.path))

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def status_file(self) -> Path:
        return self.path / "status.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def evaluation(self) -> Path:
        """What the best checkpoint was measured to be, with the retrievals that the report shows."""
        return self.path / "evaluation.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    def status(self) -> dict[str, Any]:
        """What status.json says; empty when there is none or it can't be read."""
        try:
            status = json.loads(read_own(self.status_file, most=2**20))
        except (OSError, ValueError, RecursionError):
            return {}
        return status if isinstance(status, dict) else {}

    def check(self) -> None:
        """Raise CheckpointError when anything below the run's folder is a link: a stranger may have made it."""
        refuse_links(self.path.resolve(), CheckpointError)

    def write_status(self, **changes: Any) -> None:
        """Set entries of status.json; a reader sees it before or after, never between."""
        write_json(self.status_file, {**self.status(), **changes})

    @contextmanager
    def lock(self) -> Iterator[str]:
        """One process at a time; gives a line to tell where the file system has no locks, else ""."""
        with ExitStack() as stack:
            try:
                note = stack.enter_context(lock(self.path / ".lock"))
            except Held as holder:
                raise EnvironmentProblem(
                    f"run {self.name} is at work in another process{f', {holder}' if str(holder) else ''} (.lock). "
                    f"Wait for it, or stop it with Ctrl-C there"
                ) from None
            except OSError as error:
                raise EnvironmentProblem(f"run {self.name} can't be locked: {error.strerror} (.lock)") from error
            yield note


def create(runs_dir: Path, preset: str, name: str | None) -> RunDir:
    """A new run directory, never an existing one."""
    if name is None:
        stem = re.sub(r"[^\w.+-]+", "-", preset).lstrip(".+-") or "run"  # of a file that may be called anything
        name = f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"
        if (runs_dir / name).exists():
            name = free_name(runs_dir, name)
    check_name(runs_dir, name)
    path = runs_dir / name
    try:
        (path / "checkpoints").mkdir(parents=True)
    except OSError as error:
        raise EnvironmentProblem(
            f"the run directory {path} can't be made: {error.strerror}. Give another --runs-dir"
        ) from error
    run = RunDir(path)
    try:
        run.write_status(started=time.time())
    except OSError:
        shutil.rmtree(path, ignore_errors=True)
        raise
    return run


def is_ours(run: RunDir) -> bool:
    """Whether it is a run, be it one that was killed, or lost power, before it could say so."""
    if run.status():
        return True
    if not run.path.is_dir() or run.path.is_symlink():
        return False
    ours = {path.name for path in (run.config, run.metrics, run.log, run.tensorboard, run.checkpoints)}
    found = [*run.path.iterdir(), *run.checkpoints.glob("*")]
    return all(path.name in {*ours, "status.json", ".lock"} or path.suffix == ".tmp" for path in found)


def check_name(runs_dir: Path, name: str) -> None:
    """Raise ConfigError unless a run of this name can be made."""
    check_spelling(name)
    if (runs_dir / name).exists():
        free = free_name(runs_dir, name)
        raise ConfigError(f"run {name} exists in {runs_dir} (--name). Resume it, or take --name {free}")


def check_spelling(name: str) -> None:
    """Raise ConfigError for what is no name: above all for what would lead out of the folder of runs."""
    if not re.fullmatch(r"\w[\w.+-]{0,199}", name) or name in preset_names():
        raise ConfigError(
            f"'{name}' can't name a run (--name). Use letters, digits, dashes and dots, and no preset's name"
        )


def free_name(runs_dir: Path, name: str) -> str:
    number = 2
    while (runs_dir / f"{name}-{number}").exists():
        number += 1
    return f"{name}-{number}"


def all_runs(runs_dir: Path) -> list[RunDir]:
    """Every run in `runs_dir`, the newest first; what is a link there is none."""
    if not runs_dir.is_dir():
        return []
    found = [RunDir(path) for path in runs_dir.iterdir() if not path.is_symlink() and (path / "config.yaml").is_file()]
    return sorted(found, key=lambda run: (_started(run), run.name), reverse=True)


def _started(run: RunDir) -> float:
    started = run.status().get("started")
    return started if isinstance(started, int | float) else 0.0


@dataclass(frozen=True)
class Found:
    """What the words on the command line mean: a run, a checkpoint of it, or a file of no run."""

    run: RunDir | None
    checkpoint: Path | None  # None: the caller's choice

    def weights(self) -> Path:
        """The checkpoint itself; of a run the best, or the last before there is a best."""
        if self.checkpoint is not None:
            return self.checkpoint
        assert self.run is not None, "a run, or a file"
        best = self.run.checkpoints / "best.pt"
        return best if best.exists() else self.run.checkpoints / "last.pt"


def find(runs_dir: Path, words: str | None) -> Found:
    """A run by name, unique prefix, preset (its newest), path, RUN/best; a checkpoint file; None: the newest.

    Raises CheckpointError when there is none, and when its folder holds links.
    """
    found = _find(runs_dir, words)
    if found.run is not None:
        found.run.check()
    return found


def _find(runs_dir: Path, words: str | None) -> Found:
    if words is None:
        runs = [run for run in all_runs(runs_dir) if any(run.checkpoints.glob("*.pt"))]
        if not runs:
            raise CheckpointError(f"there is no run in {runs_dir} that saved. Start one: clipcoco train --preset demo")
        return Found(runs[0], None)
    if not words or words.startswith(("/", "~")):
        return _at_path(words)
    path = expanded(words)
    if path.is_file():
        return found_file(path)
    if (path / "config.yaml").is_file():
        return Found(RunDir(path if path.name else path.resolve()), None)
    name, _, part = words.rstrip("/").partition("/")
    run = _by_name(runs_dir, name)
    if run is None and path.parent != path and (path.parent / "config.yaml").is_file():
        run, part = RunDir(path.parent), path.name
    if run is None and (runs_dir / name).is_symlink():
        raise CheckpointError(f"{runs_dir / name} is a link (--runs-dir). Give it as a path: {runs_dir / name}")
    if run is None:
        raise CheckpointError(_no_run(runs_dir, words))
    if not part:
        return Found(run, None)
    checkpoint = run.checkpoints / (part if part.endswith(".pt") else f"{part}.pt")
    if not checkpoint.is_file():
        there = ", ".join(sorted(path.stem for path in run.checkpoints.glob("*.pt"))) or "none"
        raise CheckpointError(f"run {run.name} has no checkpoint '{part}'. It has: {there}")
    return Found(run, checkpoint)


def _at_path(words: str) -> Found:
    path = expanded(words)
    if words and path.is_file():
        return found_file(path)
    if words and (path / "config.yaml").is_file():
        return Found(RunDir(path), None)
    raise CheckpointError(f"no run and no checkpoint '{words}'. Give a name, a path, or nothing for the newest run")


def found_file(path: Path) -> Found:
    """A checkpoint file, and the run it lies in, if any."""
    folder = path.resolve().parent
    inside = folder.name == "checkpoints" and (folder.parent / "config.yaml").is_file()
    run = folder.parent if path.is_absolute() else Path(os.path.relpath(folder.parent))  # shown as it was given
    return Found(RunDir(run) if inside else None, path)


def _by_name(runs_dir: Path, name: str) -> RunDir | None:
    runs = all_runs(runs_dir)
    for run in runs:
        if run.name == name:
            return run
    # `small` is the newest of small-20261123-190211 and its like; other prefixes must be unique
    dated = [run for run in runs if run.name.startswith(f"{name}-") and run.name[len(name) + 1 :][:8].isdigit()]
    if dated:
        return dated[0]
    matching = [run for run in runs if run.name.startswith(name)]
    if len(matching) > 1:
        names = ", ".join(run.name for run in matching[:4])
        raise CheckpointError(f"'{name}' could be any of {len(matching)} runs: {names}. Give more of the name")
    return matching[0] if matching else None


def _no_run(runs_dir: Path, words: str) -> str:
    names = [run.name for run in all_runs(runs_dir)]
    if not names:
        return f"no run '{words}': there is none in {runs_dir}. Start one: clipcoco train --preset demo"
    near = difflib.get_close_matches(words, names, n=1)
    hint = f"Did you mean {near[0]}?" if near else f"The newest is {names[0]}"
    return f"no run '{words}' in {runs_dir}. {hint}"
