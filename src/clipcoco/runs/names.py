"""How a run, or a checkpoint of it, is named on the command line."""

import difflib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from clipcoco.config.text import expanded
from clipcoco.errors import CheckpointError, ConfigError
from clipcoco.runs.directory import RunDir, check_spelling, is_ours


def all_runs(runs_dir: Path) -> list[RunDir]:
    """Every run in `runs_dir`, the newest first; what is a link there is none."""
    if not runs_dir.is_dir():
        return []
    found = [RunDir(path) for path in runs_dir.iterdir() if not path.is_symlink() and (path / "config.yaml").is_file()]
    return sorted(found, key=lambda run: (run.status().started or 0.0, run.name), reverse=True)


@dataclass(frozen=True)
class Found:
    """What the words on the command line mean: a run, a checkpoint of it, or a file of no run."""

    run: RunDir | None
    checkpoint: Path | None  # None: the caller's choice

    @property
    def words(self) -> str:
        """For a person: the run and which of its checkpoints, or the file."""
        return f"{self.run.name}, {self.weights().stem}" if self.run else str(self.checkpoint)

    def weights(self) -> Path:
        """The checkpoint itself; of a run the best, or the last before there is a best."""
        if self.checkpoint is not None:
            return self.checkpoint
        assert self.run is not None, "a run, or a file"
        best = self.run.checkpoints / "best.pt"
        return best if best.exists() else self.run.checkpoints / "last.pt"


def find_run(runs_dir: Path, words: str | None) -> Found:
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
    path = expanded(words)
    if words and path.is_file():
        return found_file(path)
    if words and (path / "config.yaml").is_file():
        return Found(RunDir(path if path.name else path.resolve()), None)
    if not words or words.startswith(("/", "~")):
        raise CheckpointError(f"no run and no checkpoint '{words}'. Give a name, a path, or nothing for the newest run")
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


def find_resumable(runs_dir: Path, name: str | None, clear: bool) -> RunDir | None:
    """The run to resume, if there is one. One that never saved is cleared away on `clear`, for jobs that start
    again."""
    if name is None:
        raise ConfigError("--or-resume needs the run's name. Give --name NAME")
    check_spelling(name)
    run = RunDir(runs_dir / name)
    if run.path.is_symlink():
        raise CheckpointError(f"{run.path} is a link (--name). Resume the run it leads to: clipcoco resume {run.words}")
    run.check()
    if any(run.checkpoints.glob("*.pt")):
        return run
    if not clear or not is_ours(run):  # nothing there, or a folder that must not be touched
        return None
    with run.lock():
        status = run.read_status()
        if status is None and run.status_file.exists() and run.status_file.stat().st_size:
            raise CheckpointError(f"status.json of run {name} can't be read (--or-resume). Take another --name")
        if status and status.checkpoint:
            raise CheckpointError(f"run {name} has no checkpoints left (--or-resume). Take another --name")
        shutil.rmtree(run.path)
    return None


def found_file(path: Path) -> Found:
    """A checkpoint file, and the run it is of, if any."""
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
