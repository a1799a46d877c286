"""Join a run's parts with its directory: records, status, checkpoints; then train."""

import contextlib
import io
import platform
import traceback
from dataclasses import asdict, replace
from typing import Any

import numpy
import torch
import torchvision

from clipcoco.config.load import flatten, to_plain
from clipcoco.data.viewer import VIEW
from clipcoco.disk.files import open_to_append
from clipcoco.engine import checkpoint
from clipcoco.engine.device import Device, training_in_memory
from clipcoco.engine.model import DualEncoder
from clipcoco.engine.optim import learning_rate, restore_moments, set_learning_rate
from clipcoco.engine.recall import chance_levels
from clipcoco.engine.state import TrainState
from clipcoco.engine.step import Stop, Training
from clipcoco.engine.train import train
from clipcoco.engine.trained_on import changed, recorded
from clipcoco.errors import CheckpointError, ClipcocoError, DataError, EnvironmentProblem, ExitCode, NumericError
from clipcoco.events import CheckpointSaved, Event, Report, RunEnded, RunStarted, Warned
from clipcoco.runs.directory import RunDir
from clipcoco.runs.metrics import MetricsFile, fan_out
from clipcoco.runs.plan import Assembled, backbone_features, build_training
from clipcoco.runs.tensorboard import TensorBoard
from clipcoco.version import __version__

MAX_REFUSED = 3  # saves in a row that the disk may refuse: the room that lacks can be made meanwhile


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
    with (
        contextlib.closing(
            TensorBoard(run.tensorboard, state.step if content else None, flatten(parts.config))
        ) as tensorboard,
        parts.device.made_current(),
    ):
        report = fan_out(show, metrics, tensorboard, lambda event: _keep_status(run, parts, state, event))
        try:
            with training_in_memory(parts.config.train.batch_size, parts.device):
                report(_started(run, parts, state, tuple(metrics.rows) if content else ()))
                for message in () if content else parts.warnings:
                    report(Warned(state.step, 1, message))
                frozen = state.evaluated_epochs < parts.derived.frozen_epochs
                cached = backbone_features(parts, model, report, stop) if frozen else None
                training = build_training(parts, model, state, cached, report, stop)
                if content:
                    _restore(training, content)
                return train(replace(training, save=Saver(run, parts, training, metrics, report, stop)), report, stop)
        except BaseException as error:
            saved = run.status()
            _note_failure(run, state, error)
            _name_what_is_saved(run, saved, state, error)
            raise


def _name_what_is_saved(run: RunDir, saved: dict[str, Any], state: TrainState, error: BaseException) -> None:
    """The error of a run that has saved ends in how to go on."""
    if "checkpoint" not in saved or not isinstance(error, DataError | EnvironmentProblem | NumericError):
        return
    onward = f"go on there with clipcoco resume {run.words}"
    if isinstance(error, NumericError):  # the same steps would end in the same numbers
        # Skipped steps left the last weights whole; an evaluation that fails says that they are not.
        whole = f"{run.words}/last" if state.skipped_in_a_row else run.words if saved.get("best") else None
        if whole is None:
            error.args = (f"{error}. Begin anew with a lower train.lr",)
            return
        onward = f"begin anew from its weights: clipcoco train --preset NAME --init {whole}"
    error.args = (f"{error}. Step {saved['step']:,} is saved, {onward}",)


def _note_failure(run: RunDir, state: TrainState, error: BaseException) -> None:
    code = error.exit_code if isinstance(error, ClipcocoError) else ExitCode.BUG
    if isinstance(error, KeyboardInterrupt):
        code = ExitCode.INTERRUPTED
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    status = {**run.status(), "state": "failed", "step": state.step, "exit_code": int(code), "reason": reason}
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


