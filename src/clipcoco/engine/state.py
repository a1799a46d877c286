"""TrainState: all that a resume needs beside weights, moments and the schedule, which is a pure function."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from clipcoco.config.schema import TrainConfig
from clipcoco.errors import CheckpointError


@dataclass
class TrainState:
    """Position, sums of the open log interval and what was seen so far. Plain values only."""

    step: int = 0  # consumed batches
    evaluated_epochs: int = 0  # an epoch whose steps are done but not yet evaluated is evaluated first
    best_r1: float = -1.0
    best_epoch: int = 0
    skipped_in_a_row: int = 0
    interval_loss: float = 0.0  # sums since the last logged step
    interval_grad_norm: float = 0.0
    interval_steps: int = 0
    interval_seconds: float = 0.0
    interval_waited: float = 0.0  # of these, for data
    epoch_loss: float = 0.0  # sums since the epoch began
    epoch_steps: int = 0
    last_train_loss: float | None = None  # means of the epoch before, to see overfitting
    last_val_loss: float | None = None
    steps_at_chance: int = 0
    unreadable: list[int] = field(default_factory=list)  # ids of images that were replaced
    warned: list[str] = field(default_factory=list)  # kinds of warnings that are given once
    precision: str = "float32"  # as resolved at the start; evaluation uses it too
    frozen_epochs: int = -1  # as resolved at the start: a resume on another device must not change it
    seconds: float = 0.0  # of training so far, over all stops

    def epoch(self, steps_per_epoch: int) -> int:
        """The epoch, from 1, that the last finished step belongs to."""
        return max(1, -(-self.step // steps_per_epoch))

    def is_finished(self, config: TrainConfig) -> bool:
        """All epochs are evaluated, or the last `early_stop_epochs` brought nothing better."""
        since_best, patience = self.evaluated_epochs - self.best_epoch, config.early_stop_epochs
        return self.evaluated_epochs >= config.epochs or 0 < patience <= since_best

    def to_plain(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> "TrainState":
        known = {f.name for f in fields(cls)}
        try:
            return cls(**{name: value for name, value in values.items() if name in known})
        except TypeError as error:
            raise CheckpointError(f"the training state can't be read: {error}") from error
