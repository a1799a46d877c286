"""metrics.jsonl, as the report reads it: rows that can't be read are counted and left out."""

from dataclasses import dataclass

from pydantic import ValidationError

from clipcoco.disk.files import read_own
from clipcoco.events import Evaluated, ImageReplaced, StepDone, StepSkipped, Warned, read_row
from clipcoco.runs.directory import RunDir


@dataclass(frozen=True)
class History:
    steps: tuple[StepDone, ...]
    evaluations: tuple[Evaluated, ...]
    notes: tuple[str, ...]  # warnings, skipped steps, replaced images: what a reader should know, each once
    unreadable: int  # rows

    @property
    def last_step(self) -> int:
        return max([0, *(row.step for row in self.steps), *(row.step for row in self.evaluations)])

    @property
    def best(self) -> Evaluated | None:
        """The evaluation whose weights are in best.pt."""
        return next((row for row in reversed(self.evaluations) if row.best), None)


def read_history(run: RunDir) -> History:
    """An absent file is an empty history."""
    steps, evaluations, notes, unreadable = list[StepDone](), list[Evaluated](), list[str](), 0
    try:
        lines = read_own(run.metrics, most=2**30).splitlines()
    except OSError:
        lines = []
    for line in filter(bytes.strip, lines):
        try:
            row = read_row(line)
        except ValidationError:
            unreadable += 1
            continue
        match row:
            case StepDone():
                steps.append(row)
            case Evaluated():
                evaluations.append(row)
            case StepSkipped():
                notes.append(f"Step {row.step:,} was skipped, the weights stayed: {row.reason}")
            case ImageReplaced():
                notes.append(f"{row.file} could not be read, another image took its place (step {row.step:,})")
            case Warned():
                notes.append(row.message)
    return History(tuple(steps), tuple(evaluations), tuple(dict.fromkeys(notes)), unreadable)
