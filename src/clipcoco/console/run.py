"""The events of a run on the terminal: one live panel, or plain lines where nothing may be animated."""

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from statistics import median_high
from typing import Any, Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from clipcoco import events
from clipcoco.console import panel
from clipcoco.console.terminal import LIVE_WIDTH, Terminal, printable, show, summary_rows
from clipcoco.say import say_bytes, say_seconds, short_seconds

WHILE_IT_RUNS = "Ctrl-C saves and stops"
LINE_SECONDS = 30.0  # between two plain lines of progress
# Phases before the training, and what passes an encoder in them.
ONCE = {"features": "images", "sentences": "captions"}
WORDS = {name: name for name in (*ONCE, "closed form")}
WORDS |= {"evaluate": "encoding", "rank": "ranking", "check": "reading", "hash": "hashing"}


def _warning(message: str) -> Text:
    return Text.assemble(("warning: ", "yellow"), printable(message))


def _recalls(event: events.ClosedForm | events.Evaluated) -> str:
    i2t, t2i = ("/".join(f"{way[key]:.2f}" for key in ("r1", "r5", "r10")) for way in (event.i2t, event.t2i))
    return f"{event.r1:.2f} i2t {i2t} t2i {t2i}"


class RunConsole:
    """Shows the events of a run; call it with each. A context manager, so that the cursor always comes back.

    Each line, and the plain form of what the panel shows, goes to `log`. Without `RunStarted`: a bar that vanishes.
    """

    def __init__(self, terminal: Terminal, log: Callable[[str], None] = lambda line: None) -> None:
        self.terminal = terminal
        self.log = log
        self.run: events.RunStarted | None = None
        self.phase = events.Progress("train", 0, 1)
        self.done = 0  # steps of the run
        self.last: dict[str, Any] = {}  # the newest step row
        self.losses: list[float] = []
        self.closed_form: dict[str, Any] | None = None
        self.evaluations: list[dict[str, Any]] = []
        self.saved: events.CheckpointSaved | None = None
        self.ended: events.RunEnded | None = None
        self.step_seconds: list[float] = []
        self._mark: tuple[float, int] | None = None  # when and where undisturbed steps began
        self._features_began: tuple[float, int] | None = None  # when and where
        self._next_line = time.monotonic() + LINE_SECONDS
        self._began = time.monotonic()
        self._live: Live | None = None
        self._log_failed, self._subtitle, self._page = False, WHILE_IT_RUNS, ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # the terminal is gone
            self._stop_panel()

    def show(self, *lines: str | Text, results: bool = False) -> None:
        """Show lines above the panel, or results on stdout, and log them."""
        show(self.terminal.out if results else self.terminal.err, *lines)
        for line in lines:
            self._log(line if isinstance(line, str) else line.plain)

    def _log(self, line: str) -> None:
        try:
            self.log(line)
        except OSError as error:
            if not self._log_failed:
                self._log_failed = True
                show(self.terminal.err, _warning(f"the log is incomplete from here on: {error}"))

    def __call__(self, event: events.Event) -> None:
        match event:
            case events.RunStarted():
                self._start(event)
            case events.Progress():
                self._progress(event)
            case events.StepDone():
                self._step(event)
            case events.ClosedForm():
                self._closed_form(event)
            case events.Evaluated():
                self._evaluated(event)
            case events.CheckpointSaved():
                path = event.path.relative_to(self.run.folder) if self.run else event.path
                if self.saved is None or self.saved.step != event.step:  # told before its evaluation, not again after
                    self._line(f"saved {path} ({say_bytes(event.size)}, {say_seconds(event.seconds)})")
                self._mark, self.saved = None, event
            case events.StepSkipped():
                self._warn(f"step {event.step:,} is skipped, the weights stay: {event.reason}")
            case events.ImageReplaced():
                self._warn(f"{event.file} cannot be read; another image takes its place")
            case events.Warned():
                self._warn(event.message)
            case events.RunEnded():
                self._end(event)

    def _start(self, event: events.RunStarted) -> None:
        self._stop_panel()  # of the checks before
        self.run, self.done = event, event.step
        self.evaluations = [row for row in event.rows if row["event"] == "evaluation"]
        self.closed_form = next((row for row in event.rows if row["event"] == events.ClosedForm.event), None)
        self.losses = [row["loss"] for row in event.rows if row["event"] == "step"]
        self._began = time.monotonic()
        self.phase = events.Progress("train", event.step, event.total_steps)
        self.show(*summary_rows(event.header), Text())
        self._show_panel(transient=False)

    def _progress(self, event: events.Progress) -> None:
        before, self.phase = self.phase, event
        goes_on = (before.phase, before.total) == (event.phase, event.total) and before.done < event.done
        if event.phase in ONCE and not goes_on:  # each split by itself
            self._features_began = (time.monotonic(), event.done)
        if event.phase == "train":
            self.done = event.done
            self._mark = self._mark or (time.monotonic(), event.done)
        elif self.run is None:
            self._show_panel(transient=True)
        if time.monotonic() >= self._next_line:
            if event.loss is not None and self.last:  # steps so long that the next row is far away
                self.last = {**self.last, "loss": event.loss}
            self._progress_line()

    def _step(self, event: events.StepDone) -> None:
        first = not self.last
        self.done, self.last = event.step, vars(event)
        self.losses.append(event.loss)
        now = time.monotonic()
        if self._mark and event.step > self._mark[1]:
            self.step_seconds.append((now - self._mark[0]) / (event.step - self._mark[1]))
        self._mark = (now, event.step)
        if first or now >= self._next_line:
            self._progress_line()

    def _closed_form(self, event: events.ClosedForm) -> None:
        assert self.run
        self.closed_form, self.phase = vars(event), events.Progress("train", self.done, self.run.total_steps)
        self._line(f"closed form (CCA, no training) R@1 {_recalls(event)}")

    def _evaluated(self, event: events.Evaluated) -> None:
        assert self.run
        self._mark, self.phase = None, events.Progress("train", self.done, self.run.total_steps)
        self.evaluations.append(vars(event))
        best = " best" if event.best else ""
        self._line(f"eval epoch {event.epoch} R@1 {_recalls(event)}{best}")

    def stopping(self, signal: str) -> None:
        """Say that `signal` was heard. Called by its handler, which may interrupt a write: so no stream is used."""
        if self._live:
            self._subtitle = f" {signal}: saving after this step · Ctrl-C again stops now "
        else:
            line = f"{signal}: stopping after this step, then saving. One more Ctrl-C stops now.\n"
            with suppress(OSError):  # whoever read the terminal may be gone, and must not stop the saving
                os.write(sys.stderr.fileno(), line.encode())

    def page(self, path: str) -> None:
        self._page = path
        self._line(f"page {path}")

    def _end(self, event: events.RunEnded) -> None:
        assert self.run
        self.ended = event
        self._stop_panel()
        if event.state == "finished":
            why = f" ({event.reason})." if event.reason else "."
            self.show(f"Finished: {event.step:,} steps in {say_seconds(event.seconds)}{why}")
        else:
            took = f" in {say_seconds(self.saved.seconds)}" if self.saved and self.saved.step == event.step else ""
            self.show(f"Saved step {event.step:,} of {self.run.total_steps:,}{took}.")
            self.show(f"Go on with: clipcoco resume {self.run.words}")

    def _warn(self, message: str) -> None:
        self.show(_warning(message))

    def _line(self, text: str, for_narrow: str = "") -> None:
        """A line of progress: always logged, shown where no panel shows the same."""
        self._log(text)
        if not self._live:
            err = self.terminal.err
            shown = for_narrow if for_narrow and err.file.isatty() and err.width < LIVE_WIDTH else text
            show(err, f"{datetime.now():%H:%M:%S} {shown}")

    def _progress_line(self) -> None:
        self._next_line = time.monotonic() + LINE_SECONDS
        if self.phase.phase != "train":
            left, text = self._features_left(), f"{WORDS[self.phase.phase]} {self.phase.done}/{self.phase.total}"
            self._line(text + (f" eta {short_seconds(left)}" if left else ""))
            return
        assert self.run
        text = f"step {self.done}/{self.run.total_steps} epoch {self._epoch()}/{self.run.epochs}"
        speed, left = "", self._seconds_left()
        if last := self.last:
            images, wait = (last["clock"].get(key, 0) for key in ("images_per_second", "data_wait"))
            text += f" loss {last['loss']:.3f}"
            speed = f" lr {last['lr']:.1e} img/s {images:.0f} wait {wait:.0%}"
        eta = f" eta {short_seconds(left)}" if left is not None else ""
        self._line(text + speed + eta, for_narrow=text + eta)

    def _epoch(self) -> int:
        assert self.run
        return max(1, -(-self.done // self.run.steps_per_epoch))

    def _seconds_left(self) -> float | None:
        """Of the whole run: the median step and the median evaluation, times what is left of each."""
        assert self.run
        steps = self.step_seconds[-20:]
        if not steps and self._mark and self.done > self._mark[1]:
            steps = [(time.monotonic() - self._mark[0]) / (self.done - self._mark[1])]
        if not steps:
            return None
        left = median_high(steps) * (self.run.total_steps - self.done)
        if seconds := [row["clock"]["seconds"] for row in self.evaluations]:
            under_way = self.phase.done / self.phase.total if self.phase.phase == "evaluate" else 0.0
            left += median_high(seconds) * (self.run.epochs - len(self.evaluations) - under_way)
        return left

    def _features_left(self) -> float | None:
        """Of what has still to pass a frozen encoder."""
        if self.phase.phase not in ONCE or self._features_began is None:
            return None
        began, first = self._features_began
        done = self.phase.done - first
        return (time.monotonic() - began) / done * (self.phase.total - self.phase.done) if done else None

    def _time(self) -> str:
        left, phase = self._seconds_left(), self.phase
        if self.run and self.ended:
            return f"{self.ended.state} at step {self.ended.step:,} of {self.run.total_steps:,}"
        if phase.phase in ONCE:
            rest = self._features_left()
            what = "features" if phase.phase == "features" else "sentence vectors"
            return f"{what} of {phase.done:,} of {phase.total:,} {ONCE[phase.phase]}" + (
                f", about {say_seconds(round(rest))} left, then the training" if rest else ""
            )
        if phase.phase == "closed form":
            return f"closed form of {phase.done:,} of {phase.total:,} images, then the training"
        where = f"evaluating, {phase.done / phase.total:.0%} · ".replace("%", " %") if phase.phase == "evaluate" else ""
        if left is None:
            return where + "measuring the time left"
        if not self.evaluations:
            return where + f"about {say_seconds(round(left))} left, evaluations not counted yet"
        end = datetime.now() + timedelta(seconds=left)
        day = "%H:%M:%S" if left < 12 * 3600 else "%A %H:%M"
        return where + f"about {say_seconds(round(left))} left, done at {end:{day}}"

    def _show_panel(self, transient: bool) -> None:
        if self.terminal.live and self._live is None:
            self._live = Live(
                get_renderable=self._picture,
                console=self.terminal.err,
                refresh_per_second=4,
                transient=transient,
                redirect_stdout=sys.stdout.isatty(),
                vertical_overflow="crop",
            )
            self._live.start()

    def _stop_panel(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            self._subtitle = self._subtitle if self.run is None else ""
            live.stop()

    def _picture(self) -> RenderableType:
        console, run = self.terminal.err, self.run
        if run is None:
            what = f"  {WORDS[self.phase.phase]} {self.phase.done:,} of {self.phase.total:,}"
            room = min(40, console.width - len(what))
            return Group(panel.bar(self.phase.done / self.phase.total, room).append(what), Text())
        view = panel.View(
            name=run.name,
            title=f"epoch {self._epoch()} of {run.epochs} · {say_seconds(round(time.monotonic() - self._began))}",
            subtitle=self._subtitle,
            page=self._page if self._subtitle == WHILE_IT_RUNS else "",
            done=self.done,
            total=run.total_steps,
            time=self._time(),
            losses=list(self.losses),
            chance_loss=run.chance_loss,
            chance=run.chance,
            closed_form=self.closed_form,
            last=self.last,
            evaluations=list(self.evaluations),
        )
        # The terminal echoes ^C into the empty line below; on the frame's own line it would tear the frame.
        return Group(panel.draw(view, console.width, console.height), Text())
