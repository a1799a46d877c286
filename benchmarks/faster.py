"""What may make a step on a GPU faster, each against the code as it is. A part of gpu.py, which gives the steps.

Nothing here is in the program: it goes there when it was measured, or it goes.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from clipcoco.data.loader import Batch
from clipcoco.engine import checkpoint
from clipcoco.engine import step as steps
from clipcoco.engine.optim import set_learning_rate
from clipcoco.engine.step import Training, gradient

Rate = Callable[[Training, Batch, int], float]
Way = Callable[[Training], AbstractContextManager[None]]


class MultiplyAdd(nn.Module):
    """BatchNorm in eval mode as one product and sum, whose gradient stays channels-last; weight and bias learn."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        shift = norm.bias - norm.running_mean * scale
        shift, scale = (one.to(x.dtype).view(1, -1, 1, 1) for one in (shift, scale))
        return torch.addcmul(shift, x, scale)


class _Frozen(torch.autograd.Function):
    """torch's own BatchNorm of eval mode forward; backward plain products, whose layout is that of the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt())
        return torch.batch_norm(x, weight, bias, mean, var, False, 0.0, eps, torch.backends.cudnn.enabled)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, mean, over_deviation = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        total = gradient.sum((0, 2, 3), dtype=mean.dtype)
        along = (gradient * x).sum((0, 2, 3), dtype=mean.dtype)
        scale = (weight * over_deviation).to(x.dtype).view(1, -1, 1, 1)
        return gradient * scale, (along - mean * total) * over_deviation, total, None, None, None


class Frozen(nn.Module):
    """BatchNorm in eval mode by `_Frozen`."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        return _Frozen.apply(x, norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps)  # type: ignore[no-any-return]


def norms_as(kind: Callable[[nn.BatchNorm2d], nn.Module]) -> Way:
    @contextmanager
    def replaced(run: Training) -> Iterator[None]:
        trunk = run.model.visual.trunk
        norms = [(name, one) for name, one in trunk.named_modules() if isinstance(one, nn.BatchNorm2d)]
        for name, norm in norms:
            trunk.set_submodule(name, kind(norm))
        try:
            yield
        finally:
            for name, norm in norms:
                trunk.set_submodule(name, norm)

    return replaced


@contextmanager
def not_filled(run: Training) -> Iterator[None]:
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = True


@contextmanager
def compiled(run: Training) -> Iterator[None]:
    """What it takes to compile is in no rate: it is told."""
    visual = run.model.visual
    trunk, began = visual.trunk, time.monotonic()
    visual.trunk = torch.compile(trunk)
    try:
        for _ in range(2):
            visual.features(torch.zeros(128, 3, 224, 224, dtype=torch.uint8, device=run.device.device)).sum().backward()
        run.optimizer.zero_grad(set_to_none=True)
        print(f"  compiled in {time.monotonic() - began:.0f} s", flush=True)
        yield
    finally:
        visual.trunk = trunk


class ReadLate:
    """`update` of bfloat16 and float32 without a wait: fused AdamW skips by itself, where the device finds a loss or
    gradient not finite, and both are read a step later, which has then long been done."""

    def __init__(self) -> None:
        self.before: tuple[Tensor, torch.cuda.Event | None] | None = None

    def __call__(self, training: Training, loss: Tensor, rate: float) -> tuple[float, float, bool]:
        model, optimizer = training.model, training.optimizer
        set_learning_rate(optimizer, rate)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), training.schedule.config.grad_clip)
        optimizer.found_inf = (~(loss.isfinite() & norm.isfinite())).float()  # type: ignore[attr-defined]
        optimizer.step()
        model.clamp_temperature()
        optimizer.zero_grad(set_to_none=True)
        now = torch.stack([loss, norm]).to("cpu", non_blocking=True)  # of a GPU into pinned memory
        read = torch.cuda.Event() if loss.is_cuda else None
        if read:
            read.record()
        (values, there), self.before = self.before or (torch.zeros(2), None), (now, read)
        if there:
            there.synchronize()
        loss_value, norm_value = values.tolist()
        return loss_value, norm_value, False


@contextmanager
def decided_there(run: Training) -> Iterator[None]:
    try:
        with patch.object(steps, "update", ReadLate()):
            yield
    finally:
        vars(run.optimizer).pop("found_inf", None)


class Ahead:
    """A batch that was copied on a side stream while the step before it ran."""

    def __init__(self, batch: Batch, device: torch.device) -> None:
        self.batch, self.device, self.stream = batch, device, torch.cuda.Stream(device)
        self.image_ids, self.images = batch.image_ids, batch.images
        self._copy()

    def _copy(self) -> None:
        with torch.cuda.stream(self.stream):
            self.next = self.batch.to(self.device)

    def to(self, device: torch.device) -> Batch:
        torch.cuda.current_stream(device).wait_stream(self.stream)
        moved = self.next
        for tensor in (moved.images, moved.tokens):
            assert tensor is not None
            tensor.record_stream(torch.cuda.current_stream(device))
        self._copy()
        return moved


