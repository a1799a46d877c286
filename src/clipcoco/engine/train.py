"""The training loop, in time order: a step, a log line, a checkpoint, an epoch's end, a stop."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from clipcoco.config.schema import TrainConfig
from clipcoco.data.features import Features
from clipcoco.data.loader import Batch, TrainingLoader
from clipcoco.engine.checkpoint import weights_sha256
from clipcoco.engine.device import Device
from clipcoco.engine.loss import contrastive_loss
from clipcoco.engine.model import DualEncoder
from clipcoco.engine.optim import learning_rate, set_learning_rate
from clipcoco.engine.recall import RecallTable
from clipcoco.engine.state import TrainState
from clipcoco.engine.watch import Step, count_step, log_interval, note_replaced, watch_overfitting
from clipcoco.errors import ClipcocoError
from clipcoco.events import Evaluated, Progress, Report, RunEnded

Stop = Callable[[], str | None]  # the reason to stop, when there is one


@dataclass(frozen=True)
class Schedule:
    """The settings of the loop, with every `auto` resolved."""

    config: TrainConfig
    seed: int
    total_steps: int
    warmup_steps: int
    frozen_epochs: int
    checkpoint_steps: int


@dataclass(frozen=True)
class Training:
    """What the loop works on. `evaluate` gives validation loss and recall, or None when stopped meanwhile."""

    model: DualEncoder
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    device: Device
    schedule: Schedule
    state: TrainState
    loader: TrainingLoader
    features: Features | None  # of the training images, for the epochs with a frozen backbone
    evaluate: Callable[[], tuple[float, RecallTable] | None]
    save: Callable[[bool, int | None], None]  # (as the best too, as the file of this epoch too)


def train(run: Training, report: Report, stop: Stop) -> RunEnded:
    """Go on from `run.state` to the last step, or until `stop()` names a reason; all is saved either way."""
    state, schedule, per_epoch = run.state, run.schedule, run.loader.steps_per_epoch
    began = time.monotonic() - state.seconds
    while True:
        # ---- an epoch's end: save, evaluate, save -------------------------------------------------------
        if state.step // per_epoch > state.evaluated_epochs:
            state.seconds = time.monotonic() - began
            run.save(False, None)  # an evaluation may fail, and must not take the epoch with it
            if not finish_epoch(run, report):
                break
            state.seconds = time.monotonic() - began
            run.save(state.best_epoch == state.evaluated_epochs, state.evaluated_epochs)
        if state.is_finished(schedule.config):
            return _ended(run, report, "finished", "early stop" if state.step < schedule.total_steps else "")
        if stop():
            break

        # ---- the steps of an epoch ----------------------------------------------------------------------
        epoch = state.step // per_epoch
        start_epoch(run.model, epoch, schedule.frozen_epochs)
        features = run.features if epoch < schedule.frozen_epochs else None
        batches = run.loader.epoch(epoch, state.step % per_epoch, features)
        for _ in range(per_epoch - state.step % per_epoch):
            start = time.monotonic()
            try:
                batch = next(batches, None)
            except ClipcocoError:  # of the images or of a worker
                if state.step % per_epoch:  # what was learnt since the last save is kept
                    state.seconds = time.monotonic() - began
                    run.save(False, None)
                raise
            if batch is None:  # stopped while it was waited for
                break
            state.interval_waited += time.monotonic() - start
            note_replaced(state, epoch + 1, run.loader.table, batch.replaced, report)
            rate = learning_rate(state.step, schedule.total_steps, schedule.warmup_steps, schedule.config.lr)

            # ------------------------------ one training step ------------------------------
            step = train_step(run, batch.to(run.device.device), rate)
            state.step += 1
            # -------------------------------------------------------------------------------

            count_step(state, epoch + 1, step, run.loader.table, report)
            state.interval_seconds += time.monotonic() - start
            report(Progress("train", state.step, schedule.total_steps))
            if state.step % schedule.config.log_every_steps == 0:
                log_interval(state, epoch + 1, schedule.config.batch_size, rate, temperature(run.model), report)
            if stop():
                break
            if state.step % schedule.checkpoint_steps == 0 and state.step % per_epoch:
                state.seconds = time.monotonic() - began
                run.save(False, None)
        if stop():
            break

    reason = stop() or "stopped"
    state.seconds = time.monotonic() - began
    run.save(False, None)
    return _ended(run, report, "stopped", reason)


def start_epoch(model: DualEncoder, epoch: int, frozen_epochs: int) -> None:
    """Training mode, the backbone frozen in the first epochs: young heads would send it noise."""
    model.train()
    for parameter in model.visual.trunk.parameters():
        parameter.requires_grad = epoch >= frozen_epochs


def train_step(run: Training, batch: Batch, rate: float) -> Step:
    """One step of the optimiser.

    When its loss or gradient is not finite, every parameter, buffer and moment is afterwards what it was before.
    """
    model, schedule = run.model, run.schedule
    set_learning_rate(run.optimizer, rate)
    # Dropout depends on seed and step alone, whatever was drawn or stopped before.
    torch.manual_seed(((schedule.seed << 31) + run.state.step) % 2**63)
    # One bad forward would leave NaN in BatchNorm's running statistics before any loss is looked at.
    buffers = [] if model.visual.pretrained else list(model.visual.trunk.buffers())
    before = [buffer.clone() for buffer in buffers]
    with run.device.autocast():
        images, texts, temperature = model(batch.images, batch.tokens)
    loss = contrastive_loss(images, texts, temperature)
    run.scaler.scale(loss).backward()
    run.scaler.unscale_(run.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), schedule.config.grad_clip)
    loss_value, norm_value = torch.stack([loss.detach(), norm]).tolist()  # the step's one wait for the device
    calibrating = False
    if math.isfinite(loss_value) and math.isfinite(norm_value):
        run.scaler.step(run.optimizer)
        model.clamp_temperature()
    else:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
        # At a scale of 1 it is the gradient itself that float16 can't hold.
        calibrating = math.isfinite(loss_value) and run.scaler.is_enabled() and run.scaler.get_scale() > 1
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    return Step(loss_value, norm_value, rate, calibrating, batch.image_ids)


def finish_epoch(run: Training, report: Report) -> bool:
    """Evaluate after an epoch's last step, note the best, watch for overfitting; False when stopped meanwhile."""
    state, began = run.state, time.monotonic()
    result = run.evaluate()
    if result is None:
        return False
    val_loss, table = result
    state.evaluated_epochs += 1
    best = table.r1 > state.best_r1
    if best:
        state.best_r1, state.best_epoch = table.r1, state.evaluated_epochs
    plain = table.to_plain()
    report(
        Evaluated(
            step=state.step,
            epoch=state.evaluated_epochs,
            val_loss=val_loss,
            i2t=plain["i2t"],
            t2i=plain["t2i"],
            r1=table.r1,
            rsum=table.rsum,
            weights_sha256=weights_sha256(run.model.state_dict()),
            best=best,
            clock={"seconds": time.monotonic() - began},
        )
    )
    watch_overfitting(state, run.schedule.config.batch_size, val_loss, report)
    return True


@torch.no_grad()
def temperature(model: DualEncoder) -> float:
    scale: Tensor = model.logit_scale
    return float((-scale).exp())


def _epoch(run: Training) -> int:
    """The epoch, from 1, that the last finished step belongs to."""
    return run.state.epoch(run.loader.steps_per_epoch)


def _ended(run: Training, report: Report, state: str, reason: str) -> RunEnded:
    ended = RunEnded(run.state.step, _epoch(run), state, reason, run.state.seconds)
    report(ended)
    return ended
