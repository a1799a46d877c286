"""Join a run's parts with its directory: records, status, checkpoints; then train."""

import contextlib
import math
import platform
import traceback
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy
import torch
import torchvision

from clipcoco import __version__
from clipcoco.assemble import Assembled, backbone_features, build_training
from clipcoco.config.load import flatten, to_plain
from clipcoco.data.viewer import VIEW
from clipcoco.engine import checkpoint
from clipcoco.engine.device import Device, is_out_of_memory, out_of_memory
from clipcoco.engine.model import DualEncoder
from clipcoco.engine.optim import restore_moments
from clipcoco.engine.recall import chance_levels
from clipcoco.engine.state import TrainState
from clipcoco.engine.train import Stop, Training, train
from clipcoco.errors import CheckpointError, ClipcocoError, ExitCode
from clipcoco.events import CheckpointSaved, Event, Report, RunEnded, RunStarted, Warned
from clipcoco.files import open_to_append
from clipcoco.loggers import MetricsFile, TensorBoard, fan_out
from clipcoco.rundir import RunDir


def conduct(
    run: RunDir,
    parts: Assembled,
    model: DualEncoder,
    state: TrainState,
    content: dict[str, Any] | None,
    show: Report,
    stop: Stop,
) -> RunEnded:
    """Train from `state` on; `content` is the checkpoint of a resume. The directory exists and is locked."""
    metrics = MetricsFile(run.metrics, content["metrics"] if content else [])
    with contextlib.closing(
        TensorBoard(run.tensorboard, state.step if content else None, flatten(parts.config))
    ) as tensorboard:
        report = fan_out(show, metrics, tensorboard, lambda event: _keep_status(run, parts, state, event))
        try:
            report(_started(run, parts, state, tuple(metrics.rows) if content else ()))
            for message in () if content else parts.warnings:
                report(Warned(state.step, 1, message))
            frozen = state.evaluated_epochs < parts.derived.frozen_epochs
            cached = backbone_features(parts, model, report, stop) if frozen else None
            training = build_training(parts, model, state, cached, report, stop)
            if content:
                _restore(training, content)
            training = replace(training, save=_saver(run, parts, training, metrics, report))
            return train(training, report, stop)
        except BaseException as error:
            _note_failure(run, state, error)
            if is_out_of_memory(error):
                raise out_of_memory(parts.config.train.batch_size, parts.device) from error
            raise


def _note_failure(run: RunDir, state: TrainState, error: BaseException) -> None:
    code = error.exit_code if isinstance(error, ClipcocoError) else ExitCode.BUG
    if isinstance(error, KeyboardInterrupt):
        code = ExitCode.INTERRUPTED
    elif is_out_of_memory(error):
        code = ExitCode.ENVIRONMENT
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    with contextlib.suppress(OSError):  # a full disk must not hide the error itself
        run.write_status(state="failed", step=state.step, exit_code=int(code), reason=reason)
        with open_to_append(run.log) as log:
            log.write(traceback.format_exc().encode("utf-8", "backslashreplace"))


def _restore(training: Training, content: dict[str, Any]) -> None:
    """Moments, scale and random state as they were."""
    try:
        restore_moments(training.optimizer, content["optimizer"])
        training.scaler.load_state_dict(content["scaler"])
        torch.set_rng_state(content["rng"]["torch"])
    except (ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise CheckpointError(f"the optimiser of this checkpoint does not fit its model: {error}") from error


def _saver(
    run: RunDir, parts: Assembled, training: Training, metrics: MetricsFile, report: Report
) -> Callable[[bool, int | None], None]:
    plain, versions, state = to_plain(parts.config), _versions(parts.device), training.state

    def save(best: bool, epoch: int | None) -> None:
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
        number = state.epoch(training.loader.steps_per_epoch)
        report(CheckpointSaved(state.step, number, run.checkpoints / "last.pt", size, seconds))

    return save


def _versions(device: Device) -> dict[str, str]:
    """What must be the same for a resume to the bit."""
    kind = torch.cuda.get_device_name(device.device) if device.device.type == "cuda" else device.device.type
    return {
        "clipcoco": __version__,
        "torch": str(torch.__version__),  # a class of its own, which weights_only refuses
        "torchvision": str(torchvision.__version__),
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "device": kind,
        "threads": str(torch.get_num_threads()),
        "view": str(VIEW),
    }


def changed_versions(content: dict[str, Any], device: Device) -> list[str]:
    """`name old -> new` for each version that differs from the checkpoint's."""
    old = {"view": "1"} | content.get("versions", {})  # the first view had no number
    return [f"{name} {old.get(name)} -> {new}" for name, new in _versions(device).items() if old.get(name) != new]


def _keep_status(run: RunDir, parts: Assembled, state: TrainState, event: Event) -> None:
    if isinstance(event, RunStarted):
        run.write_status(
            state="running",
            step=event.step,
            total_steps=event.total_steps,
            epochs=event.epochs,
            val_images=len(parts.val_table.files),
            device=str(parts.device.device),
            chance=event.chance,
            exit_code=None,
            reason="",
        )
    elif isinstance(event, CheckpointSaved):
        best = {"r1": state.best_r1, "epoch": state.best_epoch} if state.best_epoch else None
        run.write_status(step=event.step, checkpoint="checkpoints/last.pt", best=best, seconds=state.seconds)
    elif isinstance(event, RunEnded):
        code = ExitCode.OK if event.state == "finished" else ExitCode.STOPPED
        run.write_status(
            state=event.state, step=event.step, exit_code=int(code), reason=event.reason, seconds=event.seconds
        )


def _started(run: RunDir, parts: Assembled, state: TrainState, rows: tuple[dict[str, Any], ...]) -> RunStarted:
    derived, config = parts.derived, parts.config.train
    chance = chance_levels(torch.from_numpy(parts.val_table.owners))
    return RunStarted(
        step=state.step,
        epoch=state.step // derived.steps_per_epoch + 1,
        name=run.name,
        folder=run.path,
        total_steps=derived.total_steps,
        steps_per_epoch=derived.steps_per_epoch,
        epochs=config.epochs,
        batch_size=config.batch_size,
        header=(*parts.header, ("run", str(run.path))),
        chance={direction: asdict(levels) for direction, levels in chance.items()},
        chance_loss=math.log(config.batch_size),
        rows=rows,
    )
