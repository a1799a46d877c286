"""The training loop, in time order: a step, a log line, a checkpoint, an epoch's end, a stop."""

import time

from clipcoco.engine.checkpoint import weights_sha256
from clipcoco.engine.optim import learning_rate
from clipcoco.engine.step import Stop, Training, settle_micro_batch, start_epoch, train_step
from clipcoco.engine.watch import count_step, log_interval, note_replaced, watch_overfitting
from clipcoco.errors import ClipcocoError
from clipcoco.events import Evaluated, Progress, Report, RunEnded

SAVE_SECONDS = 600.0  # a checkpoint is due at the latest, however long a step takes: far above the second of a save


def train(training: Training, report: Report, stop: Stop) -> RunEnded:
    """Go on from `training.state` to the last step, or until `stop()` names a reason; all is saved either way.

    `stop` is asked before each step, and meanwhile by what takes long: waiting for a batch, an evaluation."""
    state, schedule, per_epoch = training.state, training.schedule, training.loader.steps_per_epoch
    began, group = time.monotonic() - state.seconds, training.group
    reason: str | None = None

    def save(best: bool = False, epoch: int | None = None) -> None:
        state.seconds = time.monotonic() - began
        training.save(best, epoch)

    while not reason:
        # ---- an epoch's end: save, evaluate, save -------------------------------------------------------
        if state.step // per_epoch > state.evaluated_epochs:
            save()  # an evaluation may fail, and must not take the epoch with it
            if not finish_epoch(training, report):
                reason = group.agreed(stop())[0]
                break
            save(state.best_epoch == state.evaluated_epochs, state.evaluated_epochs)
        if state.is_finished(schedule.config):
            return _ended(training, report, "finished", "early stop" if state.step < schedule.total_steps else "")

        # ---- the steps of an epoch ----------------------------------------------------------------------
        epoch = state.step // per_epoch
        start_epoch(training.model, epoch, schedule.frozen_epochs)
        features = training.features if epoch < schedule.frozen_epochs else None
        batches = training.loader.epoch(epoch, state.step % per_epoch, features)
        for _ in range(per_epoch - state.step % per_epoch):
            start = time.monotonic()
            try:
                batch = None if stop() else next(batches, None)
                reason = None if batch else stop() or "stopped"
                reason, replaced = group.agreed(reason, batch.replaced if batch else ())
                if reason or batch is None:
                    break
                state.interval_waited += time.monotonic() - start
                note_replaced(state, epoch + 1, training.loader.table, replaced, report)
                settle_micro_batch(training, batch, epoch + 1, report)
                rate = learning_rate(state.step, schedule.total_steps, schedule.warmup_steps, schedule.config.lr)
                # ------------------------------ one training step ------------------------------
                step = train_step(training, batch, rate)
            except ClipcocoError:  # of the images, of a worker or of another process
                if state.step % per_epoch:  # what was learnt since the last save is kept
                    save()
                raise
            state.step += 1
            # -------------------------------------------------------------------------------

            count_step(state, epoch + 1, step, training.loader.table, report)
            state.interval_seconds += time.monotonic() - start
            report(Progress("train", state.step, schedule.total_steps, state.interval_mean))
            if state.step == 1 or state.step % schedule.config.log_every_steps == 0:
                log_interval(training, epoch + 1, rate, report)
            due = state.step % schedule.checkpoint_steps == 0 or time.monotonic() - began > state.seconds + SAVE_SECONDS
            if due and state.step % per_epoch:
                save()

    save()
    return _ended(training, report, "stopped", reason or "stopped")


def finish_epoch(training: Training, report: Report) -> bool:
    """Evaluate after an epoch's last step, note the best, watch for overfitting; False when stopped meanwhile."""
    state, began = training.state, time.monotonic()
    result = training.evaluate()
    if result is None:
        return False
    val_loss, table, composition = result
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
            weights_sha256=weights_sha256(training.model.state_dict()),
            best=best,
            composition=composition,
            clock={"seconds": time.monotonic() - began},
        )
    )
    watch_overfitting(state, training.chance_loss, val_loss, report)
    return True


def _ended(training: Training, report: Report, state: str, reason: str) -> RunEnded:
    at, epoch = training.state, training.state.epoch(training.loader.steps_per_epoch)
    ended = RunEnded(at.step, epoch, state, str(reason), at.seconds)
    report(ended)
    return ended
