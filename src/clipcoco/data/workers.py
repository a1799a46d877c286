"""The processes that decode images: started deaf to signals, never left behind, their death told in one line."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from clipcoco.cores import usable_cores
from clipcoco.errors import EnvironmentProblem

# A worker and its helpers outlive a signal to the process group: only the main process decides.
SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP}


def image_loader(
    dataset: Dataset[Any],
    workers: int,
    pin_memory: bool,
    batch_sampler: Sampler[list[tuple[int, int]]] | None = None,
    batch_size: int = 1,
    keep: bool = False,
) -> DataLoader[Any]:
    context = None
    if workers:
        # Set explicitly: Python 3.14 changes the default, and a fork of a process with threads may hang.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["clipcoco.data.loader"])
    return DataLoader(
        dataset,
        batch_size=1 if batch_sampler else batch_size,
        batch_sampler=batch_sampler,
        num_workers=workers,
        multiprocessing_context=context,
        persistent_workers=keep and workers > 0,
        pin_memory=pin_memory,
        worker_init_fn=_leave_with_parent,
        # Its own: otherwise every epoch draws from the global stream, and workers would change dropout.
        generator=torch.Generator(),
    )


def _leave_with_parent(worker: int) -> None:
    """A killed run must leave no workers behind; torch's own watchdog sees only the fork server, which lives on."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def guarded(loader: DataLoader[Any]) -> Iterator[Any]:
    """The loader's batches; a worker that dies is one line and not a traceback."""
    with _signals_held_back(loader.num_workers > 0):
        iterator = iter(loader)
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker (pid" not in str(error):
                raise
            raise EnvironmentProblem(
                "a data worker died, perhaps for want of memory or of shared memory (data.workers). "
                "Lower --set data.workers, 0 needs neither"
            ) from error
        yield batch


@contextmanager
def _signals_held_back(needed: bool) -> Iterator[None]:
    """Processes started inside inherit blocked signals; those sent to us meanwhile come afterwards."""
    if not needed:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        resource_tracker.ensure_running()  # unblocks SIGINT and SIGTERM behind itself, so it must come first
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def choose_workers(asked: int | str, device_type: str) -> tuple[int, str]:
    """The number of decoding processes, with the reason that is printed."""
    if isinstance(asked, int):
        return asked, "asked for"
    if device_type == "cpu":
        return 0, "on a CPU the step needs the cores"
    cores = usable_cores()
    return min(8, max(1, cores - 1)), f"{cores} core{'s' * (cores > 1)}"
