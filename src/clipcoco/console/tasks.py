"""Progress of tasks that count bytes or images: a bar each on a terminal, now and then a line elsewhere."""

import time
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, Progress, TaskID, TextColumn

from clipcoco.console.run import LINE_SECONDS
from clipcoco.console.terminal import Terminal, say_bytes, short_seconds, show
from clipcoco.events import TaskProgress


class TaskConsole:
    """Call it with each TaskProgress. A context manager, so that the cursor always comes back."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal
        self._began: dict[str, tuple[float, int]] = {}  # when and where each task was first heard of
        self._ended: set[str] = set()
        self._next_line = time.monotonic() + LINE_SECONDS
        self._bars: dict[str, TaskID] = {}
        self._progress: Progress | None = None
        if terminal.live:
            self._progress = Progress(
                TextColumn("  {task.description:<24}"),
                BarColumn(30),
                TextColumn("{task.fields[amount]:>20}  {task.fields[rest]}"),
                console=terminal.err,
                refresh_per_second=4,
            )

    def __enter__(self) -> Self:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._progress:
            self._progress.stop()

    def __call__(self, event: TaskProgress) -> None:
        if event.task in self._ended or not event.total:
            return
        now = time.monotonic()
        began, first = self._began.setdefault(event.task, (now, event.done))
        finished = event.done >= event.total
        rate = (event.done - first) / (now - began) if now > began + 0.5 else 0.0
        if self._progress:
            if event.task not in self._bars:
                self._bars[event.task] = self._progress.add_task(event.task, total=event.total, amount="", rest="")
            self._progress.update(
                self._bars[event.task], completed=event.done, amount=_amount(event), rest=_rest(event, rate)
            )
        elif finished or now >= self._next_line:
            self._next_line = now + LINE_SECONDS
            show(self.terminal.err, f"{time.strftime('%H:%M:%S')} {event.task} {_amount(event)} {_rest(event, rate)}")
        if finished:
            self._ended.add(event.task)


def _amount(event: TaskProgress) -> str:
    if event.unit == "bytes":
        if event.done >= event.total:
            return say_bytes(event.total)
        return f"{say_bytes(event.done)} of {say_bytes(event.total)}"
    return f"{event.total:,}" if event.done >= event.total else f"{event.done:,} of {event.total:,}"


def _rest(event: TaskProgress, rate: float) -> str:
    if event.done >= event.total:
        return event.note
    if rate <= 0:
        return ""
    speed = f"{say_bytes(rate)}/s" if event.unit == "bytes" else f"{rate:,.0f} img/s"
    return f"{speed}  {short_seconds((event.total - event.done) / rate)}"
