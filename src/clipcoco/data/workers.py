"""The processes that decode images: started deaf to signals, never waited for in vain, their death told in one line."""

import multiprocessing
import os
import resource
import shutil
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, resource_tracker
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from clipcoco.cores import on_this_machine, usable_cores
from clipcoco.errors import EnvironmentProblem
from clipcoco.say import say_count

# A worker and its helpers outlive a signal to the process group: only the main process decides.
SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP}
_LOOK_SECONDS = 0.2  # between two looks at a signal while a batch is waited for
_PATIENCE_SECONDS = 600.0  # for one batch: a disk that answers no more
_AHEAD = 2  # batches that a worker keeps ready
_ADVICE = "Lower --set data.workers, 0 needs none"


def image_loader(
    dataset: Dataset[Any],
    workers: int,
    pin_memory: bool,
    batch_sampler: Sampler[list[tuple[int, int]]] | None = None,
    batch_size: int = 1,
) -> DataLoader[Any]:
    """The batches of `batch_sampler`, epoch after epoch, or of `batch_size` in the data set's order, once."""
    begin_workers(workers)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        batch_sampler=batch_sampler,
        num_workers=workers,
        prefetch_factor=_AHEAD if workers else None,
        # Set explicitly: Python 3.14 changes the default, and a fork of a process with threads may hang.
        multiprocessing_context="forkserver" if workers else None,
        persistent_workers=batch_sampler is not None and workers > 0,  # for the next epoch
        pin_memory=pin_memory,
        worker_init_fn=_begin_worker,
        # Its own: otherwise every epoch draws from the global stream, and workers would change dropout.
        generator=torch.Generator(),
    )


def begin_workers(workers: int) -> None:
    """Where there are to be some, start the process that they are forked from, once: it imports what they need while
    this one does other things. What keeps it from starting is told when they are asked for; it ends with us.
    """
    if not workers:
        return
    server: Any = forkserver._forkserver
    server.set_forkserver_preload(["clipcoco.data.loader", "clipcoco.data.vision"])
    before = server._forkserver_pid
    with suppress(OSError), _deaf():
        server.ensure_running()
    if (pid := server._forkserver_pid) not in (None, before):

        def end() -> None:
            if server._forkserver_pid == pid:
                os.kill(pid, signal.SIGKILL)

        Finalize(server, end, exitpriority=0)


@contextmanager
def _deaf() -> Iterator[None]:
    """Processes that are started inside inherit blocked signals, and don't run the caller's script again: what a worker
    needs is in our modules, but the start method imports the file of `__main__` where one is named, and a script
    without a guard would train in every worker. Signals sent to us meanwhile come afterwards.
    """
    main = sys.modules["__main__"]
    named: dict[str, Any] = {name: vars(main)[name] for name in ("__file__", "__spec__") if name in vars(main)}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        resource_tracker.ensure_running()  # unblocks SIGINT and SIGTERM behind itself, so it must come first
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        vars(main).pop("__file__", None)
        main.__spec__ = None
        yield
    finally:
        vars(main).update(named)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker(worker: int) -> None:
    """Leave with the parent: a killed run must leave no workers behind; torch's own watchdog sees only the fork
    server, which lives on. And leave when a batch can't be sent: it would be waited for."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    Queue._on_queue_feeder_error = staticmethod(lambda error, batch: os._exit(1))  # type: ignore[attr-defined]


def guarded(loader: DataLoader[Any], stop: Callable[[], object]) -> Iterator[Any]:
    """The loader's batches, or those until `stop()` names a reason while one is waited for.

    A thread waits, so that a worker that hangs can't make us deaf. Raises EnvironmentProblem for a worker that dies,
    finds no room, or gives nothing for ten minutes.
    """
    if not loader.num_workers:
        yield from loader
        return
    device = torch.cuda.current_device() if loader.pin_memory else None
    others, end, iterator = set(multiprocessing.active_children()), object(), None
    at_rest = False  # nothing is under way, and the workers may live on
    pool = ThreadPoolExecutor(1)
    try:
        iterator = _result(pool.submit(_open, loader, device), stop)
        while iterator is not None and (batch := _result(pool.submit(next, iterator, end), stop)) is not None:
            at_rest = not iterator._tasks_outstanding
            if batch is end:
                return
            yield batch
            at_rest = False
    finally:
        if not at_rest:
            kept: Any = iterator if loader._iterator is None else loader._iterator
            _end(kept, set(multiprocessing.active_children()) - others if kept is None else kept._workers)
            loader._iterator = None  # to be started again
        pool.shutdown(wait=False)


def _open(loader: DataLoader[Any], device: int | None) -> Any:
    """Start the workers, or wake those that were kept."""
    if device is not None:
        torch.cuda.set_device(device)  # is the thread's: where batches are pinned
    known = loader._iterator
    with _deaf():
        iterator: Any = iter(loader)
    if iterator is not known:  # at the exit multiprocessing would wait for them, and they are deaf to its SIGTERM
        there, workers = weakref.ref(iterator), iterator._workers
        Finalize(iterator, lambda: _end(there(), workers), exitpriority=1)
    return iterator


def _end(iterator: Any, workers: Iterable[BaseProcess]) -> None:
    """The thread that pins batches leaves first: to it a worker's end is an error, told by a traceback."""
    pinning: threading.Thread | None = getattr(iterator, "_pin_memory_thread", None)
    if pinning is not None and pinning.is_alive():
        with suppress(ValueError, RuntimeError):  # torch has ended it meanwhile; a Python that ends starts no thread
            iterator._pin_memory_thread_done_event.set()
            iterator._worker_result_queue.cancel_join_thread()  # at our own exit nobody reads any more
            iterator._worker_result_queue.put((None, None))  # wakes the thread
            pinning.join(1)  # not for ever: a worker may hang in the middle of a batch
    for worker in workers:
        if worker.is_alive():
            worker.kill()  # one that hangs is deaf to all else


