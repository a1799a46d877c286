"""One training step in two calls: the gradient of a batch, and the update along it.

Letters: B images or captions, D dimensions of the shared space.
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
from clipcoco.engine.distributed import ALONE, Group
from clipcoco.engine.loss import Loss, text_keys
from clipcoco.engine.model import DualEncoder, ImageEncoder
from clipcoco.engine.optim import set_learning_rate
from clipcoco.engine.results import RecallTable
from clipcoco.engine.state import TrainState
from clipcoco.errors import is_out_of_memory
from clipcoco.events import Report, Warned

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
    """What the loop works on. `evaluate` gives validation loss, recall and accuracy on false captions."""

    model: DualEncoder
    loss: Loss
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    device: Device
    schedule: Schedule
    state: TrainState
    loader: TrainingLoader
    features: Features | None  # of the training images, for the epochs with a frozen backbone
    evaluate: Callable[[], tuple[float, RecallTable, dict[str, float] | None] | None]  # None: stopped meanwhile
    save: Callable[[bool, int | None], None]  # (as the best too, as the file of this epoch too)
    group: Group = ALONE  # this process and the others that train the same run

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
    """One step of the optimiser at the learning rate `rate`; `batch` has the rows of this process.

    When its loss or gradient is not finite, or an error ends it, every parameter, buffer and moment stays what it was.
    """
    model = training.model
    # One bad forward would leave NaN in BatchNorm's running statistics before any loss is looked at.
    buffers = running_statistics(model.visual)
    before = [buffer.clone() for buffer in buffers]
    loss = norm = math.nan
    try:
        loss, norm, calibrating = update(training, gradient(training, batch), rate)
    finally:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)
    return Step(loss, norm, rate, calibrating, batch.image_ids)


def gradient(training: Training, batch: Batch) -> Tensor:
    """Add the gradient of the batch's loss to the parameters; the loss, a scalar on the device.

    In pieces of `state.micro_batch_size` rows, in the memory of one, it is exactly the gradient of the whole (Gao et
    al., 2021): the loss asks for embeddings alone, so each piece is encoded once for them, and once more to take their
    gradient back. So do several processes, each with pieces of its own.
    """
    model, group, scaler = training.model, training.group, training.scaler
    size = training.state.micro_batch_size or len(batch.image_ids)
    pieces = [piece.to(training.device.device) for piece in batch.split(size)]
    moved = _Moved(model.visual, len(pieces) * group.size)

    def encoded(number: int) -> tuple[Tensor, Tensor]:
        whole = group.rank * len(pieces) + number  # of the pieces of all processes
        torch.manual_seed(step_seed(training.schedule.seed, training.state.step, whole))
        moved.begin()
        with training.device.autocast():
            images, texts, _ = model(pieces[number])
        return images, texts

    # ---- the embeddings of every piece; the last one keeps its graph, and is not encoded again
    last = len(pieces) - 1
    with torch.no_grad():
        seen = [encoded(number) for number in range(last)]
    kept = encoded(last)
    # ---- the loss of the whole batch, once, and its gradient for the embeddings
    images, texts = (group.gathered(torch.cat(one)) for one in zip(*seen, kept, strict=True))
    rows = group.rows(len(images))
    warming = training.state.step < training.schedule.warmup_steps
    both = images.requires_grad_(), texts.requires_grad_()
    keys = group.gathered(torch.cat([text_keys(piece.tokens) for piece in pieces]))
    loss = training.loss.of(*both, model.temperature(), rows, model.logit_bias, warming, keys) / group.size
    scaler.scale(loss).backward()
    assert images.grad is not None
    assert texts.grad is not None
    back = [group.added(one)[rows].split(size) for one in (images.grad, texts.grad)]
    # ---- back through the encoders, piece by piece
    for number in reversed(range(len(pieces))):
        embeddings = kept if number == last else encoded(number)
        moved.note()
        # Of a product with the gradient that same gradient; to be given it, torch imports sympy, half a second.
        torch.stack([(one * of[number]).sum() for one, of in zip(embeddings, back, strict=True)]).sum().backward()
    moved.end(group)
    group.add_gradients(model.parameters())
    return group.added(loss.detach())


def settle_micro_batch(training: Training, batch: Batch, epoch: int, report: Report) -> None:
    """For `auto`, before the first step, and where the backbone begins to learn and needs memory too: the most rows of
    a piece whose gradient fits beside all else that a step needs, the same for all processes. Found by trying: all of
    them first, then at most half as many, which share `batch` equally."""
    state, schedule = training.state, training.schedule
    border = schedule.frozen_epochs * training.loader.steps_per_epoch
    if schedule.config.micro_batch_size != "auto" or (state.micro_batch_size and state.step != border):
        return
    model, size, found = training.model, len(batch.image_ids), 0
    while not found:
        moments = []
        try:
            if not training.optimizer.state:
                moments = [torch.zeros_like(one) for one in model.parameters() if one.requires_grad for _ in range(2)]
            with training.device.autocast():
                images, texts, _ = model(batch.split(size)[0].to(training.device.device))
            (images.sum() + texts.sum()).backward()
            found = size
        except (RuntimeError, MemoryError) as error:
            if size == 1 or not is_out_of_memory(error):
                raise
            size = next(less for less in range(size // 2, 0, -1) if len(batch.image_ids) % less == 0)
        training.optimizer.zero_grad(set_to_none=True)
        del moments
    state.micro_batch_size = min(training.group.collected(found))
    if state.micro_batch_size < len(batch.image_ids):
        message = f"more than {state.micro_batch_size} images at once do not fit: train.micro_batch_size"
        report(Warned(state.step, epoch, f"{message} is {state.micro_batch_size} from here on"))


class _Moved:
    """BatchNorm's running statistics move once a step, by the mean of what its pieces would move them by."""

    def __init__(self, visual: ImageEncoder, pieces: int) -> None:
        self.buffers = running_statistics(visual) if pieces > 1 else []
        self.pieces = pieces
        self.before = [buffer.clone() for buffer in self.buffers]
        self.sums = [torch.zeros_like(buffer) for buffer in self.buffers]

    def begin(self) -> None:
        for buffer, value in zip(self.buffers, self.before, strict=True):
            buffer.copy_(value)

    def note(self) -> None:
        for total, buffer in zip(self.sums, self.buffers, strict=True):
            total += buffer

    def end(self, group: Group) -> None:
        for buffer, total in zip(self.buffers, self.sums, strict=True):
            buffer.copy_(group.added(total) / self.pieces)


def running_statistics(visual: ImageEncoder) -> list[Tensor]:
    """What a forward pass in training mode changes: of a pretrained trunk nothing, whose BatchNorm is in eval."""
    return [] if visual.pretrained else list(visual.trunk.buffers())


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


def step_seed(seed: int, step: int, piece: int = 0) -> int:
    """Of all that a piece of a step's batch draws, dropout above all, whatever was drawn before."""
    return ((seed << 31) + step + piece * 0x9E3779B97F4A7C15) % 2**63  # far from any other step's


@torch.no_grad()
def temperature(model: DualEncoder) -> float:
    scale: Tensor = model.logit_scale
    return float((-scale).exp())
