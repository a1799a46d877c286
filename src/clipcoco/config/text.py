"""Configuration as text: a file's characters, and one value from and to YAML 1.2's core schema."""

import errno
import json
import math
import os
import re
import select
import stat
from pathlib import Path

from clipcoco.disk.seal import CutShort, is_edited
from clipcoco.errors import ConfigError

_MAX_BYTES = 2**20
_MAX_DIGITS = 40
_PATIENCE_SECONDS = 3
_WEIGHTS = re.compile("^# SHA-256 of model.vision.weights: ([0-9a-f]{64})\\r?$", re.MULTILINE)
_WORDS = {"": None, "~": None} | {
    spelling: value
    for word, value in (("null", None), ("true", True), ("false", False))
    for spelling in (word, word.capitalize(), word.upper())
}
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


def read_text(path: Path, where: str) -> str:
    """The content of a configuration file; raises ConfigError where there is none that could be one."""
    try:
        with open(path, "rb", opener=_open) as file:
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError(
            f"no configuration file at {where}. One to start from: clipcoco inspect-config demo > FILE"
        ) from error
    except OSError as error:
        raise ConfigError(f"{where} cannot be read as a configuration file ({error.strerror}).") from error
    if len(data) > _MAX_BYTES:
        raise ConfigError(f"{where} is larger than 1 MiB, so it is not a configuration file.")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ConfigError(f"{where} is UTF-16. Save it as UTF-8.")
    if b"\0" in data:
        raise ConfigError(f"{where}:{data[: data.index(0)].count(10) + 1} holds a NUL byte. Save it as UTF-8 text.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{where}:{line} is not UTF-8. Save the file as UTF-8.") from error


def _open(path: str, flags: int) -> int:
    """Of a pipe or a terminal once there is something to read, which may be never; the shell's <(...) is waited for."""
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)
    given = path.startswith(("/dev/fd/", "/dev/stdin", "/proc/self/fd/"))
    waits = not stat.S_ISREG(os.fstat(descriptor).st_mode) and not given
    if waits and not select.select([descriptor], [], [], _PATIENCE_SECONDS)[0]:
        os.close(descriptor)
        raise OSError(errno.ETIMEDOUT, f"nobody has written to it for {_PATIENCE_SECONDS} s")
    os.set_blocking(descriptor, True)
    return descriptor


def expanded(path: str | Path) -> Path:
    """`path` with ~ filled in. Raises ConfigError where no home is known, and for a $NAME left by the shell."""
    try:
        found = Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"no home folder is known for {one_line(str(path))}. Write the folder out") from error
    if "$" in str(path) and not os.path.exists(found):
        raise ConfigError(f"{one_line(str(path))} is not there, and $ is taken literally. Write the folder out, or ~")
    return found


def sealed_by_a_run(text: str, where: str) -> tuple[str, str]:
    """Of a file that a run wrote: a note when it is another one since, and the SHA-256 of the weights it began with.

    Raises ConfigError when its end is lost: what is left would load, with other settings in the place of the lost ones.
    """
    try:
        note = f"{where} was edited since the run wrote it" if is_edited(text) else ""
    except CutShort:
        raise ConfigError(
            f"{where} is cut short: its last line, the sum of the others, is not there. "
            f"Get a whole copy; to take what is left for your own, remove its first line."
        ) from None
    weights = _WEIGHTS.search(text)
    return note, weights[1] if weights else ""


def scalar(text: str) -> object:
    """The value of unquoted `text`; raises OverflowError for an integer of absurd length."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        if len(text) > _MAX_DIGITS:
            raise OverflowError
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    if _FLOAT.fullmatch(text):
        return float(text)
    return float(text.replace(".", "")) if _NOT_FINITE.fullmatch(text) else text


def written(value: object) -> str:
    """A setting's value as YAML on one line."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, str):
        plain = re.fullmatch(r"(?:\.{0,2}/|[^\W\d])[\w./-]*", value) and value.lower() not in ("true", "false", "null")
        return value if plain else json.dumps(value, ensure_ascii=False)
    return repr(value)


def one_line(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def shown(value: object) -> str:
    """A value or a name inside a message: as it would be written, on one line, cut when long."""
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, (list, tuple)) and any(isinstance(item, (list, tuple, dict)) for item in value):
        return "a nested list"
    text = one_line(written(value)[:61])
    return text if len(text) <= 60 else text[:57] + "..."
