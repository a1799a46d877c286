"""A row of metrics.jsonl as it is read again, from the file or from a checkpoint: either may be a stranger's."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

Percent = Annotated[float, Field(ge=0, le=100)]


class Part(BaseModel):
    """What later versions add is passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Recalls(Part):
    r1: Percent
    r5: Percent
    r10: Percent
    median_rank: float = Field(ge=0, le=1e12)


class _Row(Part):
    step: int = Field(ge=0)
    epoch: int = Field(ge=0)


class _Named(_Row):
    event: str


class StepClock(BaseModel):
    seconds: float | None = None
    images_per_second: float | None = None
    data_wait: float | None = None  # a share


class StepRow(_Row):
    """None: the number was not finite."""

    event: Literal["step"]
    loss: float | None
    lr: float | None
    temperature: float | None
    grad_norm: float | None
    clock: StepClock = StepClock()


class EvaluationClock(BaseModel):
    seconds: float | None = None


class EvaluationRow(_Row):
    event: Literal["evaluation"]
    val_loss: float | None
    i2t: Recalls
    t2i: Recalls
    r1: float
    weights_sha256: str = ""
    best: bool = False
    clock: EvaluationClock = EvaluationClock()


class SkippedRow(_Row):
    event: Literal["skipped"]
    reason: str


class ReplacedRow(_Row):
    event: Literal["replaced"]
    file: str


class WarningRow(_Row):
    event: Literal["warning"]
    message: str


Row = Annotated[StepRow | EvaluationRow | SkippedRow | ReplacedRow | WarningRow, Field(discriminator="event")]
_ROW: TypeAdapter[Row] = TypeAdapter(Row)
_EVENTS = ("step", "evaluation", "skipped", "replaced", "warning")


def read_row(line: bytes) -> Row:
    """Raises pydantic's ValidationError."""
    return _ROW.validate_json(line)


def check_row(row: dict[str, Any]) -> None:
    """Of a checkpoint; an event that later versions add is passed over. Raises pydantic's ValidationError."""
    if row.get("event") in _EVENTS:
        _ROW.validate_python(row, strict=True)
    else:
        _Named.model_validate(row, strict=True)
