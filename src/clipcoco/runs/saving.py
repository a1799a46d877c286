"""A run's checkpoints: what they hold, how they are written, and what must be the same for a resume to the bit."""

import copy
import io
import platform
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy
import torch
from torch import Tensor

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
_Came = tuple[list[tuple[int, float]], EnvironmentProblem | None]


@dataclass(frozen=True)
class _Write:
    content: dict[str, Any]
    best: bool  # as the best too
    epoch: int | None  # as the file of this epoch too


class Saver:
    """Writes the run's checkpoints. A disk that refuses one is asked again at the next two, and then ends the run.

    `in_background` a thread writes what was copied out of training's way, one at a time: what came of it
    is told when the next one is due, or by `poll`. The last one is waited for, as is any by `close`.
    """

    def __init__(
        self,
        run: RunDir,
        plan: Plan,
        training: Training,
        metrics: MetricsFile,
        report: Report,
        stop: Stop,
        in_background: bool,
    ) -> None:
        self.run, self.plan, self.training = run, plan, training
        self.metrics, self.report, self.stop = metrics, report, stop
        self.config = plan.parts.config
        self.plain, self.versions = to_plain(self.config), versions_of(plan.parts.device)
        self.fingerprint = plan.fingerprint
        self.words = words_with(plan.parts.words, plan.words)
        self.saved = (-1, -1)  # step and evaluated epochs of the newest file, or of what becomes it
        self.refused: set[int] = set()  # steps since then at which the disk refused
        self.owed: list[_Write] = []  # of epochs, whose weights would be gone
        self.pool = ThreadPoolExecutor(1) if in_background else None
        self.buffers: dict[tuple[Any, ...], Tensor] = {}  # kept from save to save: fresh memory takes as long again
        self.pending: tuple[list[_Write], Future[_Came]] | None = None

    def __call__(self, best: bool, epoch: int | None) -> None:
        state = self.training.state
        if self.saved != (state.step, state.evaluated_epochs):
            self._settle()
            writes = [*self.owed, _Write(self._content(), best, epoch)]
            self.saved = state.step, state.evaluated_epochs
            if self.pool is None:
                self._hear(writes, self._write(writes), self._is_last)
                return
            writes[-1] = replace(writes[-1], content=copied_out(writes[-1].content, self.buffers))
            self.pending = writes, self.pool.submit(self._write, writes)
        if self.pending and self._is_last():
            self._settle(self._is_last)

    def poll(self) -> None:
        """Tell of a checkpoint that is written by now."""
        if self.pending and self.pending[1].done() and self.pending[1].result()[1] is None:
            self._settle()

    def close(self) -> None:
        """Wait for the thread. Whoever leaves for an error of his own has told of the worse one."""
        if self.pool:
            with suppress(EnvironmentProblem):
                self._settle()
            self.pool.shutdown()

    def _is_last(self) -> bool:
        return bool(self.stop()) or self.training.state.is_finished(self.config.train)

    def _settle(self, is_last: Callable[[], bool] = lambda: False) -> None:
        """Wait for what the thread writes. Raises EnvironmentProblem."""
        if self.pending:
            writes, came = self.pending
            result, self.pending = came.result(), None
            self._hear(writes, result, is_last)

    def _write(self, writes: list[_Write]) -> _Came:
        """Bytes and seconds of each until one was refused, and why."""
        sizes = []
        for one in writes:
            keep = self.config.checkpoint.keep
            try:
                sizes.append(
                    checkpoint.save(self.run.checkpoints, one.content, best=one.best, epoch=one.epoch, keep=keep)
                )
            except EnvironmentProblem as error:
                return sizes, error
        return sizes, None

    def _hear(self, writes: list[_Write], came: _Came, is_last: Callable[[], bool]) -> None:
        """Tell what came of them; what was refused and is owed is written with the next one."""
        (sizes, error), newest = came, writes[-1]
        number = self.training.state.epoch(self.training.loader.steps_per_epoch)
        for one, (size, seconds) in zip(writes, sizes, strict=False):
            step = one.content["state"]["step"]
            self.report(CheckpointSaved(step, number, self.run.checkpoints / "last.pt", size, seconds))
        self.owed = self.owed[len(sizes) :]
        if error is None:
            self.refused.clear()
            return
        step, self.saved = newest.content["state"]["step"], (-1, -1)
        self.refused.add(step)
        left = MAX_REFUSED - len(self.refused)
        if not left or is_last():
            raise error
        if newest.epoch is not None:
            self.owed.append(replace(newest, content=_copied(newest.content)))
        needed = self.plan.parts.derived.checkpoint_bytes / 1e6
        message = f"{error}: one takes {needed:,.0f} MB. The run goes on, and ends when {left} more can't be written"
        self.report(Warned(step, number, message))

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


def copied_out(value: Any, buffers: dict[tuple[Any, ...], Tensor]) -> Any:
    """With its tensors in `buffers` on the CPU, kept from save to save, whatever training makes of its own."""

    def copied(value: Any, at: tuple[Any, ...]) -> Any:
        if isinstance(value, dict):
            whole = copy.copy(value)  # a state_dict is more than its entries
            whole.update({key: copied(inner, (*at, key)) for key, inner in value.items()})
            return whole
        if not isinstance(value, Tensor):
            return value
        buffer = buffers.get(at)
        if buffer is None or (buffer.shape, buffer.dtype) != (value.shape, value.dtype):
            buffer = torch.empty_like(value, device="cpu", requires_grad=False, pin_memory=value.is_cuda)
            buffers[at] = buffer
        return buffer.copy_(value.detach(), non_blocking=True)

    whole = copied(value, ())
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()  # of the current device, which is the run's
    return whole


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
