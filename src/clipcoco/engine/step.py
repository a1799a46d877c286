"""One training step in two calls: the gradient of a batch, and the update along it.

Letters: B images or captions.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from clipcoco.config.schema import TrainConfig
from clipcoco.data.features import Features
from clipcoco.data.loader import Batch, TrainingLoader
from clipcoco.engine.device import Device
from clipcoco.engine.loss import Loss
from clipcoco.engine.model import DualEncoder
from clipcoco.engine.optim import set_learning_rate
from clipcoco.engine.results import RecallTable
from clipcoco.engine.state import TrainState

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
    loss: Loss
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    device: Device
    schedule: Schedule
    state: TrainState
    loader: TrainingLoader
    features: Features | None  # of the training images, for the epochs with a frozen backbone
    evaluate: Callable[[], tuple[float, RecallTable] | None]
    save: Callable[[bool, int | None], None]  # (as the best too, as the file of this epoch too)

    @property
    def chance_loss(self) -> float:
        return self.loss.chance(self.schedule.config.batch_size)


@dataclass(frozen=True)
class Step:
    """What a training step came to; it changed nothing where its loss or gradient is not finite."""

    loss: float  # nats
    grad_norm: float  # before clipping
    lr: float
    calibrating: bool  # only float16's scale was too large for its gradient, and is now halved
    image_ids: Tensor  # int64 (B,)


def start_epoch(model: DualEncoder, epoch: int, frozen_epochs: int) -> None:
    """Training mode, the backbone frozen in the first epochs: young heads would send it noise."""
    model.train()
    for parameter in model.visual.trunk.parameters():
        parameter.requires_grad = epoch >= frozen_epochs


def train_step(training: Training, batch: Batch, rate: float) -> Step:
    """One step of the optimiser at the learning rate `rate`; `batch` is on the device.

    When its loss or gradient is not finite, every parameter, buffer and moment is afterwards what it was before.
    """
    model = training.model
    # One bad forward would leave NaN in BatchNorm's running statistics before any loss is looked at.
    buffers = [] if model.visual.pretrained else list(model.visual.trunk.buffers())
    before = [buffer.clone() for buffer in buffers]
    loss, norm, calibrating = update(training, gradient(training, batch), rate)
    if not (math.isfinite(loss) and math.isfinite(norm)):
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
    return Step(loss, norm, rate, calibrating, batch.image_ids)


def gradient(training: Training, batch: Batch) -> Tensor:
    """Add the gradient of the batch's loss to the parameters; the loss, a scalar on the device."""
    torch.manual_seed(step_seed(training.schedule.seed, training.state.step))
    with training.device.autocast():
        images, texts, temperature = training.model(batch)
    loss = training.loss.of(images, texts, temperature)
    training.scaler.scale(loss).backward()
    return loss.detach()


def update(training: Training, loss: Tensor, rate: float) -> tuple[float, float, bool]:
    """Clip the gradient and step along it, unless it or `loss` is not finite; the gradient is then cleared.

    Gives the loss, the norm of the gradient before clipping, and whether float16's scale alone was the cause.
    """
    model, scaler, optimizer = training.model, training.scaler, training.optimizer
    set_learning_rate(optimizer, rate)
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), training.schedule.config.grad_clip)
    loss_value, norm_value = torch.stack([loss, norm]).tolist()  # the step's one wait for the device
    calibrating = False
    if math.isfinite(loss_value) and math.isfinite(norm_value):
        scaler.step(optimizer)
        model.clamp_temperature()
    else:
        # At a scale of 1 it is the gradient itself that float16 can't hold.
        calibrating = math.isfinite(loss_value) and scaler.is_enabled() and scaler.get_scale() > 1
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return loss_value, norm_value, calibrating


def step_seed(seed: int, step: int) -> int:
    """Of all that a step draws, dropout above all, whatever was drawn before."""
    return ((seed << 31) + step) % 2**63


@torch.no_grad()
def temperature(model: DualEncoder) -> float:
    scale: Tensor = model.logit_scale
    return float((-scale).exp())
