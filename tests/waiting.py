"""The one place where tests wait: for what they can see, never by the clock."""

import time
from collections.abc import Callable
from typing import Protocol


class Running(Protocol):
    def poll(self) -> int | None: ...


def until(there: Callable[[], object], process: Running | None = None, seconds: float = 120) -> None:
    """Wait until `there()` is true, for as long as a very busy machine may need.

    It may look at files that the process moves meanwhile: what goes while it is looked at is not there yet. Fails
    when the process ends before.
    """
    end = time.monotonic() + seconds
    while not _holds(there):
        if process is not None and process.poll() is not None and not _holds(there):
            raise AssertionError(f"the process ended before that:\n{getattr(process, 'stderr', '')}")
        assert time.monotonic() < end, f"not within {seconds:g} s:\n{getattr(process, 'stderr', '')}"
        time.sleep(0.002)


def _holds(there: Callable[[], object]) -> bool:
    try:
        return bool(there())
    except (FileNotFoundError, NotADirectoryError):
        return False
