"""The same work on many images, by threads: decoding, hashing and reading run outside Python's lock."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from clipcoco.cores import usable_cores
from clipcoco.events import ReportTask, TaskProgress

_AT_ONCE = 512  # files in the hands of the threads
Result = TypeVar("Result")


def in_threads(
    work: Callable[[str], Result],
    files: Sequence[str],
    task: str,
    report: ReportTask,
    done: int = 0,
    threads: int | None = None,
) -> list[Result]:
    """`work` of each file, one thread a core unless given; `done` files of the task are not among these.

    After an error, and after Ctrl-C, no further file is begun.
    """
    results: list[Result] = []
    total = done + len(files)
    with ThreadPoolExecutor(threads or usable_cores()) as pool:
        try:
            for start in range(0, len(files), _AT_ONCE):
                for result in pool.map(work, files[start : start + _AT_ONCE]):
                    results.append(result)
                    report(TaskProgress(task, done + len(results), total, "images"))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return results
