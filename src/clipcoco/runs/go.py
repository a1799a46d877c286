"""A planned run trains in its directory: records, status, checkpoints."""

import contextlib
import traceback
from dataclasses import replace
from typing import Any

import torch

from clipcoco.config.load import flatten
from clipcoco.disk.files import open_to_append
from clipcoco.engine.device import training_in_memory
from clipcoco.engine.embeddings import Seen
from clipcoco.engine.recall import chance_levels
from clipcoco.engine.state import TrainState
from clipcoco.engine.step import Stop
from clipcoco.engine.train import train
from clipcoco.errors import ClipcocoError, DataError, DistributedError, EnvironmentProblem, ExitCode, NumericError
from clipcoco.events import CheckpointSaved, ClosedForm, Event, Report, RunEnded, RunStarted, Warned
from clipcoco.runs.directory import RunDir, Status
from clipcoco.runs.metrics import MetricsFile, fan_out
from clipcoco.runs.plan import Plan
from clipcoco.runs.saving import Saver
from clipcoco.runs.tensorboard import TensorBoard
from clipcoco.runs.training import make_ready


def go(plan: Plan, run: RunDir, note: str, show: Report, stop: Stop, seen: Seen | None = None) -> RunEnded:
    """Train from `plan.state` to the last step, or until `stop` gives a reason. The directory exists and is locked.

    `note` is what there is to say of that lock. A reason to stop is a text. `seen` takes what evaluations see with the
    best weights.
    """
    assert plan.pictures is not None, "somebody has looked at them"
    parts, state, content = plan.parts, plan.state, plan.content
    config = parts.config
    # ---- the records: each event reaches all of them
    metrics = MetricsFile(run.metrics, content["metrics"] if content else [])
    tensorboard = TensorBoard(run.tensorboard, state.step if content else None, flatten(config))
    report = fan_out(show, metrics, tensorboard, lambda event: _keep_status(run, plan, event))
    with contextlib.closing(tensorboard), parts.device.made_current():
        try:
            with training_in_memory(config.train.batch_size, parts.device):
                report(_started(run, plan, tuple(metrics.rows) if content else ()))
                for message in filter(None, (note, *(() if content else parts.warnings))):
                    report(Warned(state.step, 1, message))
                # ---- what it trains with
                known = any(row["event"] == ClosedForm.event for row in metrics.rows)  # before a stop at step 0
                training = make_ready(parts, plan.model, state, content, report, stop, known, seen)
                # ---- the steps
                save = Saver(run, plan, training, metrics, report, stop)
                return train(replace(training, save=save), report, stop)
        except BaseException as error:
            saved = run.status()
            _note_failure(run, state, error)
            _name_what_is_saved(run, saved, state, error)
            raise


# Errors that leave what was saved as good as it was.
_GOES_ON = DataError, EnvironmentProblem, NumericError, DistributedError


def _name_what_is_saved(run: RunDir, saved: Status, state: TrainState, error: BaseException) -> None:
    """The error of a run that has saved ends in how to go on."""
    if saved.checkpoint is None or not isinstance(error, _GOES_ON):
        return
    onward = f"go on there with clipcoco resume {run.words}"
    if isinstance(error, NumericError):  # the same steps would end in the same numbers
        # Skipped steps left the last weights whole; an evaluation that fails says that they are not.
        whole = f"{run.words}/last" if state.skipped_in_a_row else run.words if saved.best else None
        if whole is None:
            error.args = (f"{error}. Start again with a lower train.lr",)
            return
        onward = f"start a new run from its weights: clipcoco train --preset NAME --init {whole}"
    error.args = (f"{error}. Step {saved.step:,} is saved, {onward}",)


def _note_failure(run: RunDir, state: TrainState, error: BaseException) -> None:
    code = error.exit_code if isinstance(error, ClipcocoError) else ExitCode.BUG
    if isinstance(error, KeyboardInterrupt):
        code = ExitCode.INTERRUPTED
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    failed = {"state": "failed", "step": state.step, "exit_code": int(code), "reason": reason}
    status = run.status().model_dump(exclude_unset=True) | failed
    with contextlib.suppress(OSError):
        try:
            run.write_status(**status)
        except OSError:  # a full disk has no room for a second file; what is gone can't say "running"
            run.status_file.unlink()
            run.write_status(**status)
    with contextlib.suppress(OSError), open_to_append(run.log) as log:
        log.write(traceback.format_exc().encode("utf-8", "backslashreplace"))


def _keep_status(run: RunDir, plan: Plan, event: Event) -> None:
    state = plan.state
    if isinstance(event, RunStarted):
        run.write_status(
            state="running",
            step=event.step,
            total_steps=event.total_steps,
            epochs=event.epochs,
            val_images=len(plan.parts.val_table.files),
            device=str(plan.parts.device.device),
            caution=plan.parts.config.model.text.caution,
            chance=event.chance,
            chance_loss=event.chance_loss,
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


def _started(run: RunDir, plan: Plan, rows: tuple[dict[str, Any], ...]) -> RunStarted:
    parts, state = plan.parts, plan.state
    derived, config = parts.derived, parts.config.train
    return RunStarted(
        step=state.step,
        epoch=state.step // derived.steps_per_epoch + 1,
        name=run.name,
        words=run.words,
        folder=run.path,
        total_steps=derived.total_steps,
        steps_per_epoch=derived.steps_per_epoch,
        epochs=config.epochs,
        batch_size=config.batch_size,
        header=(*plan.header, ("run", str(run.path))),
        chance=chance_levels(torch.from_numpy(parts.val_table.owners)),
        chance_loss=parts.loss.chance(config.batch_size),
        rows=rows,
    )
