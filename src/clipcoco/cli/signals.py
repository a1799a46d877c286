"""A signal asks a run to stop: the step under way ends, all is saved. Only the command line installs handlers."""

import signal
from collections.abc import Callable, Iterable, Iterator
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

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.reason: str | None = None
        self.tell = tell

    def __call__(self) -> str | None:
        return self.reason

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.reason is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.reason is None:
            self.reason = NAMES[signal.Signals(number)]
            self.tell(self.reason)


@contextmanager
def stop_signals(tell: Callable[[str], None]) -> Iterator[StopSignals]:
    """Inside, signals are noted and told instead of obeyed; afterwards all handlers are as they were."""
    stop = StopSignals(tell)
    with handled(NAMES, stop.handle):
        yield stop


@contextmanager
def handled(numbers: Iterable[int], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Inside, `handler` answers these signals; afterwards all is as it was. nohup ignores SIGHUP, and means it."""
    heard = [n for n in numbers if not (n == signal.SIGHUP and signal.getsignal(n) == signal.SIG_IGN)]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
