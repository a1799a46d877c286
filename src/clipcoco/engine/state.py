"""TrainState: all that a resume needs beside weights, moments and the schedule, which is a pure function."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, StrictFloat, StrictInt, StrictStr, TypeAdapter

from clipcoco.config.schema import TrainConfig
from clipcoco.errors import CheckpointError

Count = Annotated[int, Field(strict=True, ge=0, le=10**12)]
Seconds = Annotated[float, Field(strict=True, ge=0, le=10**11)]
_Precision = Annotated[str, Field(strict=True, pattern="^(float32|bfloat16|float16)$")]


@dataclass
class TrainState:
    """Position, sums of the open log interval and what was seen so far. Plain values only."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(allow_inf_nan=False)
    step: Count = 0  # consumed batches
    evaluated_epochs: Count = 0  # an epoch whose steps are done but not yet evaluated is evaluated first
    best_r1: Annotated[float, Field(strict=True, ge=-1, le=100)] = -1.0
    best_epoch: Count = 0
    skipped_in_a_row: Count = 0
    calibration_steps: Count = 0  # of float16: skipped while its scale was sought
    interval_loss: StrictFloat = 0.0  # sums since the last logged step
    interval_grad_norm: StrictFloat = 0.0
    interval_steps: Count = 0
    interval_seconds: Seconds = 0.0
    interval_waited: Seconds = 0.0  # of these, for data
    epoch_loss: StrictFloat = 0.0  # sums since the epoch began
    epoch_steps: Count = 0
    last_train_loss: StrictFloat | None = None  # means of the epoch before, to see overfitting
    last_val_loss: StrictFloat | None = None
    steps_at_chance: Count = 0
    unreadable: list[StrictInt] = field(default_factory=list)  # ids of images that were replaced
    warned: list[StrictStr] = field(default_factory=list)  # kinds of warnings that are given once
    precision: _Precision = "float32"  # as resolved at the start; evaluation uses it too
    # as resolved at the start: a resume on another device must not change it
    frozen_epochs: Annotated[int, Field(strict=True, ge=-1, le=10**6)] = -1
    # rows of a piece, in which a batch is encoded; 0: not known yet, or all in one as in an older checkpoint
    micro_batch_size: Count = 0
    seconds: Seconds = 0.0  # of training so far, over all stops

    @property
    def interval_mean(self) -> float | None:
        """The mean loss since the last logged step; None where no step of it counts."""
        return self.interval_loss / self.interval_steps if self.interval_steps else None

    def epoch(self, steps_per_epoch: int) -> int:
        """The epoch, from 1, that the last finished step belongs to."""
        return max(1, -(-self.step // steps_per_epoch))

    def is_finished(self, config: TrainConfig) -> bool:
        """All epochs are evaluated, or the last `early_stop_epochs` brought nothing better."""
        since_best, patience = self.evaluated_epochs - self.best_epoch, config.early_stop_epochs
        return self.evaluated_epochs >= config.epochs or 0 < patience <= since_best

    def check(self, steps_per_epoch: int, path: Path) -> None:
        """Raise CheckpointError where step and epochs contradict each other: somebody else made it."""
        since = self.step - self.evaluated_epochs * steps_per_epoch
        if not (0 <= since <= steps_per_epoch and self.best_epoch <= self.evaluated_epochs):
            raise CheckpointError(
                f"{path} contradicts itself: step {self.step:,}, {self.evaluated_epochs:,} epochs evaluated, epoch "
                f"{self.best_epoch:,} the best, of {steps_per_epoch:,} steps each. Use another one"
            )

    def to_plain(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_plain(cls, values: object) -> "TrainState":
        """Of a checkpoint that was checked: what later versions add is passed over, what is missing has its default."""
        return _STATE.validate_python(values)


_STATE = TypeAdapter(TrainState)
