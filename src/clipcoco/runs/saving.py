"""A run's checkpoints: what they hold, how they are written, and what must be the same for a resume to the bit."""

import io
import platform
from typing import Any

import numpy
import torch

from clipcoco.config.load import to_plain
from clipcoco.cores import processes
from clipcoco.data.viewer import VIEW
from clipcoco.data.vision import torchvision
from clipcoco.engine import checkpoint
from clipcoco.engine.device import Device
from clipcoco.engine.step import Stop, Training
from clipcoco.engine.trained_on import changed, recorded, words_with
from clipcoco.errors import EnvironmentProblem
from clipcoco.events import CheckpointSaved, Report, Warned
from clipcoco.runs.directory import RunDir
from clipcoco.runs.metrics import MetricsFile
from clipcoco.runs.plan import Plan
from clipcoco.say import say_count
from clipcoco.version import __version__

MAX_REFUSED = 3  # saves in a row that the disk may refuse: somebody can make room meanwhile


class Saver:
    """Writes the run's checkpoints. A disk that refuses one is asked again at the next two, and then ends the run."""

    def __init__(
        self, run: RunDir, plan: Plan, training: Training, metrics: MetricsFile, report: Report, stop: Stop
    ) -> None:
        self.run, self.plan, self.training = run, plan, training
        self.metrics, self.report, self.stop = metrics, report, stop
        self.config = plan.parts.config
        self.plain, self.versions = to_plain(self.config), versions_of(plan.parts.device)
        self.fingerprint = plan.fingerprint
        self.words = words_with(plan.parts.words, plan.words)
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
            if not left or self.stop() or state.is_finished(self.config.train):
                raise
            if epoch is not None:
                self.owed.append((_copied(content), best, epoch))
            needed = self.plan.parts.derived.checkpoint_bytes / 1e6
            message = (
                f"{error}: one takes {needed:,.0f} MB. The run goes on, and ends when {left} more can't be written"
            )
            self.report(Warned(state.step, state.epoch(self.training.loader.steps_per_epoch), message))
        else:
            self.refused.clear()
            self.saved = (state.step, state.evaluated_epochs)

    def _write(self, content: dict[str, Any], best: bool, epoch: int | None) -> None:
        folder, step = self.run.checkpoints, content["state"]["step"]
        size, seconds = checkpoint.save(folder, content, best=best, epoch=epoch, keep=self.config.checkpoint.keep)
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
            "tokenizer": self.plan.parts.tokenizer.to_plain(),
            "metrics": list(self.metrics.rows),
            "versions": self.versions,
            "data": self.fingerprint,
            "pictures": self.plan.pictures,
            **({} if self.words is None else {"words": self.words}),
        }


def _copied(content: dict[str, Any]) -> dict[str, Any]:
    """As it is now, on the CPU, whatever training makes of the weights."""
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    copy: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return copy


def versions_of(device: Device) -> dict[str, str]:
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
        "processes": str(processes()[1]),
    }


def changed_versions(content: dict[str, Any], device: Device) -> list[str]:
    """`name old -> new` for each version that differs from the checkpoint's."""
    old = {"view": "1", "processes": "1"} | content.get("versions", {})  # what the first versions did not say
    return [f"{name} {old.get(name)} -> {new}" for name, new in versions_of(device).items() if old.get(name) != new]


def changed_since(content: dict[str, Any], plan: Plan) -> list[str]:
    """What keeps a resume from the bits of a run without a stop: other versions, other pictures."""
    assert plan.pictures is not None
    many = changed(recorded(content), plan.pictures)
    other = changed_versions(content, plan.parts.device)
    if many is None:
        other.append("pictures were not recorded")
    elif many:
        other.append(f"{say_count(many, 'picture')} changed")
    elif content["data"].get("copies") != plan.fingerprint.get("copies"):
        other.append("the copies were made again")
    return other
