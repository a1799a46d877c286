"""The life of a run: what is checked before it starts, how its parts are joined, how it goes on after a stop."""

import contextlib
import math
import platform
import resource
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from clipcoco import __version__
from clipcoco.assemble import Assembled, assemble, build_training, check_disk
from clipcoco.config.load import LoadedConfig, dump, flatten, to_plain
from clipcoco.config.schema import Config
from clipcoco.engine import checkpoint
from clipcoco.engine.device import make_deterministic
from clipcoco.engine.model import DualEncoder, build, pretrained_backbone
from clipcoco.engine.recall import chance_levels
from clipcoco.engine.state import TrainState
from clipcoco.engine.train import Stop, Training, train, train_step
from clipcoco.errors import CheckpointError, ClipcocoError, ConfigError
from clipcoco.events import CheckpointSaved, Event, Report, RunEnded, RunStarted, Warned
from clipcoco.loggers import MetricsFile, TensorBoard, fan_out
from clipcoco.model_file import open_model
from clipcoco.rundir import RunDir, create

# Inside it signals ask to stop, and the value says which; outside they end the process at once.
Stopping = Callable[[], AbstractContextManager[Stop]]

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


def rehearse(loaded: LoadedConfig, device_name: str | None, runs_dir: Path) -> list[tuple[str, str]]:
    """All the checks of a run and a few real steps on the device; writes nothing. Lines for a person."""
    config = loaded.config
    parts = assemble(config, device_name, config.train.precision, False, None)
    model = new_model(parts)
    check_disk(runs_dir, parts.derived)
    state = TrainState(precision=parts.device.precision)
    training = build_training(parts, model, state, report=lambda event: None, stop=lambda: None)
    training.model.train()
    batches = training.loader.epoch(0)
    seconds = []
    for _ in range(min(4, parts.derived.steps_per_epoch)):  # the first warms up
        began = time.monotonic()
        train_step(training, next(batches).to(parts.device.device), config.train.lr)
        seconds.append(time.monotonic() - began)
    if parts.device.device.type == "cuda":
        memory = f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB on {parts.device.device}"
    else:
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
        memory = f"{kilobytes / 2**20:.1f} GiB"
    derived = parts.derived
    step = sorted(seconds[1:] or seconds)[len(seconds[1:]) // 2]
    return [
        *parts.header,
        ("memory", f"{memory} at its highest"),
        (
            "disk",
            f"{derived.checkpoints_kept} checkpoints of {derived.checkpoint_bytes / 1e6:,.0f} MB at most",
        ),
        (
            "time",
            f"{step:.2f} s a step, {derived.total_steps * step / 60:,.0f} min of steps, evaluations apart",
        ),
        ("wrote", "nothing (--dry-run)"),
    ]


def new_model(parts: Assembled) -> DualEncoder:
    """A model with the weights that its configuration asks for, random where it asks for none."""
    config = parts.config
    backbone = pretrained_backbone(config.model.vision)
    make_deterministic(config.seed, parts.device.device)
    model = build(config.model, parts.tokenizer.vocab_size)
    if backbone is not None:
        model.visual.trunk.load_state_dict(backbone)
    return model


def start(
    loaded: LoadedConfig,
    *,
    name: str | None,
    runs_dir: Path,
    device_name: str | None,
    init: Path | None,
    report: Callable[[RunDir], Report],
    stopping: Stopping,
) -> tuple[RunDir, RunEnded]:
    """A new run, from the first step to the last or to a stop. Nothing is written before all checks pass."""
    config, where, source = loaded.config, loaded.source, None
    if init is not None:
        source = open_model(init)
        config = config.model_copy(update={"model": source.config.model})
        where = {key: f"--init {init}" if key.startswith("model.") else value for key, value in where.items()}
    draw = "demo" in loaded.chain
    parts = assemble(config, device_name, config.train.precision, draw, source.tokenizer if source else None)
    if source is None:
        model = new_model(parts)
    else:
        make_deterministic(config.seed, parts.device.device)
        model = source.model
    check_disk(runs_dir, parts.derived)
    run = create(runs_dir, loaded.name, name)
    with stopping() as stop, run.lock():
        run.config.write_text(dump(replace(loaded, config=config, source=where)))
        state = TrainState(precision=parts.device.precision)
        return run, go(run, parts, model, state, None, report(run), stop)


def resume(
    run: RunDir,
    path: Path,
    content: dict[str, Any],
    config: Config,
    *,
    device_name: str | None,
    report: Callable[[RunDir], Report],
    stopping: Stopping,
) -> tuple[RunDir, RunEnded]:
    """Go on from a checkpoint, to the same bits as without the stop."""
    saved = open_model(path, content)
    check_changes(saved.config, config)
    state = TrainState.from_plain(content["state"])
    missing = {"optimizer", "scaler", "rng", "data", "metrics"} - content.keys()
    if missing:
        raise CheckpointError(
            f"{path} holds weights but no {', '.join(sorted(missing))}. Train on from its weights: "
            f"clipcoco train --preset NAME --init {path}"
        )
    parts = assemble(config, device_name, state.precision, False, saved.tokenizer)
    differing = [key for key, value in parts.fingerprint.items() if content["data"].get(key) != value]
    if differing:
        raise CheckpointError(
            f"the data at {config.data.root} are not those of run {run.name}: {', '.join(differing)} differ "
            f"(data.root). Bring those back, or start anew from its weights with --init {run.name}"
        )
    make_deterministic(config.seed, parts.device.device)
    with stopping() as stop, run.lock():
        checkpoint.remove_leftovers(run.checkpoints)
        return run, go(run, parts, saved.model, state, content, report(run), stop)


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


def go(
    run: RunDir,
    parts: Assembled,
    model: DualEncoder,
    state: TrainState,
    content: dict[str, Any] | None,
    show: Report,
    stop: Stop,
) -> RunEnded:
    """Join the parts, then train. The run directory exists and is locked."""
    metrics = MetricsFile(run.metrics, content["metrics"] if content else [])
    with contextlib.closing(TensorBoard(run.tensorboard, state.step if content else None)) as tensorboard:
        report = fan_out(show, metrics, tensorboard, lambda event: _keep_status(run, event))
        training = build_training(parts, model, state, report, stop)
        if content:
            restore(training, content)
        training = replace(training, save=_saver(run, parts, training, metrics, report))
        report(_started(run, parts, state, tuple(metrics.rows) if content else ()))
        for message in parts.warnings:
            if content is None:
                report(Warned(state.step, 1, message))
        try:
            return train(training, report, stop)
        except BaseException as error:
            code = (
                error.exit_code
                if isinstance(error, ClipcocoError)
                else 130
                if isinstance(error, KeyboardInterrupt)
                else 1
            )
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            run.write_status(state="failed", step=state.step, exit_code=int(code), reason=reason)
            with open(run.log, "a") as log:
                log.write(traceback.format_exc())
            raise


def restore(training: Training, content: dict[str, Any]) -> None:
    """Moments, scale and random state as they were."""
    try:
        training.optimizer.load_state_dict(content["optimizer"])
        training.scaler.load_state_dict(content["scaler"])
        torch.set_rng_state(content["rng"]["torch"])
    except (ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise CheckpointError(f"the optimiser of this checkpoint does not fit its model: {error}") from error


def _saver(
    run: RunDir, parts: Assembled, training: Training, metrics: MetricsFile, report: Report
) -> Callable[[bool, int | None], None]:
    plain, versions = to_plain(parts.config), _versions()

    def save(best: bool, epoch: int | None) -> None:
        state = training.state
        content = {
            "model": training.model.state_dict(),
            "ema": None,
            "optimizer": training.optimizer.state_dict(),
            "scaler": training.scaler.state_dict(),
            "state": state.to_plain(),
            "rng": {"torch": torch.get_rng_state()},
            "config": plain,
            "tokenizer": parts.tokenizer.to_plain(),
            "metrics": list(metrics.rows),
            "versions": versions,
            "data": parts.fingerprint,
        }
        size, seconds = checkpoint.save(
            run.checkpoints, content, best=best, epoch=epoch, keep=parts.config.checkpoint.keep
        )
        best_so_far = {"r1": state.best_r1, "epoch": state.best_epoch} if state.best_epoch else None
        run.write_status(step=state.step, checkpoint="checkpoints/last.pt", best=best_so_far)
        number = max(1, -(-state.step // training.loader.steps_per_epoch))
        report(CheckpointSaved(state.step, number, run.checkpoints / "last.pt", size, seconds))

    return save


def _versions() -> dict[str, str]:
    """What must be the same for a resume to the bit."""
    return {
        "clipcoco": __version__,
        "torch": str(torch.__version__),  # a class of its own, which weights_only refuses
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": str(torch.get_num_threads()),
    }


def changed_versions(content: dict[str, Any]) -> list[str]:
    """`name old -> new` for each version that differs from the checkpoint's."""
    old = content.get("versions", {})
    return [f"{name} {old.get(name)} -> {new}" for name, new in _versions().items() if old.get(name) != new]


def _keep_status(run: RunDir, event: Event) -> None:
    if isinstance(event, RunStarted):
        run.write_status(state="running", step=event.step, total_steps=event.total_steps, exit_code=None, reason="")
    elif isinstance(event, RunEnded):
        code = 0 if event.state == "finished" else 75
        run.write_status(state=event.state, step=event.step, exit_code=code, reason=event.reason)


def _started(run: RunDir, parts: Assembled, state: TrainState, rows: tuple[dict[str, Any], ...]) -> RunStarted:
    derived = parts.derived
    return RunStarted(
        step=state.step,
        epoch=state.step // derived.steps_per_epoch + 1,
        name=run.name,
        folder=run.path,
        total_steps=derived.total_steps,
        steps_per_epoch=derived.steps_per_epoch,
        epochs=parts.config.train.epochs,
        batch_size=parts.config.train.batch_size,
        header=(*parts.header, ("run", str(run.path))),
        chance={k: asdict(v) for k, v in chance_levels(torch.from_numpy(parts.val_table.owners)).items()},
        chance_loss=math.log(parts.config.train.batch_size),
        rows=rows,
    )
