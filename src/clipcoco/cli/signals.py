"""A signal asks a run to stop: the step under way ends, all is saved. Only the command line installs handlers."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

NAMES = {
    signal.SIGINT: "Ctrl-C",
    signal.SIGTERM: "SIGTERM",
    signal.SIGUSR1: "SIGUSR1",
    signal.SIGHUP: "SIGHUP",
}


class StopSignals:
    """Callable: the name of the signal that came first, or None. A second Ctrl-C leaves at once."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def __call__(self) -> str | None:
        return self.reason

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.reason is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.reason = self.reason or NAMES[signal.Signals(number)]


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Inside, signals are noted instead of obeyed; afterwards all handlers are as they were."""
    stop = StopSignals()
    # nohup ignores SIGHUP, and means it
    numbers = [n for n in NAMES if not (n == signal.SIGHUP and signal.getsignal(n) == signal.SIG_IGN)]
    before = {number: signal.signal(number, stop.handle) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
