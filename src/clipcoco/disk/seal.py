"""Files that carry their own sum: a flipped digit or a lost end is seen when they are read again."""

import hashlib
import json
from pathlib import Path
from typing import Any

from clipcoco.disk.files import read_own, write_json

_TOP = "# Whole down to its last line, the sum of what stands above it.\n"
_END = "# SHA-256 of all above: "


class CutShort(ValueError):
    """The end of a sealed text is not there."""


def seal_text(text: str) -> str:
    """Lines that end in a comment with their sum, and begin with one that says so."""
    text = _TOP + text
    return f"{text}{_END}{_sum(text)}\n"


def is_edited(text: str) -> bool:
    """Whether a sealed text is another one now; a text without a seal never is. Raises CutShort."""
    text = text.replace("\r\n", "\n")  # as some editors write it
    if not text.startswith(_TOP):
        return False
    above, end, rest = text.rpartition(_END)
    digest, _, behind = rest.partition("\n")
    if not end or len(digest) != 64:
        raise CutShort
    return behind != "" or digest != _sum(above)


def seal(value: dict[str, Any]) -> dict[str, Any]:
    """With one more key, the sum of all others as JSON."""
    return {**value, "checksum": _sum(json.dumps(value))}


def unsealed(value: Any) -> Any:
    """Without the sum; what has none is taken as it is. Raises ValueError when the sum is another one."""
    if isinstance(value, dict) and "checksum" in value:
        value = dict(value)
        if value.pop("checksum") != _sum(json.dumps(value)):
            raise ValueError("its own sum is not that of its content")
    return value


def read_sealed(path: Path) -> Any:
    """What `write_sealed` wrote, be it large. Raises OSError, ValueError."""
    text = read_own(path, most=2**30).decode()
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested without end") from error
    above, _, end = text.rpartition(', "checksum": ')
    if end == f'"{_sum(above + "}")}"}}\n':  # spelled as it was written: to write it once more takes longest
        del value["checksum"]
        return value
    return unsealed(value)


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    write_json(path, seal(value))


def _sum(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
