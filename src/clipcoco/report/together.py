"""Runs in one page: their curves over each other, the settings that differ, paired recalls, and the images on which
they disagree. From the run directories; the pictures, where they are still there, from the data."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path, PurePosixPath

from clipcoco.config.text import expanded, shown
from clipcoco.data.viewer import thumbnail
from clipcoco.disk.files import write_atomically
from clipcoco.report.comparison import Comparison, between
from clipcoco.report.figures import ACCENT, DIM, INK, Drawing, Line, Points, curve
from clipcoco.report.page import steps_per_epoch
from clipcoco.report.pictures import linked_from, short_name
from clipcoco.report.settings import Settings, read_settings
from clipcoco.report.template import template
from clipcoco.runs.metrics import read_history
from clipcoco.runs.record import Record, read_record
from clipcoco.runs.standing import Standing
from clipcoco.say import say_half

LETTERS = "ABCDEF"
LOOKS = ((ACCENT, "-"), (INK, "--"), (DIM, "-."), (ACCENT, ":"), (INK, ":"), (DIM, "-"))
SHOWN = 12  # images on which they disagree
THUMBNAIL = 160  # pixels


@dataclass(frozen=True)
class Answer:
    letter: str
    caption: str  # nearest to the image
    right: bool


@dataclass(frozen=True)
class Disagreement:
    file: str
    thumbnail: str | None
    answers: list[Answer]


def write_comparison(path: Path, runs: Sequence[Standing]) -> Path:
    """Write the page of 2 to 6 runs; each but the first is compared with the first. Raises OSError."""
    letters = LETTERS[: len(runs)]
    pairs = [between(runs[0], other, f"A{letter}") for letter, other in zip(letters[1:], runs[1:], strict=True)]
    settings, records = [read_settings(one.run) for one in runs], [read_record(one.run)[0] for one in runs]
    comparable = not any(pair.obstacles for pair in pairs)
    patterns, disagreements = _disagreements(records, settings[0]) if comparable else (Counter[str](), [])
    source = records[0].result.source if records[0] else None
    link = linked_from(path, runs[0].run, settings[0].config, source)
    page = template("clipcoco.report", "together.html.j2", {"short": short_name, "link": link}).render(
        letters=letters,
        runs=list(zip(letters, runs, strict=True)),
        reports={
            letter: (one.run.path.absolute() / "report.html").as_uri()
            for letter, one in zip(letters, runs, strict=True)
        },
        differing=_differing(pairs),
        unread=list(dict.fromkeys(text for pair in pairs for text in pair.unread)),
        recalls=_recalls(pairs),
        said=list(dict.fromkeys(text for pair in pairs for text in (*pair.notes, *pair.obstacles))),
        comparable=comparable,
        plots=_curves(runs, letters),
        patterns=patterns.most_common(),
        disagreements=disagreements,
    )
    write_atomically(path, page.encode("utf-8", "replace"))
    return path


def _differing(pairs: Sequence[Comparison]) -> list[tuple[str, list[str]]]:
    """Each setting that differs from A's somewhere, with the values of all runs."""
    found = []
    for name in dict.fromkeys(name for pair in pairs for name in pair.settings):
        of_a = next(pair.settings[name][0] for pair in pairs if name in pair.settings)
        found.append((name, [shown(of_a), *(shown(pair.settings.get(name, (0, of_a))[1]) for pair in pairs)]))
    return found


def _recalls(pairs: Sequence[Comparison]) -> list[tuple[str, list[str], list[tuple[str, str, str]]]]:
    """Of each recall: its name; the values; of each run but the first the difference, its interval, and whether that
    is beyond the noise."""
    found = []
    of_pairs = [pair.rows for pair in pairs], [pair.composition for pair in pairs]
    for rows in (rows for each in of_pairs if all(each) for rows in zip(*each, strict=True)):
        first = rows[0]
        values = [_value(first.a, first.a_interval), *(_value(row.b, row.b_interval) for row in rows)]
        differences = [
            (
                f"{row.b - row.a:+.2f}",
                "[{:+.2f}, {:+.2f}]".format(*row.difference_interval) if row.difference_interval else "",
                "" if row.beyond is None else "beyond" if row.beyond else "within",
            )
            for row in rows
        ]
        found.append((first.name().replace("->", "→"), values, differences))
    return found


