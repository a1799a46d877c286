"""A planned run trains in its directory: records, status, checkpoints."""

import contextlib
import time
import traceback
from dataclasses import dataclass, replace
from typing import Any

import torch

from clipcoco.config.load import flatten
from clipcoco.data.features import Features, Sentences
from clipcoco.data.loader import TrainingLoader
from clipcoco.data.readable import refuse_unreadable
from clipcoco.disk.files import open_to_append
from clipcoco.engine.checkpoint import weights_sha256
from clipcoco.engine.closed_form import closed_form
from clipcoco.engine.device import encoding_in_memory, training_in_memory
from clipcoco.engine.evaluate import Inputs, embed, in_order, validation_loss
from clipcoco.engine.features import cache_features, cache_sentences, feature_key
from clipcoco.engine.model import DualEncoder
from clipcoco.engine.optim import build_optimizer, learning_rate, restore_moments, set_learning_rate
from clipcoco.engine.recall import chance_levels, recall_table
from clipcoco.engine.results import RecallTable
from clipcoco.engine.sentence import SentenceEncoder
from clipcoco.engine.state import TrainState
from clipcoco.engine.step import Schedule, Stop, Training, temperature
from clipcoco.engine.train import train
from clipcoco.errors import (
    CheckpointError,
    ClipcocoError,
    DataError,
    EnvironmentProblem,
    ExitCode,
    NumericError,
    is_out_of_memory,
)
from clipcoco.events import CheckpointSaved, ClosedForm, Event, Report, RunEnded, RunStarted, Warned
from clipcoco.runs.directory import RunDir, Status
from clipcoco.runs.metrics import MetricsFile, fan_out
from clipcoco.runs.plan import Parts, Plan
from clipcoco.runs.saving import Saver
from clipcoco.runs.tensorboard import TensorBoard


def go(plan: Plan, run: RunDir, note: str, show: Report, stop: Stop) -> RunEnded:
    """Train from `plan.state` to the last step, or until `stop` gives a reason. The directory exists and is locked.

    `note` is what there is to say of that lock. A reason to stop is a text.
    """
    assert plan.pictures is not None, "somebody has looked at them"
    parts, model, state, content = plan.parts, plan.model, plan.state, plan.content
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
                # ---- what a frozen encoder sees or makes, once for all epochs in which it is frozen
                frozen = state.evaluated_epochs < parts.derived.frozen_epochs
                cached = backbone_features(parts, model, report, stop) if frozen else None
                known = any(row["event"] == ClosedForm.event for row in metrics.rows)  # before a stop at step 0
                if cached and parts.derived.cached and not state.step and not known:
                    report_closed_form(parts, cached, report, stop)
                sentences = sentence_vectors(parts, model, report, stop)
                # ---- model, optimiser and random state, as they were where the run goes on
                training = build_training(parts, model, state, cached, report, stop, sentences)
                if content:
                    _restore(training, content)
                # ---- the steps
                save = Saver(run, plan, training, metrics, report, stop)
                return train(replace(training, save=save), report, stop)
        except BaseException as error:
            saved = run.status()
            _note_failure(run, state, error)
            _name_what_is_saved(run, saved, state, error)
            raise


def _name_what_is_saved(run: RunDir, saved: Status, state: TrainState, error: BaseException) -> None:
    """The error of a run that has saved ends in how to go on."""
    if saved.checkpoint is None or not isinstance(error, DataError | EnvironmentProblem | NumericError):
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


