"""The records of a run as lines: metrics.jsonl, which is also read again, and log.txt; how events reach all records."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from clipcoco import events
from clipcoco.disk import files
from clipcoco.events import Event, Report
from clipcoco.runs.directory import RunDir


def fan_out(*sinks: Report) -> Report:
    """One `report` that passes each event to every sink, in order.

    A sink that fails with OSError (disk full, folder not writable, terminal gone) must not end a run of
    hours: the others are warned, once a sink.
    """
    failed: set[int] = set()
    step, epoch = 0, 1

    def report(event: Event) -> None:
        nonlocal step, epoch
        if not isinstance(event, events.Progress):
            step, epoch = event.step, event.epoch
        for number, sink in enumerate(sinks):
            try:
                sink(event)
            except OSError as error:
                if number not in failed:
                    failed.add(number)
                    report(events.Warned(step, epoch, f"a record of this run is incomplete from here on: {error}"))

    return report


def plain_row(event: Event) -> dict[str, Any]:
    """The event as a row of metrics.jsonl, without what is None in it. A number that is not finite becomes None: JSON
    has no other."""
    return asdict(event, dict_factory=lambda pairs: {name: _finite(to) for name, to in pairs if to is not None})


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


class MetricsFile:
    """metrics.jsonl: `rows`, those of the checkpoint a run goes on from, then one row a recorded event.

    At RunStarted the file starts again with `rows`: what a stopped run wrote after its checkpoint is gone, and
    a resumed run reads as one. `rows` stays complete when the disk refuses some; the next event tries again.
    """

    def __init__(self, path: Path, rows: Sequence[dict[str, Any]]) -> None:
        self.path = path
        self.rows = list(rows)
        self._whole = False  # the file holds exactly `rows`

    def __call__(self, event: Event) -> None:
        if isinstance(event, events.Recorded):
            self.rows.append(plain_row(event))
        elif not isinstance(event, events.RunStarted):
            return
        whole, self._whole = self._whole, False
        if whole:
            with files.open_to_append(self.path) as file:
                files.write_whole(file, _line(self.rows[-1]))
        else:
            files.write_atomically(self.path, b"".join(map(_line, self.rows)))
        self._whole = True


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, allow_nan=False).encode() + b"\n"


class LogFile:
    """log.txt: every line that was shown, with its time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, line: str) -> None:
        whole = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}".rstrip() + "\n"
        with files.open_to_append(self.path) as file:
            file.write(whole.encode("utf-8", "backslashreplace"))


@dataclass(frozen=True)
class History:
    steps: tuple[events.StepDone, ...]
    evaluations: tuple[events.Evaluated, ...]
    closed_form: events.ClosedForm | None  # of runs whose epochs are all trained from features
    notes: tuple[str, ...]  # warnings, skipped steps, replaced images: what a reader should know, each once
    unreadable: int  # rows
    last_step: int

    @property
    def best(self) -> events.Evaluated | None:
        """The evaluation whose weights are in best.pt."""
        return next((row for row in reversed(self.evaluations) if row.best), None)


def read_history(run: RunDir, briefly: bool = False) -> History:
    """metrics.jsonl as it is read again: rows that can't be read are counted and left out. An absent file is empty.

    `briefly`: of the evaluations and the last rows alone, for a list of many runs.
    """
    steps, evaluations, notes = list[events.StepDone](), list[events.Evaluated](), list[str]()
    unreadable = last_step = 0
    closed_form = None
    try:
        lines = files.read_own(run.metrics, most=2**30).splitlines()
    except OSError:
        lines = []
    if briefly:
        lines = [*(line for line in lines[:-2] if b'"evaluation"' in line), *lines[-2:]]
    for line in filter(bytes.strip, lines):
        try:
            row = events.read_row(line)
            last_step = max(last_step, row.step)
        except ValidationError:
            unreadable += 1
            continue
        match row:
            case events.StepDone():
                steps.append(row)
            case events.ClosedForm():
                closed_form = row
            case events.Evaluated():
                evaluations.append(row)
            case events.StepSkipped():
                notes.append(f"Step {row.step:,} was skipped, the weights stayed: {row.reason}")
            case events.ImageReplaced():
                notes.append(f"{row.file} could not be read, another image took its place (step {row.step:,})")
            case events.Warned():
                notes.append(row.message)
    noted = tuple(dict.fromkeys(notes))
    return History(tuple(steps), tuple(evaluations), closed_form, noted, unreadable, last_step)
