"""What a run notes of itself: means of the steps, skipped steps, unreadable images, and when to warn.

Everything that is noted is in TrainState, so that a resumed run notes the same.
"""

import math

import numpy as np

from clipcoco.data.captions import CaptionTable
from clipcoco.engine.state import TrainState
from clipcoco.engine.step import Step, Training, temperature
from clipcoco.errors import DataError, NumericError
from clipcoco.events import ImageReplaced, Report, StepDone, StepSkipped, Warned

MAX_SKIPPED_IN_A_ROW = 10
CHANCE_STEPS = 300  # so long at the loss of chance and a warning is due


def count_step(state: TrainState, epoch: int, step: Step, table: CaptionTable, report: Report) -> None:
    """Add a finished step to the sums, or count it as skipped; too many of those in a row end the run."""
    if math.isfinite(step.loss) and math.isfinite(step.grad_norm):
        state.skipped_in_a_row = 0
        state.interval_loss += step.loss
        state.interval_grad_norm += step.grad_norm
        state.interval_steps += 1
        state.epoch_loss += step.loss
        state.epoch_steps += 1
        return
    if step.calibrating:
        state.calibration_steps += 1
        return
    state.skipped_in_a_row += 1
    what = "gradient" if math.isfinite(step.loss) else "loss"
    report(StepSkipped(state.step, epoch, f"the {what} is not finite"))
    if state.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
        images = [table.files[row] for row in np.searchsorted(table.image_ids, step.image_ids[:2].numpy())]
        raise NumericError(
            f"the {what} is not finite at step {state.step:,}, nor were the {MAX_SKIPPED_IN_A_ROW - 1} before it; "
            f"last good: step {state.step - state.skipped_in_a_row:,} (loss {step.loss:.3g}, gradient norm "
            f"{step.grad_norm:.3g}, learning rate {step.lr:.2g}, images {', '.join(images)} and "
            f"{len(step.image_ids) - len(images)} more). Try a lower train.lr"
        )


def log_interval(training: Training, epoch: int, lr: float, report: Report) -> None:
    """Report the means since the last logged step, and warn when nothing is learnt."""
    state, chance = training.state, training.chance_loss
    if (loss := state.interval_mean) is not None:
        seconds = max(state.interval_seconds, 1e-9)
        report(
            StepDone(
                step=state.step,
                epoch=epoch,
                loss=loss,
                lr=lr,
                temperature=temperature(training.model),
                grad_norm=state.interval_grad_norm / state.interval_steps,
                clock={
                    "seconds": seconds,
                    "images_per_second": state.interval_steps * training.schedule.config.batch_size / seconds,
                    "data_wait": state.interval_waited / seconds,
                },
            )
        )
        state.steps_at_chance = state.steps_at_chance + state.interval_steps if loss > chance - 0.01 else 0
        if state.steps_at_chance >= CHANCE_STEPS:
            message = (
                f"loss {loss:.3f} has stayed at or above chance ({chance:.3f}) for "
                f"{state.steps_at_chance} steps: nothing is learned. Usual causes: train.lr too high, "
                f"captions not matching images"
            )
            _warn_once(state, epoch, "chance", message, report)
    state.interval_loss = state.interval_grad_norm = state.interval_seconds = state.interval_waited = 0.0
    state.interval_steps = 0


def watch_overfitting(state: TrainState, chance_loss: float, val_loss: float, report: Report) -> None:
    """Close an epoch's sums; warn when validation loss rises while training loss falls."""
    train_loss = state.epoch_loss / max(1, state.epoch_steps)
    before_train, before_val = state.last_train_loss, state.last_val_loss
    # 1 % more is above the noise, and a loss that is not below chance can't have overfitted yet
    learnt = train_loss < min(val_loss, chance_loss - 0.05)
    if learnt and before_train and before_val and val_loss > before_val * 1.01 and train_loss < before_train:
        message = (
            f"validation loss rose from {before_val:.3f} to {val_loss:.3f} while training loss fell to "
            f"{train_loss:.3f}: the model starts to overfit. best.pt is kept by R@1; "
            f"more data, fewer train.epochs or train.early_stop_epochs help"
        )
        _warn_once(state, state.evaluated_epochs, "overfitting", message, report)
    state.last_train_loss, state.last_val_loss = train_loss, val_loss
    state.epoch_loss, state.epoch_steps = 0.0, 0


def note_replaced(
    state: TrainState, epoch: int, table: CaptionTable, replaced: tuple[int, ...], report: Report
) -> None:
    """Name each unreadable image once; past a threshold the data are broken, not unlucky."""
    for row in replaced:
        image_id = int(table.image_ids[row])
        if image_id in state.unreadable:
            continue
        # 0.1 % of the images, or 100 where that is more, but never over 5 %
        limit = max(1, len(table.files) // 1000, min(100, len(table.files) // 20))
        if len(state.unreadable) >= limit:
            raise DataError(
                f"{len(state.unreadable) + 1} of {len(table.files):,} training images can't be read, the last "
                f"{table.files[row]} (data.root). Fetch them again; up to {limit} would be replaced"
            )
        state.unreadable.append(image_id)
        report(ImageReplaced(state.step, epoch, table.files[row]))


def _warn_once(state: TrainState, epoch: int, kind: str, message: str, report: Report) -> None:
    if kind not in state.warned:
        state.warned.append(kind)
        report(Warned(state.step, epoch, message))
