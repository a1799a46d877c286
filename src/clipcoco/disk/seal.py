"""Files that carry their own sum: a flipped digit or a lost end is seen when they are read again."""

import errno
import hashlib
import json
from pathlib import Path
from typing import Any

from clipcoco.disk.files import read_own, write_atomically

_TOP = "# Whole down to its last line, the sum of what stands above it.\n"
_END = "# SHA-256 of all above: "
_LAST = ', "checksum": "%s"}\n'
_MOST = 2**30  # bytes of JSON


class CutShort(ValueError):
    """The end of a sealed text is not there."""


def seal_text(text: str) -> str:
    """Lines that end in a comment with their sum, and begin with one that says so."""
    text = _TOP + text
    return f"{text}{_END}{_sum(text)}\n"


def is_sealed(text: str) -> bool:
    """Whether `seal_text` has made it, be it edited since."""
    return text.replace("\r\n", "\n").startswith(_TOP)  # as some editors write it


def is_edited(text: str) -> bool:
    """Whether a sealed text is another one now; a text without a seal never is. Raises CutShort."""
    if not is_sealed(text):
        return False
    text = text.replace("\r\n", "\n")
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
    return read_sealed_text(read_own(path, most=_MOST))


def read_sealed_text(data: bytes) -> Any:
    """`unsealed` of JSON. Raises ValueError."""
    end = max(data.rfind(b', "checksum": '), 0)
    digest = hashlib.sha256(memoryview(data)[:end])
    digest.update(b"}")
    try:
        value = json.loads(data.decode())
    except RecursionError as error:
        raise ValueError("nested without end") from error
    if data[end:].decode() == _LAST % digest.hexdigest():  # as it was written: to write it once more takes longest
        del value["checksum"]
        return value
    return unsealed(value)


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """A `value` that is not empty. Raises OSError, for one that is too large to be read again, too."""
    text = json.dumps(value)
    text = text[:-1] + _LAST % _sum(text)
    if len(text) > _MOST:
        raise OSError(errno.EFBIG, f"it would have more than {_MOST:,} bytes", str(path))
    write_atomically(path, text)


def _sum(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
