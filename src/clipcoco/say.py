"""How a duration, a size, a count, an interval and an order are said, everywhere."""

from collections.abc import Sequence

_UNITS = ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))


def say_seconds(seconds: float) -> str:
    """A duration as a person says it: "0.4 s", "2 s", "1 min 41 s", "2 h 5 min"."""
    if 0.05 <= seconds < 0.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, name, small, small_name in _UNITS:
        if whole >= unit:
            rest = whole % unit // small
            return f"{whole // unit} {name}" + (f" {rest} {small_name}" if rest else "")
    return f"{whole} s"


def short_seconds(seconds: float) -> str:
    """A duration in a column or a log line: "45s", "2m04s", "1h52m", "3d02h"."""
    whole = round(seconds)
    for unit, name, small, small_name in _UNITS:
        if whole >= unit:
            return f"{whole // unit}{name[0]}{whole % unit // small:02d}{small_name[0]}"
    return f"{whole}s"


def say_bytes(count: float) -> str:
    """A size in decimal units, as disks and downloads are sold: "346 MB", "1.3 GB"."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= 0.9995 * unit:
            return f"{count / unit:,.{1 if name == 'GB' or count < 9.95 * unit else 0}f} {name}"
    return f"{count:.0f} B"


def say_count(count: int, noun: str) -> str:
    """How many there are: "1 epoch", "2,304 steps"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def say_half(interval: Sequence[float]) -> str:
    """Half of [low, high] as it stands behind ±: "1.9", "0.04", never 0."""
    half = (interval[1] - interval[0]) / 2
    return f"{half:.1f}" if half >= 0.05 else f"{max(half, 0.01):.2f}"


def say_order(order: str) -> str:
    """Of the images in folds."""
    return "in the published order" if order == "published" else f"in the order of their {order}"
