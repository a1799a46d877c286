"""Progress of tasks that count bytes or images: a bar each on a terminal, now and then a line elsewhere."""

import time
from typing import Self

from rich.live import Live
from rich.text import Text

from clipcoco.console import panel
from clipcoco.console.run import LINE_SECONDS
from clipcoco.console.terminal import Terminal, printable, show
from clipcoco.events import TaskProgress
from clipcoco.say import say_bytes, short_seconds

AMOUNT = 15  # columns of "100,241/118,287"
REST = 18  # columns of "1,234 img/s  1h52m"
WIDEST_NAME = 28  # "annotations_trainval2017.zip"
WIDEST_BAR, NARROWEST_BAR = 30, 6


class TaskConsole:
    """Call it with each TaskProgress. A context manager, so that the cursor always comes back."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal
        self._began: dict[str, tuple[float, int]] = {}  # when and where each task was first heard of
        self._ended: set[str] = set()
        self._next_line = time.monotonic() + LINE_SECONDS
        self._shown: dict[str, tuple[TaskProgress, str]] = {}  # the newest of each task, and what stands behind it
        self._live: Live | None = None
        if terminal.live:
            self._live = Live(get_renderable=self._picture, console=terminal.err, refresh_per_second=4)

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, event: TaskProgress) -> None:
        if event.task in self._ended or not event.total:
            return
        now = time.monotonic()
        finished = event.done >= event.total
        if event.note and not finished:  # what the disk reads again, and a pause, say nothing about the speed
            self._began[event.task] = (now, event.done)
        began, first = self._began.setdefault(event.task, (now, event.done))
        rest = _rest(event, (event.done - first) / (now - began) if now > began + 0.5 else 0.0)
        if self._live:
            self._shown[event.task] = (event, rest)
        elif finished or now >= self._next_line:
            self._next_line = now + LINE_SECONDS
            show(self.terminal.err, f"{time.strftime('%H:%M:%S')} {event.task} {_amount(event)} {rest}".rstrip())
        if finished:
            self._ended.add(event.task)

    def _picture(self) -> Text:
        width, shown = self.terminal.err.width, self._shown.values()
        room = width - AMOUNT - REST - 6  # for a name and its bar; the rest are gaps
        names = [Text(printable(event.task)) for event, _ in shown]
        longest = min(max((name.cell_len for name in names), default=0), WIDEST_NAME, room - NARROWEST_BAR)
        lines = []
        for name, (event, rest) in zip(names, shown, strict=True):
            name.truncate(longest, overflow="ellipsis", pad=True)
            bar = panel.bar(event.done / event.total, min(WIDEST_BAR, room - longest))
            line = Text.assemble("  ", name, " ", bar, f" {_amount(event):>{AMOUNT}}  {printable(rest)}")
            line.truncate(width, overflow="ellipsis")
            lines.append(line)
        return Text("\n").join(lines)


def _amount(event: TaskProgress) -> str:
    """ "431/816 MB", or of what is complete "816 MB"."""
    if event.unit == "bytes":
        done, total = say_bytes(event.done), say_bytes(event.total)
        if done[-2:] == total[-2:]:
            done = done.split()[0]
    else:
        done, total = f"{event.done:,}", f"{event.total:,}"
    return total if event.done >= event.total else f"{done}/{total}"


def _rest(event: TaskProgress, rate: float) -> str:
    """What there is to say, or how fast it goes and how long it takes."""
    if event.note or rate <= 0 or event.done >= event.total:
        return event.note
    speed = f"{say_bytes(rate)}/s" if event.unit == "bytes" else f"{rate:,.0f} img/s"
    return f"{speed}  {short_seconds((event.total - event.done) / rate)}"
