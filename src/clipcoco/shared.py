"""A context of the whole process, such as torch's choice of kernels, that several threads enter by themselves."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager


class Shared:
    """The first thread inside begins what `make` gives, the last one ends it."""

    def __init__(self, make: Callable[[], AbstractContextManager[object]]) -> None:
        self.make, self.lock, self.inside = make, threading.Lock(), 0

    def __enter__(self) -> None:
        with self.lock:
            if not self.inside:
                self.context = self.make()
                self.context.__enter__()
            self.inside += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                self.context.__exit__(None, None, None)
