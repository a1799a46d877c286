"""What a run tells the world: the engine calls `report(event)` and knows nobody who listens.

A row of metrics.jsonl is one of the recorded events (`Recorded`) as a dictionary; all that comes from a
clock is in its `clock`, so that two runs compare equal without it. Losses are in nats, recalls in percent.
The limits are for rows that are read again, from the file or from a checkpoint: either may be a stranger's.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, GetPydanticSchema, Strict, TypeAdapter, WrapValidator
from typing_extensions import TypedDict  # pydantic wants this one below Python 3.12

# So far from the ends of their kinds that no sum or difference of some of them overflows.
Count = Annotated[int, Field(strict=True, ge=0, le=10**12)]
Finite = Annotated[float, Field(strict=True, ge=-1e300, le=1e300)]
Percent = Annotated[Finite, Field(ge=0, le=100)]
# JSON has no number that is not finite: None stands for it in a row, and becomes NaN again.
Number = Annotated[Finite, WrapValidator(lambda value, finite: math.nan if value is None else finite(value))]


class _Recalls(TypedDict):
    r1: Percent
    r5: Percent
    r10: Percent
    median_rank: Annotated[Finite, Field(ge=0, le=1e12)]


class _Chance(TypedDict):
    i2t: _Recalls
    t2i: _Recalls


class _Clock(TypedDict, total=False):
    seconds: Number
    images_per_second: Number
    data_wait: Number  # a share


def _shaped(shape: Any) -> GetPydanticSchema:
    """A dictionary that must have the keys of `shape` when it is read again."""
    return GetPydanticSchema(lambda source, handler: handler.generate_schema(shape))


Recalls = Annotated[dict[str, float], _shaped(_Recalls)]
Chance = Annotated[dict[str, Recalls], _shaped(_Chance)]
Clock = Annotated[dict[str, float], _shaped(_Clock)]
Kind = Annotated[str, Field(max_length=40)]  # of false captions: "colours swapped"
Accuracies = Annotated[dict[Kind, Percent], Field(max_length=20)]


@dataclass(frozen=True)
class RunStarted:
    """The run directory exists and the first step comes next."""

    step: int
    epoch: int
    name: str
    words: str  # what names it in a shell
    folder: Path
    total_steps: int
    steps_per_epoch: int
    epochs: int
    batch_size: int
    header: tuple[tuple[str, str], ...]  # (label, text) lines for a person, e.g. ("data", "...")
    chance: Chance  # level of the validation gallery
    chance_loss: float  # of guessing among one batch
    rows: tuple[dict[str, Any], ...]  # rows of metrics.jsonl so far, when resumed


@dataclass(frozen=True)
class Progress:
    """Cheap and frequent: how far the phase has come. No device is asked for anything."""

    # "train" (steps), "evaluate" (images and captions), "rank" (parts of the scores of all pairs), "features"
    # (images past a frozen backbone), "sentences" (captions past a frozen text encoder), "closed form" (training
    # images), "encode" (images that Python gave); before the run: "check" (validation images that are read once),
    # "hash" (images of which it is not known yet what they hold)
    phase: str
    done: int
    total: int
    loss: float | None = None  # of training: the mean since the last row of metrics.jsonl


@dataclass(frozen=True)
class StepDone:
    """Means over the log interval that ends with this step; lr and temperature as of this step."""

    step: Count
    epoch: Count
    loss: Number
    lr: Number
    temperature: Number
    grad_norm: Number
    clock: Clock = field(default_factory=dict)
    event: Literal["step"] = "step"


@dataclass(frozen=True)
class StepSkipped:
    """The loss or the gradient of this step was not finite: the weights stayed as they were."""

    step: Count
    epoch: Count
    reason: str
    event: Literal["skipped"] = "skipped"


@dataclass(frozen=True)
class ImageReplaced:
    """An image could not be read; another one took its place. Told once an image."""

    step: Count
    epoch: Count
    file: str
    event: Literal["replaced"] = "replaced"


@dataclass(frozen=True)
class ClosedForm:
    """What is reached without training: recall of the validation images by CCA from the features of a frozen run."""

    step: Count
    epoch: Count
    i2t: Recalls
    t2i: Recalls
    r1: Percent
    rsum: Number = math.nan
    clock: Clock = field(default_factory=dict)
    event: Literal["closed form"] = "closed form"


@dataclass(frozen=True)
class Evaluated:
    step: Count
    epoch: Count
    val_loss: Number
    i2t: Recalls
    t2i: Recalls
    r1: Finite
    rsum: Number = math.nan
    weights_sha256: str = ""
    best: Annotated[bool, Strict()] = False
    clock: Clock = field(default_factory=dict)
    event: Literal["evaluation"] = "evaluation"
    composition: Accuracies | None = None  # on false captions, of drawn scenes


@dataclass(frozen=True)
class Warned:
    step: Count
    epoch: Count
    message: str
    event: Literal["warning"] = "warning"


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


Recorded = StepDone | StepSkipped | ImageReplaced | ClosedForm | Evaluated | Warned
Event = RunStarted | Progress | Recorded | CheckpointSaved | RunEnded
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


class _Named(TypedDict):
    """A row of a later version."""

    step: Count
    epoch: Count
    event: str


_RECORDED: TypeAdapter[Recorded] = TypeAdapter(Annotated[Recorded, Field(discriminator="event")])
_NAMED = TypeAdapter(_Named)


def read_row(line: bytes) -> Recorded:
    """The event that is a line of metrics.jsonl. Raises pydantic's ValidationError."""
    return _RECORDED.validate_json(line)


def check_row(row: dict[str, Any]) -> Recorded | None:
    """The event that a row of a checkpoint was; None of a later version's. Raises pydantic's ValidationError."""
    if row.get("event") in [kind.event for kind in get_args(Recorded)]:
        return _RECORDED.validate_python(row)
    _NAMED.validate_python(row)
    return None
