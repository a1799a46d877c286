"""A run is begun or gone on with: what is checked first, and what a resume may change."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipcoco.assemble import Assembled, assemble, check_disk
from clipcoco.conduct import changed_since, conduct
from clipcoco.config.load import LoadedConfig, flatten, to_plain
from clipcoco.config.schema import Config, TrainConfig
from clipcoco.data.readable import check_readable
from clipcoco.engine import checkpoint
from clipcoco.engine.checkpoint import weights_sha256
from clipcoco.engine.device import choose_device, make_deterministic
from clipcoco.engine.model import DualEncoder, build, pretrained_backbone
from clipcoco.engine.state import TrainState
from clipcoco.engine.step import Stop
from clipcoco.engine.trained_on import recorded
from clipcoco.engine.weights import read_weights
from clipcoco.errors import CheckpointError, ClipcocoError, ConfigError, DistributedError
from clipcoco.events import Report, RunEnded
from clipcoco.files import remove_leftovers
from clipcoco.model_file import open_model
from clipcoco.prepare.scenes import draw_scenes, to_be_drawn
from clipcoco.run_config import BEGAN, rewrite_settings, write_settings
from clipcoco.rundir import RunDir, check_name, create

# Inside it signals ask to stop, and the value says which; outside they end the process at once.
Stopping = Callable[[], AbstractContextManager[Stop]]
# Where events go: of a run that has its directory, or of the checks before there is one.
ReportTo = Callable[[RunDir | None], Report]

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


def start(
    loaded: LoadedConfig,
    *,
    name: str | None,
    runs_dir: Path,
    device_name: str | None,
    init: Path | None,
    report: ReportTo,
    stopping: Stopping,
) -> tuple[RunDir, RunEnded]:
    """A new run, from the first step to the last or to a stop. Nothing is written before all checks pass.

    But for the embedded data set, which is drawn where `to_be_drawn` says so.
    """
    refuse_many_processes()
    if name is not None:
        check_name(runs_dir, name)
    choose_device(device_name, loaded.config.train.precision)  # its errors come first: drawing would be in vain
    if to_be_drawn(loaded):
        draw_scenes(loaded.config.data.folder)
    loaded, parts, model = checked(loaded, name, runs_dir, device_name, init, report(None))
    parts = parts.looked_at(report(None))
    run = create(runs_dir, loaded.name, name)
    with stopping() as stop, run.lock() as unlocked:
        state = TrainState(precision=parts.device.precision, frozen_epochs=parts.derived.frozen_epochs)
        parts = replace(parts, warnings=(*parts.warnings, *filter(None, [unlocked])))
        try:
            write_settings(run, loaded, parts.began, str(init) if init else "")
            return run, conduct(run, parts, model, state, None, report(run), stop)
        except ClipcocoError:
            if not state.step and not any(run.checkpoints.iterdir()):  # nothing came of it
                shutil.rmtree(run.path)
            raise


def refuse_many_processes() -> None:
    """Raise DistributedError where a launcher such as torchrun has started several: each would train the whole run."""
    many = os.environ.get("WORLD_SIZE", "")
    if many.isdecimal() and int(many) > 1:
        raise DistributedError(
            f"{many} processes were started, and each would train the same run by itself (WORLD_SIZE). "
            f"Start one, without torchrun: training with several is not supported yet"
        )


def checked(
    loaded: LoadedConfig, name: str | None, runs_dir: Path, device_name: str | None, init: Path | None, report: Report
) -> tuple[LoadedConfig, Assembled, DualEncoder]:
    """All that can fail, in the order of the exit codes: name 2, device 5, data 3, weights 5, disk 5."""
    if name is not None:
        check_name(runs_dir, name)
    source = None
    if init is not None:
        source = open_model(init)
        loaded = _with_model_of(loaded, source.config, init)
    config = loaded.config
    parts = assemble(
        config,
        device_name,
        config.train.precision,
        source.tokenizer if source else None,
        preset=loaded.chain[-1],
        origin=str(init) if init else None,
    )
    if not parts.derived.frozen_epochs:  # else the features tell, which are computed before the first step
        check_readable(parts.val_table, report)
    weights = None if source else read_weights(config.model.vision)
    if weights and loaded.weights not in ("", weights.sha256):
        raise CheckpointError(
            f"{config.model.vision.weights} is not the file that the run began with whose configuration this is: "
            f"SHA-256 {weights.sha256[:12]}, not {loaded.weights[:12]} (model.vision.weights). "
            f"Bring that file back, or ask for this one: --set model.vision.weights={config.model.vision.weights}"
        )
    backbone = pretrained_backbone(config.model.vision, weights) if weights else None
    if weights:
        parts = parts.begun("weights", weights.sha256, f"{config.model.vision.weights}, {weights.checked}")
    elif source:
        parts = parts.begun("init", weights_sha256(source.content["model"]), str(init))
        parts = replace(parts, before=recorded(source.content))
    make_deterministic(config.seed, parts.device.device)
    model = source.model if source else build(config.model, parts.tokenizer.vocab_size)
    if backbone is not None:
        model.visual.trunk.load_state_dict(backbone)
    check_disk(runs_dir, parts.derived)
    return loaded, parts, model


def _with_model_of(loaded: LoadedConfig, other: Config, init: Path) -> LoadedConfig:
    """The architecture comes with the weights; settings that contradict it would be lost in silence."""
    asked, given = flatten(to_plain(loaded.config)), flatten(to_plain(other))
    lost = [key for key, at in loaded.source.items() if key.startswith("model.") and at == "--set"]
    for key in lost:
        if asked[key] != given[key]:
            raise ConfigError(
                f"{key} is {given[key]} with the weights of {init} (--set). Leave out this setting, or --init"
            )
    return replace(
        loaded,
        config=loaded.config.model_copy(update={"model": other.model}),
        source={key: f"--init {init}" if key.startswith("model.") else at for key, at in loaded.source.items()},
    )


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
    differing = [key for key, value in parts.fingerprint.items() if key != "copies" and before.get(key) != value]
    if differing:
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
