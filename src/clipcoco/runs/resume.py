"""A run goes on, to the bits of one without a stop: what is compared first, and what may change."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipcoco.config.load import flatten, to_plain
from clipcoco.config.schema import Config, TrainConfig
from clipcoco.data.readable import check_readable
from clipcoco.disk.files import remove_leftovers
from clipcoco.engine import checkpoint
from clipcoco.engine.device import make_deterministic
from clipcoco.engine.model_file import open_model
from clipcoco.engine.state import TrainState
from clipcoco.engine.trained_on import recorded
from clipcoco.errors import CheckpointError, ConfigError
from clipcoco.events import RunEnded
from clipcoco.runs.config_file import BEGAN, rewrite_settings
from clipcoco.runs.directory import RunDir, create
from clipcoco.runs.go import changed_since, conduct
from clipcoco.runs.plan import Assembled, assemble, check_disk
from clipcoco.runs.start import ReportTo, Stopping, refuse_many_processes

# What a resume may change: nothing that would make it another experiment.
CHANGEABLE = {
    "data.root",
    "data.workers",
    "train.epochs",
    "train.early_stop_epochs",
    "train.log_every_steps",
    "checkpoint.every_steps",
    "checkpoint.keep",
}


def resume(
    run: RunDir | Path,
    path: Path,
    content: dict[str, Any],
    config: Config,
    *,
    changes: list[str],
    device_name: str | None,
    report: ReportTo,
    stopping: Stopping,
) -> tuple[RunDir, RunEnded]:
    """Go on from a checkpoint, to the same bits as without the stop. The caller holds the run's lock.

    Where `run` is a folder of runs, `path` lies in none, and a new one is made once all checks have passed.
    `config` is the checkpoint's with `changes` ("train.epochs=20") in it.
    """
    refuse_many_processes()
    saved, state = open_model(path, content), TrainState.from_plain(content["state"])
    missing = {"optimizer", "scaler", "rng", "data", "metrics"} - content.keys()
    if missing:
        raise CheckpointError(
            f"{path} holds weights but no {', '.join(sorted(missing))}. Train on from its weights: "
            f"clipcoco train --preset NAME --init {path}"
        )
    parts = assemble(
        config,
        device_name,
        state.precision,
        saved.tokenizer,
        origin=str(path),
        source_like=content["data"].get("source"),
        frozen_epochs=_frozen_epochs(state, saved.config.train, config.train),
    )
    state.frozen_epochs = parts.derived.frozen_epochs
    state.check(parts.derived.steps_per_epoch, path)
    parts = replace(parts, began={what: content["data"][what] for what in BEGAN if what in content["data"]})
    _check_data(parts, content["data"], run.name if isinstance(run, RunDir) else str(path))
    if state.evaluated_epochs >= parts.derived.frozen_epochs:
        check_readable(parts.val_table, report(None))
    parts = replace(parts, before=recorded(content)).looked_at(report(None))
    other = changed_since(content, parts)
    if parts.device.precision != state.precision:
        lacking = f"({parts.device.device} has no {state.precision})"
        other.insert(0, f"{state.precision} -> {parts.device.precision} {lacking}")
        state.precision = parts.device.precision
    if config.train.epochs != saved.config.train.epochs:
        other.append(f"the schedule now ends at step {parts.derived.total_steps:,}")
    exact = f"not to the bit: {', '.join(other)}" if other else "to the bit, as without the stop"
    parts = replace(parts, header=(*parts.header, ("exact", exact)))
    make_deterministic(config.seed, parts.device.device)
    with ExitStack() as held:
        stop = held.enter_context(stopping())
        if not isinstance(run, RunDir):
            run = held.enter_context(_new_run(run, path, content, config, state, parts))
        checkpoint.remove_leftovers(run.checkpoints)
        for path in (run.path / "status.json", run.metrics, run.config):
            remove_leftovers(path)
        if changes:
            rewrite_settings(run, config, changes, parts.began)
        return run, conduct(run, parts, saved.model, state, content, report(run), stop)


def _check_data(parts: Assembled, before: dict[str, Any], name: str) -> None:
    if differing := parts.differing(before):
        raise CheckpointError(
            f"the data at {parts.config.data.root} are not those of run {name}: {', '.join(differing)} differ "
            f"(data.root). Bring those back, or start anew from its weights with --init {name}"
        )


@contextmanager
def _new_run(
    runs_dir: Path, path: Path, content: dict[str, Any], config: Config, state: TrainState, parts: Assembled
) -> Iterator[RunDir]:
    """A run, locked, that begins with the checkpoint of another as its last one, and as its best where it was."""
    check_disk(runs_dir, parts.derived)
    run = create(runs_dir, path.stem, None)
    with run.lock():
        rewrite_settings(run, config, [], parts.began)
        evaluated = state.step == state.evaluated_epochs * parts.derived.steps_per_epoch
        best = evaluated and state.best_epoch == state.evaluated_epochs
        held = {**content, "config": to_plain(config)}
        checkpoint.save(run.checkpoints, held, best=best, epoch=None, keep=config.checkpoint.keep)
        yield run


def _frozen_epochs(state: TrainState, before: TrainConfig, after: TrainConfig) -> int | None:
    """As the run began, whatever the device is now; None, to be resolved anew, for one that was all frozen and grew."""
    grew = after.epochs > before.epochs and state.frozen_epochs == before.epochs
    return None if grew or state.frozen_epochs < 0 else state.frozen_epochs


def check_changes(before: Config, after: Config) -> list[str]:
    """`key: old -> new` for each changed setting. Raises ConfigError for one that would change the meaning."""
    old, new = flatten(to_plain(before)), flatten(to_plain(after))
    changed = [key for key in new if old.get(key) != new[key]]
    refused = [
        f"{key} can't change at a resume: {old[key]} -> {new[key]} (--set). "
        f"Start anew from the weights: clipcoco train --init RUN"
        for key in changed
        if key not in CHANGEABLE
    ]
    if after.train.epochs < before.train.epochs:
        refused.append(f"train.epochs can only grow at a resume: {before.train.epochs} -> {after.train.epochs} (--set)")
    if refused:
        raise ConfigError(*refused)
    return [f"{key}: {old[key]} -> {new[key]}" for key in changed]
