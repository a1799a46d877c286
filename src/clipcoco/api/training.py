"""Train from Python."""

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from clipcoco.api.model import Model, open_found
from clipcoco.api.restore import globals_restored
from clipcoco.config.load import LoadedConfig, config_from_plain, load_config, preset_names, to_plain
from clipcoco.config.schema import SETTINGS, Config
from clipcoco.events import Evaluated, Event
from clipcoco.runs.directory import RunDir
from clipcoco.runs.names import Found
from clipcoco.runs.start import start


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
    name: str | None = None,
    runs_dir: str | Path = "runs",
    device: str | None = None,
    report: Callable[[Event], None] | None = None,
    stop: Callable[[], str | None] | None = None,
) -> TrainedRun:
    """Train a model, as `clipcoco train` does, to the same bits; silent but for what `report` does.

    `config`: a preset's name, a YAML file, what `load_config` gives, or a Config made of it. `report` gets each
    event (`clipcoco.events`). `stop` is asked after each step; a reason, which ends the training resumably, or
    None. After a KeyboardInterrupt too, the last checkpoint is there: `clipcoco resume NAME` goes on.
    The figures of `best` are those that `clipcoco eval` gives for the best checkpoint; `clipcoco report NAME`
    writes the page that the command ends with.

    >>> from clipcoco import load_config, train
    >>> run = train(load_config(file="toy.yaml", overrides=["train.lr=1e-3"]), name="second")
    >>> run.state, run.step, run.best.i2t == run.model().recall["own"]["i2t"]
    ('finished', 12, True)

    Raises ConfigError, DataError, CheckpointError, EnvironmentProblem or NumericError.
    """
    best: list[Evaluated] = []

    def listen(event: Event) -> None:
        if isinstance(event, Evaluated) and event.best:
            best.append(event)
        if report is not None:
            report(event)

    with globals_restored():
        run, ended = start(
            _loaded(config),
            name=name,
            runs_dir=Path(runs_dir),
            device_name=device,
            init=None,
            report=lambda run: listen,
            stopping=lambda: nullcontext(stop or (lambda: None)),
        )
    return TrainedRun(run.path.absolute(), ended.state, ended.reason, ended.step, best[-1] if best else None, device)


def _loaded(config: Config | LoadedConfig | str | os.PathLike[str]) -> LoadedConfig:
    if isinstance(config, LoadedConfig):
        return config
    if isinstance(config, Config):
        checked = config_from_plain(to_plain(config), "config")  # model_copy() checks nothing
        return LoadedConfig(checked, dict.fromkeys(SETTINGS, "Python"), {}, "python", ("base",), ("Python",))
    words = os.fspath(config)
    if words in preset_names() or not (words.endswith((".yaml", ".yml")) or Path(words).is_file()):
        return load_config(words)
    return load_config(file=Path(words))
