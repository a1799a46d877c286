"""The training loop, in time order: a step, a log line, a checkpoint, an epoch's end, a stop."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from clipcoco.config.schema import TrainConfig
from clipcoco.data.captions import CaptionTable
from clipcoco.data.loader import Batch, TrainingLoader
from clipcoco.engine.checkpoint import weights_sha256
from clipcoco.engine.device import Device, is_out_of_memory
from clipcoco.engine.loss import contrastive_loss
from clipcoco.engine.model import DualEncoder
from clipcoco.engine.optim import learning_rate, set_learning_rate
from clipcoco.engine.recall import RecallTable
from clipcoco.engine.state import TrainState
from clipcoco.errors import DataError, EnvironmentProblem, NumericError
from clipcoco.events import (
    Evaluated,
    ImageReplaced,
    Progress,
    Report,
    RunEnded,
    StepDone,
    StepSkipped,
    Stopping,
    Warned,
)

MAX_SKIPPED_IN_A_ROW = 10
CHANCE_STEPS = 300  # so long at ln(batch) and a warning is due
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
    evaluate: Callable[[], tuple[float, RecallTable] | None]
    save: Callable[[bool, int | None], None]  # (as the best too, as the file of this epoch too)


def train(run: Training, report: Report, stop: Stop) -> RunEnded:
    """Go on from `run.state` to the last step, or until `stop()` names a reason; all is saved either way."""
    state, schedule, per_epoch = run.state, run.schedule, run.loader.steps_per_epoch
    began = time.monotonic() - state.seconds
    while True:
        # ---- an epoch's end: evaluate, save -------------------------------------------------------------
        if state.step // per_epoch > state.evaluated_epochs:
            if not finish_epoch(run, report):
                break
            state.seconds = time.monotonic() - began
            run.save(state.best_epoch == state.evaluated_epochs, state.evaluated_epochs)
            since_best = state.evaluated_epochs - state.best_epoch
            patience = schedule.config.early_stop_epochs
            if state.step >= schedule.total_steps or (patience and since_best >= patience):
                return _ended(
                    run, report, "finished", "early stop" if state.step < schedule.total_steps else ""
                )
        if stop():
            break

        # ---- the steps of an epoch ----------------------------------------------------------------------
        epoch = state.step // per_epoch
        run.model.train()
        for parameter in run.model.visual.trunk.parameters():
            parameter.requires_grad = epoch >= schedule.frozen_epochs
        interval_start, waited = time.monotonic(), 0.0
        batches = run.loader.epoch(epoch, start=state.step % per_epoch)
        for _ in range(per_epoch - state.step % per_epoch):
            fetched = time.monotonic()
            batch = next(batches)
            waited += time.monotonic() - fetched
            note_replaced(run, batch, report)
            rate = learning_rate(state.step, schedule.total_steps, schedule.warmup_steps, schedule.config.lr)

            # ------------------------------ one training step ------------------------------
            loss, grad_norm = train_step(run, batch.to(run.device.device), rate)
            state.step += 1
            # -------------------------------------------------------------------------------

            count_step(run, loss, grad_norm, report)
            report(Progress("train", state.step, schedule.total_steps))
            if state.step % schedule.config.log_every_steps == 0:
                log_interval(run, rate, time.monotonic() - interval_start, waited, report)
                interval_start, waited = time.monotonic(), 0.0
            if stop():
                break
            if state.step % schedule.checkpoint_steps == 0 and state.step % per_epoch:
                state.seconds = time.monotonic() - began
                run.save(False, None)
        if stop():
            break

    reason = stop() or "stopped"
    report(Stopping(state.step, _epoch(run), reason))
    state.seconds = time.monotonic() - began
    run.save(False, None)
    return _ended(run, report, "stopped", reason)


def train_step(run: Training, batch: Batch, rate: float) -> tuple[float, float]:
    """One step of the optimiser; gives the loss in nats and the gradient's norm before clipping.

    When either is not finite, every parameter, buffer and moment is afterwards what it was before.
    """
    model, schedule = run.model, run.schedule
    set_learning_rate(run.optimizer, rate)
    # Dropout depends on seed and step alone, whatever was drawn or stopped before.
    torch.manual_seed(((schedule.seed << 31) + run.state.step) % 2**63)
    # One bad forward would leave NaN in BatchNorm's running statistics before any loss is looked at.
    buffers = [] if model.visual.pretrained else list(model.visual.trunk.buffers())
    before = [buffer.clone() for buffer in buffers]
    try:
        with run.device.autocast():
            images, texts, temperature = model(batch.images, batch.tokens)
        loss = contrastive_loss(images, texts, temperature)
        run.scaler.scale(loss).backward()
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise _out_of_memory(len(batch.images), run.device) from error
        raise
    run.scaler.unscale_(run.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), schedule.config.grad_clip)
    loss_value, norm_value = torch.stack([loss.detach(), norm]).tolist()  # the step's one wait for the device
    if math.isfinite(loss_value) and math.isfinite(norm_value):
        run.scaler.step(run.optimizer)
        model.clamp_temperature()
    else:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    return loss_value, norm_value


def count_step(run: Training, loss: float, grad_norm: float, report: Report) -> None:
    """Add a finished step to the sums, or count it as skipped; too many of those in a row end the run."""
    state = run.state
    if math.isfinite(loss) and math.isfinite(grad_norm):
        state.skipped_in_a_row = 0
        state.interval_loss += loss
        state.interval_grad_norm += grad_norm
        state.interval_steps += 1
        state.epoch_loss += loss
        state.epoch_steps += 1
        return
    state.skipped_in_a_row += 1
    what = "gradient" if math.isfinite(loss) else "loss"
    report(StepSkipped(state.step, _epoch(run), f"the {what} is not finite"))
    if state.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
        good = state.step - state.skipped_in_a_row
        raise NumericError(
            f"the {what} is not finite at step {state.step:,} and {MAX_SKIPPED_IN_A_ROW - 1} steps before, last good: "
            f"step {good:,} (train.lr is {run.schedule.config.lr:g}). Try a lower train.lr"
        )


def log_interval(run: Training, rate: float, seconds: float, waited: float, report: Report) -> None:
    """Report the means since the last logged step, and warn when nothing is learnt."""
    state, config = run.state, run.schedule.config
    if state.interval_steps:
        loss = state.interval_loss / state.interval_steps
        images = state.interval_steps * config.batch_size
        report(
            StepDone(
                step=state.step,
                epoch=_epoch(run),
                loss=loss,
                lr=rate,
                temperature=temperature(run.model),
                grad_norm=state.interval_grad_norm / state.interval_steps,
                clock={
                    "seconds": seconds,
                    "images_per_second": images / seconds,
                    "data_wait": waited / seconds,
                },
            )
        )
        chance = math.log(config.batch_size)
        state.steps_at_chance = state.steps_at_chance + state.interval_steps if loss > chance - 0.01 else 0
        if state.steps_at_chance >= CHANCE_STEPS:
            warn_once(
                run,
                "chance",
                f"loss {loss:.3f} has stayed at chance (ln {config.batch_size} = {chance:.3f}) for "
                f"{state.steps_at_chance} steps: nothing is learned. Usual causes: train.lr too high, "
                f"captions not matching images",
                report,
            )
    state.interval_loss = state.interval_grad_norm = 0.0
    state.interval_steps = 0


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
    train_loss = state.epoch_loss / max(1, state.epoch_steps)
    if state.last_val_loss is not None and state.last_train_loss is not None:
        rising, falling = val_loss > state.last_val_loss * 1.01, train_loss < state.last_train_loss
        if rising and falling:
            warn_once(
                run,
                "overfitting",
                f"validation loss rose from {state.last_val_loss:.3f} to {val_loss:.3f} while training loss fell to "
                f"{train_loss:.3f}: the model begins to learn its training images by heart. best.pt is kept by R@1; "
                f"more data, fewer train.epochs or train.early_stop_epochs help",
                report,
            )
    state.last_train_loss, state.last_val_loss = train_loss, val_loss
    state.epoch_loss, state.epoch_steps = 0.0, 0
    return True


def note_replaced(run: Training, batch: Batch, report: Report) -> None:
    """Name each unreadable image once; past a threshold the data are broken, not unlucky."""
    table: CaptionTable = run.loader.table
    for row in batch.replaced:
        image_id = int(table.image_ids[row])
        if image_id in run.state.unreadable:
            continue
        run.state.unreadable.append(image_id)
        report(ImageReplaced(run.state.step, _epoch(run), table.files[row]))
        # 0.1 % of the images, or 100 where that is more, but never over 5 %
        limit = max(1, len(table.files) // 1000, min(100, len(table.files) // 20))
        if len(run.state.unreadable) > limit:
            raise DataError(
                f"{len(run.state.unreadable)} of {len(table.files):,} training images can't be read, the last "
                f"{table.files[row]} (data.root). Fetch them anew; up to {limit} would be replaced"
            )


def warn_once(run: Training, kind: str, message: str, report: Report) -> None:
    if kind not in run.state.warned:
        run.state.warned.append(kind)
        report(Warned(run.state.step, _epoch(run), message))


@torch.no_grad()
def temperature(model: DualEncoder) -> float:
    scale: Tensor = model.logit_scale
    return float((-scale).exp())


def _epoch(run: Training) -> int:
    """The epoch, from 1, that the last finished step belongs to."""
    return max(1, -(-run.state.step // run.loader.steps_per_epoch))


def _ended(run: Training, report: Report, state: str, reason: str) -> RunEnded:
    ended = RunEnded(run.state.step, _epoch(run), state, reason, run.state.seconds)
    report(ended)
    return ended


def _out_of_memory(batch: int, device: Device) -> EnvironmentProblem:
    free = ""
    if device.device.type == "cuda":
        available, total = torch.cuda.mem_get_info(device.device)
        free = f", {available / 2**30:.1f} of {total / 2**30:.1f} GiB are free"
    half = batch // 2
    return EnvironmentProblem(
        f"batch {batch} does not fit into the memory of {device.device}{free} (train.batch_size). "
        f"Try --set train.batch_size={half} ({half - 1} negatives an image, not {batch - 1})"
    )
