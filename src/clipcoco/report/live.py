"""The page of a run at work: written anew at every evaluation, and never in the way of the run."""

import time

from clipcoco.console import RunConsole
from clipcoco.events import CheckpointSaved, Evaluated, Event, RunStarted
from clipcoco.report.page import write_report
from clipcoco.runs.directory import RunDir

SHARE = 20  # pages take at most this part of the time
LEAST = 5.0  # seconds between two: nobody reads faster


class LivePage:
    """Passes each event on to `console`; an evaluation stands in the records by the save that follows, and then in the
    page. What fails there is told once and ends the pages, not the run."""

    def __init__(self, run: RunDir, console: RunConsole) -> None:
        self.run, self.console = run, console
        self.total = 0  # steps
        self.is_due = self.is_there = self.has_failed = False
        self.next = 0.0

    def __call__(self, event: Event) -> None:
        self.console(event)
        if isinstance(event, RunStarted):
            self.total = event.total_steps
        elif isinstance(event, Evaluated):
            self.is_due = event.step < self.total  # after the last one comes the page of a finished run
        elif isinstance(event, CheckpointSaved) and self.is_due and time.monotonic() >= self.next:
            self.is_due = False
            self.write()

    def write(self) -> None:
        began = time.monotonic()
        try:
            if not self.has_failed:
                write_report(self.run)
        except Exception as error:  # a fault of the page must not cost a run of hours
            self.has_failed = True
            self.console.show(f"warning: no page while it runs: {error} ({self.run.report})")
        else:
            if not self.is_there:
                self.console.page(str(self.run.report))
            self.is_there = True
        self.next = time.monotonic() + max(LEAST, SHARE * (time.monotonic() - began))

    def end(self) -> None:
        """Of a run that failed, or was stopped at once: its page says so, and reloads itself no more."""
        if self.is_there:
            self.write()
