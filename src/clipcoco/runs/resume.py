"""A run goes on, to the bits of one without a stop: what is compared first, and what may change."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clipcoco.config.derive import as_cached
from clipcoco.config.load import LoadedConfig, config_from_plain, flatten, override
from clipcoco.config.schema import CACHED, Config, TrainConfig
from clipcoco.config.text import expanded
from clipcoco.data.readable import check_readable
from clipcoco.disk.files import remove_leftovers
from clipcoco.engine import checkpoint
from clipcoco.engine.device import make_deterministic
from clipcoco.engine.distributed import ALONE, Group
from clipcoco.engine.model_file import open_model
from clipcoco.engine.state import TrainState
from clipcoco.engine.trained_on import known_words, recorded
from clipcoco.engine.weights import file_sha256
from clipcoco.errors import CheckpointError, ConfigError
from clipcoco.events import Report, Warned
from clipcoco.runs.config_file import BEGAN, settings_after, write_settings
from clipcoco.runs.directory import RunDir
from clipcoco.runs.names import Found
from clipcoco.runs.plan import Plan, check_disk, read_parts
from clipcoco.runs.saving import changed_since
from clipcoco.runs.start import new_run

# What a resume may change: nothing that would make it another experiment.
CHANGEABLE = {
    "data.root",
    "data.workers",
    "train.epochs",
    "train.early_stop_epochs",
    "train.log_every_steps",
    "checkpoint.every_steps",
    "checkpoint.keep",
    "expected.protocol",
    "expected.cached",
    "expected.trained",
}


@dataclass(frozen=True)
class Saved:
    """A checkpoint to go on from. Its run is locked as long as `open_saved` holds it."""

    run: RunDir | None  # None: the file is not in a run directory
    path: Path
    content: dict[str, Any]  # untrusted data
    state: TrainState
    before: Config
    config: Config  # with what changes now
    changes: tuple[str, ...]  # the words that ask for it: "train.epochs=20"
    changed: tuple[str, ...]  # for a person: "train.epochs: 10 -> 20"
    notes: tuple[str, ...]  # on a file system without locks, and on damaged checkpoints

    @property
    def name(self) -> str:
        return self.run.name if self.run else str(self.path)

    @property
    def words(self) -> str:
        """What to type for it in a shell."""
        return self.run.words if self.run else shlex.quote(str(self.path))


@contextmanager
def open_saved(found: Found, changes: Sequence[str]) -> Iterator[Saved]:
    """The newest checkpoint of a run that is whole, or the one that was named. Raises CheckpointError, ConfigError."""
    run, path = found.run, found.checkpoint
    with run.lock() if run else nullcontext("") as unlocked:
        content = checkpoint.load(path) if path else {}
        notes = [unlocked] if unlocked else []
        if run is not None:
            newest, last, damaged = checkpoint.newest(run.checkpoints)
            path, content = path or newest, content or last
            gone_on, step = (TrainState.from_plain(one["state"]).step for one in (last, content))
            if step < gone_on:  # it would destroy what came after
                raise CheckpointError(
                    f"run {run.name} has gone on to step {gone_on:,}, {path.name} is of step "
                    f"{step:,}. Go on: clipcoco resume {run.words}, or start a new run from those "
                    f"weights: clipcoco train --preset NAME --init {path}"
                )
            notes += [f"{line}. Taking {path.name}" for line in damaged]
        assert path is not None, "of a run, or a file"
        before = config_from_plain(content["config"], str(path))
        config, state = override(before, changes) if changes else before, TrainState.from_plain(content["state"])
        config = as_cached(config) if before.train.frozen_epochs == "all" else config
        changed = _changed_settings(before, config)
        yield Saved(run, path, content, state, before, config, tuple(changes), changed, tuple(notes))


def plan_resume(saved: Saved, *, runs_dir: Path, device_name: str | None, report: Report, group: Group = ALONE) -> Plan:
    """The run as it goes on; writes nothing but what it remembers of the pictures. All that can fail is checked.

    A checkpoint of no run goes on in a new one in `runs_dir`."""
    path, content, state = saved.path, saved.content, saved.state
    for note in saved.notes:
        report(Warned(state.step, 1, note))
    # ---- the checkpoint
    held = open_model(path, content)
    missing = {"optimizer", "scaler", "rng", "data", "metrics"} - content.keys()
    if missing:
        raise CheckpointError(
            f"{path} holds weights but no {', '.join(sorted(missing))}. Train on from its weights: "
            f"clipcoco train --preset NAME --init {path}"
        )
    # ---- device and data, as they were
    parts = read_parts(
        saved.config,
        device_name,
        state.precision,
        held.tokenizer,
        origin=str(path),
        source_like=content["data"].get("source"),
        frozen_epochs=_frozen_epochs(state, saved.before.train, saved.config.train),
        micro_batch_size=state.micro_batch_size or _at_once(saved.config.train),
        group=group,
    )
    state.frozen_epochs, state.micro_batch_size = parts.derived.frozen_epochs, parts.micro_batch
    state.check(parts.derived.steps_per_epoch, path)
    loaded, init = settings_after(saved.run, saved.config, saved.changes, path.stem)
    plan = Plan(
        loaded=loaded,
        parts=parts,
        model=held.model,
        state=state,
        header=parts.header,
        began={what: content["data"][what] for what in BEGAN if what in content["data"]},
        init=init,
        content=content,
        before=recorded(content),
        # An earlier version kept none: of a run that began from nothing they are those of its captions.
        words=known_words(content) if "words" in content or "init" in content["data"] else set(),
    )
    _check_data(plan, content["data"], saved.name)
    # ---- what keeps it from the bits of a run without a stop
    plan = plan.looked_at(report)
    other = changed_since(content, plan)
    if other and state.evaluated_epochs >= parts.derived.frozen_epochs:  # else they are decoded as when it began
        check_readable(parts.val_table, report)
    if parts.device.precision != state.precision:
        lacking = f"({parts.device.device} has no {state.precision})"
        other.insert(0, f"{state.precision} -> {parts.device.precision} {lacking}")
        state.precision = parts.device.precision
    if saved.config.train.epochs != saved.before.train.epochs:
        other.append(f"the schedule now ends at step {parts.derived.total_steps:,}")
    exact = f"not to the bit: {', '.join(other)}" if other else "to the bit, as without the stop"
    make_deterministic(saved.config.seed, parts.device.device)
    if saved.run is None:
        check_disk(runs_dir, parts.derived)
    return replace(plan, header=(*parts.header, ("exact", exact)))


@contextmanager
def resumed_run(saved: Saved, plan: Plan, runs_dir: Path) -> Iterator[tuple[RunDir, str]]:
    """The run's own directory, without what a kill left behind; a new one for a checkpoint of no run."""
    if saved.run is None:
        with new_run(plan, runs_dir, None) as made:
            yield made
        return
    run = saved.run
    checkpoint.remove_leftovers(run.checkpoints)
    for path in (run.path / "status.json", run.metrics, run.config):
        remove_leftovers(path)
    if saved.changes:
        write_settings(run, plan.loaded, plan.began, plan.init)
    yield run, ""


