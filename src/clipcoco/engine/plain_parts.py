"""The plain parts of a checkpoint, which may be a stranger's: of the kinds that a save writes, or refused.

What later versions add is passed over, what earlier ones lacked has its default.
"""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from clipcoco.config.text import one_line
from clipcoco.engine.state import Count, Finite, TrainState
from clipcoco.errors import CheckpointError
from clipcoco.rows import check_row

_MAX_DEPTH = 32
_MAX_NODES = 5_000_000  # a row of metrics has about 20, a vocabulary 100,000


def _one_line(text: str) -> str:
    if one_line(text) != text:
        raise ValueError("Input should be one printable line")
    return text


Word = Annotated[str, Field(max_length=200), AfterValidator(_one_line)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class _Data(_Part):
    """The fingerprint of the data."""

    source: Word = ""
    copies: Word = ""
    train: Word = ""
    val: Word = ""
    weights: Word = ""
    init: Word = ""
    train_images: Count = 0
    val_images: Count = 0


class _Parts(_Part):
    data: _Data = _Data()
    versions: dict[Word, Word] = {}
    metrics: list[dict[str, Any]] = []
    scaler: dict[Word, Finite] = {}


def checked(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """`content` itself. Raises CheckpointError."""
    try:
        _bound(content)
        TrainState.from_plain(content.get("state"))
        for row in _Parts.model_validate(content).metrics:
            check_row(row)
        json.dumps(content.get("metrics"), allow_nan=False)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place, what = ".".join(map(str, first["loc"])), first["msg"]
        raise CheckpointError(_unusable(path, f"{place}: {what}")) from error
    except (CheckpointError, ValueError, TypeError) as error:  # the last two are of json
        raise CheckpointError(_unusable(path, str(error))) from error
    return content


def _unusable(path: Path, why: str) -> str:
    return f"{path} holds what no clipcoco wrote: {one_line(why)[:200]}. Use another checkpoint"


def _bound(content: dict[str, Any]) -> None:
    """Few lists that hold each other many times are few bytes and endless to walk."""
    waiting: list[tuple[Any, int]] = [(content, 0)]
    nodes = 0
    while waiting:
        value, depth = waiting.pop()
        nodes += len(value)
        if nodes > _MAX_NODES or depth > _MAX_DEPTH:
            raise CheckpointError("lists within lists without end")
        inner = value.values() if isinstance(value, dict) else value
        waiting += [(one, depth + 1) for one in inner if isinstance(one, dict | list | tuple | set)]