class Saver:
    """Writes the run's checkpoints. A disk that refuses one is asked again at the next two, and then ends the run."""

    def __init__(
        self, run: RunDir, parts: Assembled, training: Training, metrics: MetricsFile, report: Report, stop: Stop
    ) -> None:
        self.run, self.parts, self.training = run, parts, training
        self.metrics, self.report, self.stop = metrics, report, stop
        self.plain, self.versions, self.fingerprint = to_plain(parts.config), _versions(parts.device), parts.fingerprint
        self.saved = (-1, -1)  # step and evaluated epochs of the newest file
        self.refused: set[int] = set()  # steps since then at which the disk refused
        self.owed: list[tuple[dict[str, Any], bool, int]] = []  # of epochs, whose weights would be gone

    def __call__(self, best: bool, epoch: int | None) -> None:
        state = self.training.state
        if self.saved == (state.step, state.evaluated_epochs):
            return
        content = self._content()
        try:
            for one in (*self.owed, (content, best, epoch)):
                self._write(*one)
                self.owed = self.owed[1:]
        except EnvironmentProblem as error:
            self.refused.add(state.step)
            left = MAX_REFUSED - len(self.refused)
            if not left or self.stop() or state.is_finished(self.parts.config.train):
                raise
            if epoch is not None:
                self.owed.append((_copied(content), best, epoch))
            needed = self.parts.derived.checkpoint_bytes / 1e6
            message = (
                f"{error}: one takes {needed:,.0f} MB. The run goes on, and ends when {left} more can't be written"
            )
            self.report(Warned(state.step, state.epoch(self.training.loader.steps_per_epoch), message))
        else:
            self.refused.clear()
            self.saved = (state.step, state.evaluated_epochs)

    def _write(self, content: dict[str, Any], best: bool, epoch: int | None) -> None:
        folder, step = self.run.checkpoints, content["state"]["step"]
        size, seconds = checkpoint.save(folder, content, best=best, epoch=epoch, keep=self.parts.config.checkpoint.keep)
        number = self.training.state.epoch(self.training.loader.steps_per_epoch)
        self.report(CheckpointSaved(step, number, folder / "last.pt", size, seconds))

    def _content(self) -> dict[str, Any]:
        return {
            "model": self.training.model.state_dict(),
            "optimizer": self.training.optimizer.state_dict(),
            "scaler": self.training.scaler.state_dict(),
            "state": self.training.state.to_plain(),
            "rng": {"torch": torch.get_rng_state()},
            "config": self.plain,
            "tokenizer": self.parts.tokenizer.to_plain(),
            "metrics": list(self.metrics.rows),
            "versions": self.versions,
            "data": self.fingerprint,
            "pictures": self.parts.pictures,
        }


def _copied(content: dict[str, Any]) -> dict[str, Any]:
    """As it is now, on the CPU, whatever training makes of the weights."""
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    copy: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return copy


def _versions(device: Device) -> dict[str, str]:
    """What must be the same for a resume to the bit."""
    return {
        "clipcoco": __version__,
        "torch": str(torch.__version__),  # a class of its own, which weights_only refuses
        "torchvision": str(torchvision.__version__),
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "device": device.kind,
        "threads": str(torch.get_num_threads()),
        "view": str(VIEW),
    }


def changed_versions(content: dict[str, Any], device: Device) -> list[str]:
    """`name old -> new` for each version that differs from the checkpoint's."""
    old = {"view": "1"} | content.get("versions", {})  # the first view had no number
    return [f"{name} {old.get(name)} -> {new}" for name, new in _versions(device).items() if old.get(name) != new]


def changed_since(content: dict[str, Any], parts: Assembled) -> list[str]:
    """What keeps a resume from the bits of a run without a stop: other versions, other pictures."""
    assert parts.pictures is not None
    many = changed(recorded(content), parts.pictures)
    other = changed_versions(content, parts.device)
    if many is None:
        other.append("pictures were not recorded")
    elif many:
        other.append(f"{many:,} picture{'s' * (many > 1)} changed")
    elif content["data"].get("copies") != parts.fingerprint.get("copies"):
        other.append("the copies were made again")
    return other


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
        chance_loss=parts.loss.chance(config.batch_size),
        rows=rows,
    )