def _result(future: Future[Any], stop: Callable[[], object]) -> Any:
    """What came of it, None when stopped meanwhile; the end of a worker is one line and not a traceback."""
    end = time.monotonic() + _PATIENCE_SECONDS
    while not wait([future], _LOOK_SECONDS).done:
        if stop():
            return None
        if time.monotonic() > end:
            raise EnvironmentProblem(
                f"the data workers have given nothing for {_PATIENCE_SECONDS / 60:.0f} minutes (data.root). "
                f"Is the disk there that holds the images?"
            )
    try:
        return future.result()
    except (RuntimeError, OSError, EOFError, MemoryError) as error:
        text = str(error)
        if "in DataLoader worker process" in text:  # raised there; its last line says what
            said = text.strip().splitlines()[-1]
            raise EnvironmentProblem(f"a data worker failed: {said} (data.workers). {_ADVICE}") from error
        if isinstance(error, OSError) and not isinstance(error, ConnectionError | FileNotFoundError):
            said = f"data workers can't be started or reached: {error.strerror or error}"
            raise EnvironmentProblem(f"{said} (data.workers). {_ADVICE}") from error
        if isinstance(error, OSError | EOFError) or "DataLoader worker (pid" in text:
            raise EnvironmentProblem(
                "a data worker died, perhaps for want of memory or of shared memory (data.workers). "
                "Lower --set data.workers, 0 needs neither"
            ) from error
        raise


def choose_workers(asked: int | str, device_type: str, size: int, batch: int) -> tuple[int, str]:
    """The number of decoding processes, with the reason that is printed, for batches of at most `batch` images.

    Raises EnvironmentProblem where the system has no room for those asked for: they would die of it later.
    """
    most, limit = _room(3 * size**2 * batch)
    if isinstance(asked, int):
        if asked > most:
            said = f"there is no room for {asked} data workers: {limit} (data.workers)"
            raise EnvironmentProblem(f"{said}. Raise it, or set {most}")
        return asked, "asked for"
    if device_type == "cpu":
        return 0, "on a CPU the step needs the cores"
    cores = max(1, usable_cores() // on_this_machine()[1])
    wanted = min(8, max(1, cores - 1))
    return (most, limit) if wanted > most else (wanted, say_count(cores, "core"))


def _room(batch_bytes: int) -> tuple[int, str]:
    """How many workers the shared memory and the limit of open files allow, and which of them is the narrower."""
    shared, files = Path("/dev/shm"), resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    limits = []
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        limits.append((free // (_AHEAD * batch_bytes), f"/dev/shm has {free / 2**20:,.1f} MiB free"))
    if files != resource.RLIM_INFINITY:
        opened = len(os.listdir("/dev/fd")) + 32  # beside ours what starting them needs
        limits.append((max(0, files - opened) // 8, f"{files:,} files may be open (ulimit -n)"))
    return min(limits, default=(2**31, ""))
