"""What a run tells the world: the engine calls `report(event)` and knows nobody who listens.

A row of metrics.jsonl is one of the recorded events (`RECORDED`) as a dictionary; all that comes from a
clock is in its `clock`, so that two runs compare equal without it. Losses are in nats, recalls in percent.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RunStarted:
    """The run directory exists and the first step comes next."""

    step: int
    epoch: int
    name: str
    folder: Path
    total_steps: int
    steps_per_epoch: int
    epochs: int
    batch_size: int
    header: tuple[tuple[str, str], ...]  # (label, text) lines for a person, e.g. ("data", "...")
    chance: dict[str, Any]  # chance level of the validation gallery: {"i2t": {"r1", ...}, "t2i": {...}}
    chance_loss: float  # of guessing among one batch
    rows: tuple[dict[str, Any], ...]  # rows of metrics.jsonl so far, when resumed


@dataclass(frozen=True)
class Progress:
    """Cheap and frequent: how far the phase has come. No device is asked for anything."""

    # "train" (steps), "evaluate" (images and captions), "rank" (parts of the scores of all pairs), "features"
    # (images past a frozen backbone); before the run: "check" (validation images that are read once), "hash" (images
    # of which it is not known yet what they hold)
    phase: str
    done: int
    total: int


@dataclass(frozen=True)
class StepDone:
    """Means over the log interval that ends with this step; lr and temperature as of this step."""

    step: int
    epoch: int
    loss: float
    lr: float
    temperature: float
    grad_norm: float
    clock: dict[str, float] = field(default_factory=dict)  # seconds, images_per_second, data_wait (a share)
    event: str = "step"


@dataclass(frozen=True)
class StepSkipped:
    """The loss or the gradient of this step was not finite: the weights stayed as they were."""

    step: int
    epoch: int
    reason: str
    event: str = "skipped"


@dataclass(frozen=True)
class ImageReplaced:
    """An image could not be read; another one took its place. Told once an image."""

    step: int
    epoch: int
    file: str
    event: str = "replaced"


@dataclass(frozen=True)
class Evaluated:
    """`i2t` and `t2i` are {"r1", "r5", "r10", "median_rank"}."""

    step: int
    epoch: int
    val_loss: float
    i2t: dict[str, float]
    t2i: dict[str, float]
    r1: float
    rsum: float
    weights_sha256: str
    best: bool
    clock: dict[str, float] = field(default_factory=dict)  # seconds
    event: str = "evaluation"


@dataclass(frozen=True)
class Warned:
    step: int
    epoch: int
    message: str
    event: str = "warning"


@dataclass(frozen=True)
class CheckpointSaved:
    step: int
    epoch: int
    path: Path
    size: int  # bytes
    seconds: float


@dataclass(frozen=True)
class RunEnded:
    step: int
    epoch: int
    state: str  # "finished" or "stopped"
    reason: str
    seconds: float


RECORDED = (StepDone, StepSkipped, ImageReplaced, Evaluated, Warned)

Event = RunStarted | Progress | StepDone | StepSkipped | ImageReplaced | Evaluated | Warned | CheckpointSaved | RunEnded
Report = Callable[[Event], None]


@dataclass(frozen=True)
class TaskProgress:
    """How far one part of getting data, encoding a folder and the like has come: cheap and frequent."""

    task: str  # "val2017.zip", "train2017"
    done: int
    total: int
    unit: str  # "bytes" or "images"
    note: str = ""  # what there is to say at its end: "SHA-256 verified"


ReportTask = Callable[[TaskProgress], None]