def _free(config: Config) -> set[str]:
    """What a resume may change; where BatchNorm is trained, the size of a piece is part of the experiment."""
    trained = config.model.vision.weights == "none" and config.train.frozen_epochs != "all"
    return CHANGEABLE if trained else CHANGEABLE | {"train.micro_batch_size"}


def _changed_settings(before: Config, after: Config) -> tuple[str, ...]:
    """Raises ConfigError for a setting that would change the meaning of the run."""
    old, new = flatten(before), flatten(after)
    # What is trained stands in `train`; beside it train.cached tells of nothing.
    changed = [key for key in new if old.get(key) != new[key] and key not in CACHED.values()]
    free = _free(before)
    refused = [
        f"{key} can't change at a resume: {old[key]} -> {new[key]} (--set). "
        f"Start a new run from the weights: clipcoco train --init RUN"
        for key in changed
        if key not in free
    ]
    for own, cached in CACHED.items():
        if new[cached] not in (old[cached], new[own]):
            refused.append(f"{cached} has no effect on this run, which trains by {own} (--set). Leave it out")
    if after.train.epochs < before.train.epochs:
        refused.append(f"train.epochs can only grow at a resume: {before.train.epochs} -> {after.train.epochs} (--set)")
    if refused:
        raise ConfigError(*refused)
    return tuple(f"{key}: {old[key]} -> {new[key]}" for key in changed)


def _check_data(plan: Plan, before: dict[str, Any], name: str) -> None:
    """Copies may have been made again: the pictures tell."""
    differing = [key for key, value in plan.fingerprint.items() if key != "copies" and before.get(key) != value]
    if differing:
        raise CheckpointError(
            f"the data at {plan.parts.config.data.root} are not those of run {name}: {', '.join(differing)} differ "
            f"(data.root). Bring those back, or start a new run from its weights with --init {name}"
        )


def _at_once(train: TrainConfig) -> int:
    """The rows of a piece in a run of before, which took a batch at once; 0 where they are yet to be found."""
    return 0 if train.micro_batch_size == "auto" else train.batch_size


def _frozen_epochs(state: TrainState, before: TrainConfig, after: TrainConfig) -> int | None:
    """As the run began, whatever the device is now; None, to be resolved again, where all were frozen and grew."""
    grew = after.epochs > before.epochs and state.frozen_epochs == before.epochs
    return None if grew or state.frozen_epochs < 0 else state.frozen_epochs


def check_same(saved: Saved, loaded: LoadedConfig) -> None:
    """For --or-resume: raise ConfigError unless the run is of the configuration that was asked for."""
    before, asked = saved.before, loaded.config
    if before.train.frozen_epochs == "all" and asked.train.frozen_epochs in ("auto", "all"):
        asked = as_cached(asked, before.train)
    if asked.train.micro_batch_size == "whole":  # is what it was where the run began
        pieces = {"micro_batch_size": before.train.micro_batch_size}
        asked = asked.model_copy(update={"train": asked.train.model_copy(update=pieces)})
    old, new = flatten(before), flatten(asked)
    free = {*_free(before), *CACHED.values()}
    differing = sorted(key for key in new if key not in free and old[key] != new[key])
    if differing:
        raise ConfigError(
            f"run {saved.name} has another configuration: {', '.join(differing[:4])} (--or-resume). Take another --name"
        )
    weights, began = expanded(str(new["model.vision.weights"])), saved.content.get("data", {}).get("weights")
    if began and weights.is_file() and file_sha256(weights) != began:
        raise ConfigError(
            f"run {saved.name} began with another {weights}, of SHA-256 {began[:12]} (--or-resume). Take another --name"
        )
