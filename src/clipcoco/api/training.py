"""Train from Python, and go on with a run."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clipcoco.api.model import Model, open_found
from clipcoco.api.restore import globals_restored
from clipcoco.config.load import LoadedConfig, config_from_plain, load_config, preset_names, to_plain
from clipcoco.config.schema import SETTINGS, Config
from clipcoco.events import Evaluated, Event, RunEnded, RunStarted, check_row
from clipcoco.runs.directory import RunDir
from clipcoco.runs.follow import refuse_many_processes
from clipcoco.runs.go import go
from clipcoco.runs.names import Found, find_run
from clipcoco.runs.resume import open_saved, plan_resume, resumed_run
from clipcoco.runs.start import draw_missing_scenes, new_run, plan_run

Overrides = Mapping[str, object] | Sequence[str]


@dataclass(frozen=True)
class TrainedRun:
    """How a training ended."""

    path: Path  # the run's folder
    state: str  # "finished" or "stopped"
    reason: str  # why it stopped; "early stop" where that ended it
    step: int
    best: Evaluated | None  # the evaluation of the best epoch, its recalls in percent; None before the first
    device: str | None = None

    def model(self) -> Model:
        """The best weights, or the last ones before the first evaluation."""
        return open_found(Found(RunDir(self.path), None), self.device)


def train(
    config: Config | LoadedConfig | str | os.PathLike[str],
    *,
    overrides: Overrides = (),
    name: str | None = None,
    runs_dir: str | Path = "runs",
    device: str | None = None,
    report: Callable[[Event], None] | None = None,
    stop: Callable[[], str | None] | None = None,
) -> TrainedRun:
    """Train a model, as `clipcoco train` does, to the same bits; silent but for what `report` does.

    `config`: a preset's name, a YAML file, what `load_config` gives, or a Config made of it. `overrides`: settings that
    a preset or a file is changed by, {"train.epochs": 1} or as typed, ["train.epochs=1"]. `report` gets each
    event (`clipcoco.events`). `stop` is asked before each step; a reason, which ends the training resumably, or
    None. After a KeyboardInterrupt too, the last checkpoint is there: `resume` goes on.
    The figures of `best` are those that `clipcoco eval` gives for the best checkpoint; `clipcoco report NAME`
    writes the page that the command ends with.

    >>> from clipcoco import train
    >>> run = train("toy.yaml", overrides={"train.lr": 1e-3}, name="second")
    >>> run.state, run.step, run.best.i2t == run.model().recall["own"]["i2t"]
    ('finished', 12, True)

    Raises ConfigError, DataError, CheckpointError, EnvironmentProblem or NumericError.
    """
    refuse_many_processes("training from Python")
    loaded, folder, listener = _loaded(config, overrides), Path(runs_dir), _Listener(report)
    with globals_restored():
        draw_missing_scenes(loaded, device)
        plan = plan_run(loaded, name=name, runs_dir=folder, device_name=device, init=None, report=listener)
        plan = plan.looked_at(listener)
        with new_run(plan, folder, name) as (run, note):
            return listener.trained(run, go(plan, run, note, listener, stop or (lambda: None)), device)


def resume(
    run: str | os.PathLike[str] | None = None,
    changes: Overrides = (),
    *,
    runs_dir: str | Path = "runs",
    device: str | None = None,
    report: Callable[[Event], None] | None = None,
    stop: Callable[[], str | None] | None = None,
) -> TrainedRun:
    """Go on with a stopped run, as `clipcoco resume` does, to the bits of a run without the stop.

    `run`: its name or path, a checkpoint file, or None for the newest in `runs_dir`. `changes`: what may change, as
    {"train.epochs": 20} or ["train.epochs=20"]. The other arguments and the errors are those of `train`.

    >>> from clipcoco import resume, train
    >>> train("toy.yaml", name="third", stop=lambda: "enough for today").state
    'stopped'
    >>> resume("third").step
    12
    """
    refuse_many_processes("training from Python")
    folder, listener = Path(runs_dir), _Listener(report)
    found = find_run(folder, None if run is None else os.fspath(run))
    with globals_restored(), open_saved(found, as_typed(changes)) as saved:
        plan = plan_resume(saved, runs_dir=folder, device_name=device, report=listener)
        with resumed_run(saved, plan, folder) as (directory, note):
            return listener.trained(directory, go(plan, directory, note, listener, stop or (lambda: None)), device)


class _Listener:
    """Passes events on, and keeps the evaluation of the best epoch."""

    def __init__(self, report: Callable[[Event], None] | None) -> None:
        self.report = report
        self.best: Evaluated | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted):  # of a run that goes on: what it evaluated before
            before = map(check_row, event.rows)
            self.best = next((row for row in reversed([*before]) if isinstance(row, Evaluated) and row.best), None)
        if isinstance(event, Evaluated) and event.best:
            self.best = event
        if self.report is not None:
            self.report(event)

    def trained(self, run: RunDir, ended: RunEnded, device: str | None) -> TrainedRun:
        return TrainedRun(run.path.absolute(), ended.state, ended.reason, ended.step, self.best, device)


def as_typed(overrides: Overrides) -> list[str]:
    if isinstance(overrides, str):
        raise TypeError('settings come as {"train.epochs": 20} or ["train.epochs=20"], not as one string')
    if isinstance(overrides, Mapping):
        return [f"{name}={json.dumps(value, default=str)}" for name, value in overrides.items()]
    return [*overrides]


def _loaded(config: Config | LoadedConfig | str | os.PathLike[str], overrides: Overrides) -> LoadedConfig:
    changes = as_typed(overrides)
    if changes and isinstance(config, Config | LoadedConfig):
        raise TypeError("overrides change a preset or a file: give them to load_config, or change the Config itself")
    if isinstance(config, LoadedConfig):
        return config
    if isinstance(config, Config):
        checked = config_from_plain(to_plain(config), "config")  # model_copy() checks nothing
        return LoadedConfig(checked, dict.fromkeys(SETTINGS, "Python"), {}, "python", ("base",), ("Python",))
    words = os.fspath(config)
    if words in preset_names() or not (words.endswith((".yaml", ".yml")) or Path(words).is_file()):
        return load_config(words, overrides=changes)
    return load_config(file=Path(words), overrides=changes)