def _value(recall: float, interval: tuple[float, float] | None) -> str:
    return f"{recall:.2f}" + (f" ± {say_half(interval)}" if interval else "")


def _curves(runs: Sequence[Standing], letters: str) -> list[Drawing]:
    lines: dict[str, list[Line]] = {"recall": [], "val-loss": [], "loss": []}
    for letter, one, (color, style) in zip(letters, runs, LOOKS, strict=False):
        history = read_history(one.run)
        per_epoch = steps_per_epoch(history, one.run.status()) or 1
        points: dict[str, Points] = {
            "recall": [(float(row.epoch), row.r1) for row in history.evaluations],
            "val-loss": [(float(row.epoch), row.val_loss) for row in history.evaluations],
            "loss": [(row.step / per_epoch, row.loss) for row in history.steps],
        }
        for name, of_run in points.items():
            if finite := [point for point in of_run if math.isfinite(point[1])]:
                lines[name].append(Line(finite, letter, color, style, "" if name == "loss" else "o"))
    titles = {"recall": "Mean R@1 (%)", "val-loss": "Validation loss (nats)", "loss": "Training loss (nats)"}
    return [
        curve(name, titles[name], _words(drawn), "epoch", drawn, zero=True) for name, drawn in lines.items() if drawn
    ]


def _words(lines: Sequence[Line]) -> str:
    return "At the end: " + ", ".join(f"{line.label} {line.points[-1][1]:.2f}" for line in lines) + "."


def _disagreements(records: Sequence[Record | None], settings: Settings) -> tuple[Counter[str], list[Disagreement]]:
    """How many images each set of runs gets right at once, "A C" say; and some on which they disagree, in turn of each
    set, in the order of the images' ids. Nothing where a run did not keep what it takes each image for."""
    of_all = [(one, one.hits, one.nearest) for one in records if one and one.hits and one.nearest]
    if len(of_all) < len(records) or any(len(hits.counts) != len(nearest) for _, hits, nearest in of_all):
        return Counter(), []
    patterns, by_pattern = Counter[str](), dict[str, list[int]]()
    for image in range(len(of_all[0][1].counts)):
        right = [letter for letter, (_, hits, _) in zip(LETTERS, of_all, strict=False) if hits.counts[image][0]]
        pattern = " ".join(right) or "none"
        patterns[pattern] += 1
        if 0 < len(right) < len(of_all):
            by_pattern.setdefault(pattern, []).append(image)
    in_turn = [image for image in chain(*zip_longest(*by_pattern.values())) if image is not None][:SHOWN]
    found = []
    for image in in_turn:
        file = of_all[0][2][image].file
        answers = [
            Answer(letter, nearest[image].caption, bool(hits.counts[image][0]))
            for letter, (_, hits, nearest) in zip(LETTERS, of_all, strict=False)
        ]
        kept = next((one.thumbnails[file] for one, *_ in of_all if file in one.thumbnails), None)
        found.append(Disagreement(file, kept or _thumbnail(settings, file), answers))
    return patterns, found


def _thumbnail(settings: Settings, file: str) -> str | None:
    """Of the picture where it still is. A record may be a stranger's: nothing outside of the data is opened."""
    inside = not PurePosixPath(file).is_absolute() and ".." not in PurePosixPath(file).parts
    if settings.config is None or not inside or not re.match(r"[\w-]", file):
        return None
    return thumbnail(expanded(settings.config.data.root) / file, THUMBNAIL)
