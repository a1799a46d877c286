"""The records of a run as lines: metrics.jsonl and log.txt; and how events reach all records."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from clipcoco.disk import files
from clipcoco.events import Event, Progress, Recorded, Report, RunStarted, Warned


def fan_out(*sinks: Report) -> Report:
    """One `report` that passes each event to every sink, in order.

    A sink that fails with OSError (disk full, folder not writable, terminal gone) must not end a run of
    hours: the others are warned, once a sink.
    """
    failed: set[int] = set()
    step, epoch = 0, 1

    def report(event: Event) -> None:
        nonlocal step, epoch
        if not isinstance(event, Progress):
            step, epoch = event.step, event.epoch
        for number, sink in enumerate(sinks):
            try:
                sink(event)
            except OSError as error:
                if number not in failed:
                    failed.add(number)
                    report(Warned(step, epoch, f"a record of this run is incomplete from here on: {error}"))

    return report


def plain_row(event: Event) -> dict[str, Any]:
    """The event as a row of metrics.jsonl. A number that is not finite becomes None: JSON has no other."""
    return asdict(event, dict_factory=lambda pairs: {name: _finite(value) for name, value in pairs})


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
        if isinstance(event, Recorded):
            self.rows.append(plain_row(event))
        elif not isinstance(event, RunStarted):
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