def _restore(training: Training, content: dict[str, Any]) -> None:
    """Moments, scale, random state and the rate of the last step as they were: what is saved next tells of no stop."""
    last, schedule = max(0, training.state.step - 1), training.schedule
    rate = learning_rate(last, schedule.total_steps, schedule.warmup_steps, schedule.config.lr)
    set_learning_rate(training.optimizer, rate)
    try:
        restore_moments(training.optimizer, content["optimizer"])
        if content["scaler"]:  # of a run in float16
            training.scaler.load_state_dict(content["scaler"])
        torch.set_rng_state(content["rng"]["torch"])
    except (ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise CheckpointError(f"the optimiser of this checkpoint does not fit its model: {error}") from error


@dataclass(frozen=True)
class Cached:
    """A frozen backbone's features of both splits."""

    train: Features
    val: Features


def backbone_features(parts: Parts, model: DualEncoder, report: Report, stop: Stop) -> Cached | None:
    """What the frozen backbone sees in the training and the validation images, computed where it is not kept yet.

    None when stopped meanwhile.
    """
    config, device, root = parts.config, parts.device, parts.config.data.folder
    device.place(model).eval()
    weights = weights_sha256(model.visual.trunk.state_dict())
    cached = []
    for table, training in ((parts.val_table, False), (parts.train_table, True)):
        key = feature_key(config, weights, device, parts.source, training)
        with encoding_in_memory("the backbone's features", device):
            features = cache_features(
                model.visual.features, key, table, root, parts.source, parts.workers, device, report, stop
            )
        if features is None:
            return None
        if not training:
            refuse_unreadable(table, (~features.readable).nonzero()[0].tolist())
        cached.append(features)
    return Cached(val=cached[0], train=cached[1])


def report_closed_form(parts: Parts, cached: Cached, report: Report, stop: Stop) -> None:
    """What the features give without training, told before its first step; not when stopped meanwhile."""
    began, data = time.monotonic(), parts.config.data
    train = Inputs(data, parts.train_table, parts.tokens[0], parts.workers, cached.train)
    val = Inputs(data, parts.val_table, parts.tokens[1], parts.workers, cached.val)
    try:
        table = closed_form(train, val, report, stop)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        report(Warned(0, 1, "the closed form is left out: it does not fit into the memory"))
        return
    if table is not None:
        clock = {"seconds": time.monotonic() - began}
        report(ClosedForm(0, 1, table.i2t, table.t2i, table.r1, table.rsum, clock))


def sentence_vectors(parts: Parts, model: DualEncoder, report: Report, stop: Stop) -> list[Sentences] | None:
    """What a frozen text encoder makes of the captions of train and val, computed where it is not kept yet.

    None when the text tower is trained, or when stopped meanwhile.
    """
    if not isinstance(model.text, SentenceEncoder):
        return None
    device, encoder = parts.device, model.text.encoder
    device.place(model).eval()
    with encoding_in_memory("the sentence vectors", device):
        weights, root = weights_sha256(encoder.state_dict()), parts.config.data.folder
        return cache_sentences(encoder, weights, parts.tokens, root, device, report, stop)


def build_training(
    parts: Parts,
    model: DualEncoder,
    state: TrainState,
    cached: Cached | None,
    report: Report,
    stop: Stop,
    sentences: list[Sentences] | None = None,
) -> Training:
    """Model on its device, optimiser, loader and evaluation; saving comes with the run directory."""
    config, derived, device = parts.config, parts.derived, parts.device
    device.place(model)
    if not derived.cached:  # augmentation does what dropped features do
        model.visual.dropout.p = 0.0
    train_tokens, val_tokens = parts.tokens
    of_train, of_val = sentences or (None, None)
    val = Inputs(config.data, parts.val_table, val_tokens, parts.workers, sentences=of_val)

    def evaluate() -> tuple[float, RecallTable] | None:
        frozen = cached is not None and state.evaluated_epochs < derived.frozen_epochs
        inputs = replace(val, features=cached.val) if cached is not None and frozen else val
        with encoding_in_memory("an evaluation", device):
            embeddings = embed(model, inputs, device, report, stop)
            if embeddings is None:
                return None
            ordered = in_order(embeddings, parts.val_table.order)
            val_loss = validation_loss(ordered, parts.loss, config.train.batch_size, temperature(model))
            return val_loss, recall_table(embeddings.images, embeddings.texts, embeddings.owners)

    return Training(
        model=model,
        loss=parts.loss,
        optimizer=build_optimizer(model, config.train.lr, config.train.weight_decay, derived.backbone_lr_scale),
        scaler=device.scaler(),
        device=device,
        schedule=Schedule(
            config=config.train,
            seed=config.seed,
            total_steps=derived.total_steps,
            warmup_steps=derived.warmup_steps,
            frozen_epochs=derived.frozen_epochs,
            checkpoint_steps=config.checkpoint.every_steps,
        ),
        state=state,
        loader=TrainingLoader(
            config.data,
            parts.train_table,
            train_tokens,
            config.train.batch_size,
            config.seed,
            parts.workers,
            pin_memory=device.device.type == "cuda",
            stop=stop,
            sentences=of_train,
        ),
        features=cached.train if cached else None,
        evaluate=evaluate,
        save=lambda best, epoch: None,
    )


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