def copied_out(value: Any, buffers: dict[tuple[Any, ...], Tensor], at: tuple[Any, ...] = ()) -> Any:
    """With its tensors in pinned memory, kept from save to save, whatever training makes of its own."""
    if isinstance(value, dict):
        return {key: copied_out(inner, buffers, (*at, key)) for key, inner in value.items()}
    if not isinstance(value, Tensor):
        return value
    if at not in buffers:
        buffers[at] = torch.empty_like(value, device="cpu", requires_grad=False, pin_memory=value.is_cuda)
    return buffers[at].copy_(value.detach(), non_blocking=True)


def saved_by_a_thread(run: Training, batch: Batch, rate: Rate, many: int, folder: Path) -> dict[str, float]:
    """What a save costs the loop where a thread writes what was copied out: seconds of the copy, of the writing beside
    steps, and the steps' images a second meanwhile; the same without a thread before it."""
    content = {"model": run.model.state_dict(), "optimizer": run.optimizer.state_dict(), "state": {}}
    buffers: dict[tuple[Any, ...], Tensor] = {}

    def save(content: dict[str, Any]) -> float:
        began = time.monotonic()
        checkpoint.save(folder, content, best=False, epoch=None, keep=0)
        return time.monotonic() - began

    found = {"waiting for it, seconds": save(content)}
    copied_out(content, buffers)  # the first time takes fresh memory
    began = time.monotonic()
    copy = copied_out(content, buffers)
    if run.device.device.type == "cuda":
        torch.cuda.synchronize()
    found["copied out, seconds"] = time.monotonic() - began
    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(save, copy)
        found["steps meanwhile, images/s"] = rate(run, batch, many)
        found["written meanwhile, seconds"] = written.result()
    return found


def gradient_of(run: Training, batch: Batch) -> Tensor:
    """Of all parameters, one behind the other; weights and position stay."""
    gradient(run, batch.to(run.device.device))
    found = torch.cat([one.grad.flatten() for one in run.model.parameters() if one.grad is not None])
    run.optimizer.zero_grad(set_to_none=True)
    return found


def variants(run: Training, batch: Batch, rate: Rate, many: int, pretrained: bool) -> dict[str, tuple[float, float]]:
    """Images a second of each, the code as it is first and last, and by how much its gradient differs from that one's,
    as a part of its norm."""
    cuda = run.device.device.type == "cuda"
    alone: dict[str, Way] = {"not filled": not_filled, "decided on the device, read late": decided_there}
    if pretrained:
        alone["frozen BatchNorm as a function of its own"] = norms_as(Frozen)
    ways = {name: [way] for name, way in alone.items()} | {"all of these": list(alone.values())}
    if pretrained:
        ways["frozen BatchNorm as a multiply-add"] = [norms_as(MultiplyAdd)]
    if cuda and pretrained:  # it takes a minute
        best = [not_filled, decided_there, norms_as(MultiplyAdd), compiled]
        ways |= {"trunk compiled": [compiled], "multiply-add and all of these, compiled": best}
    found = {"as it is": (rate(run, batch, many), 0.0)}
    for name, parts in ways.items():
        before = gradient_of(run, batch)
        with ExitStack() as entered:
            for part in parts:
                entered.enter_context(part(run))
            off = (gradient_of(run, batch) - before).norm() / before.norm()
            found[name] = rate(run, batch, many), float(off)
    if cuda:
        found["copied on a side stream"] = rate(run, Ahead(batch, run.device.device), many), 0.0  # type: ignore[arg-type]
    return found | {"as it is, again": (rate(run, batch, many), 0.0)}


def filling(run: Training, batch: Batch, many: int) -> dict[str, float]:
    """Images a second through the trunk as a cache is filled with what it sees, its result copied back as there."""
    visual, device = run.model.visual.eval(), run.device.device
    trunk, kept, found = visual.trunk, torch.channels_last, {}

    def images_a_second() -> float:
        for count in (1, many):
            began = time.monotonic()
            for _ in range(count):
                with torch.inference_mode(), run.device.autocast():
                    visual.features(batch.to(device).images).to(torch.float16).cpu()
        return many * len(batch.image_ids) / (time.monotonic() - began)

    for layout, name in ((kept, "filling, channels-last"), (torch.contiguous_format, "filling, contiguous")):
        visual.to(memory_format=layout)
        found[name] = images_a_second()
    visual.to(memory_format=kept)
    if device.type == "cuda":  # it takes a minute
        visual.trunk = torch.compile(trunk)
        found["filling, channels-last, compiled"] = images_a_second()
        visual.trunk = trunk
    run.model.train()
    return found | {"filling, channels-last, again": images_a_second()}


def cached_steps(run: Training, batch: Batch, rate: Rate, many: int) -> dict[str, float]:
    """Images a second of steps from kept features of `batch`, as it is and with its loss read late."""
    seen = torch.randn(len(batch.image_ids), run.model.visual.head.proj.in_features, dtype=torch.float16)
    kept = seen.pin_memory() if run.device.device.type == "cuda" else seen
    of_features = replace(batch, images=None, features=kept)
    found = {"cached step": rate(run, of_features, many)}
    with decided_there(run):
        found["cached step, read late"] = rate(run, of_features, many)
    return found | {"cached step, again": rate(run, of_features, many)}
