"""`clipcoco runs A B`: the settings that differ, and whether the recalls do.

Two runs are measured on the same images, so that whether they differ is asked of their difference, image by image.
Whether their own intervals overlap is far stricter a question: these hold what is hard for both.
"""

import textwrap
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

from rich.text import Text

from clipcoco.cli.options import print_json
from clipcoco.config.load import flatten, load_config
from clipcoco.config.schema import CACHED
from clipcoco.config.text import shown
from clipcoco.console import Terminal, printable, say_half, show, table
from clipcoco.engine.results import RecallTable
from clipcoco.errors import ConfigError, ExitCode
from clipcoco.events import Evaluated
from clipcoco.runs.directory import RunDir
from clipcoco.runs.names import find_run
from clipcoco.runs.record import Hits, read_record
from clipcoco.runs.standing import Standing, read_standing

DIRECTIONS = {"i2t": "image -> text", "t2i": "text -> image", "mean": "mean"}
CUTOFFS = {"r1": "R@1", "r5": "R@5", "r10": "R@10"}
RECALLS = (*product(("i2t", "t2i"), CUTOFFS), ("mean", "r1"))  # as `difference_intervals` has them


@dataclass(frozen=True)
class Row:
    """One recall of both runs, in percent; 95 % intervals, [low, high], of each and of B - A, where they are known."""

    direction: str
    metric: str
    a: float
    b: float
    a_interval: tuple[float, float] | None
    b_interval: tuple[float, float] | None
    difference_interval: tuple[float, float] | None

    @property
    def beyond(self) -> bool | None:
        """Whether the difference is beyond the noise: its interval does not hold 0."""
        if self.difference_interval is None:
            return None
        return not self.difference_interval[0] <= 0 <= self.difference_interval[1]

    @property
    def overlap(self) -> bool | None:
        """Whether the intervals of both have something in common."""
        if self.a_interval is None or self.b_interval is None:
            return None
        return self.a_interval[0] <= self.b_interval[1] and self.b_interval[0] <= self.a_interval[1]


@dataclass(frozen=True)
class Comparison:
    """Run A and run B."""

    settings: dict[str, tuple[object, object]]  # those that differ, by dotted name
    unread: tuple[str, ...]  # configurations that can't be read, and why
    rows: tuple[Row, ...]  # none where a run was never evaluated
    notes: tuple[str, ...]  # what is missing of the recalls
    obstacles: tuple[str, ...]  # why they can't be compared


@dataclass(frozen=True)
class _Recalls:
    recalls: dict[tuple[str, str], float]  # by direction and metric
    intervals: dict[tuple[str, str], tuple[float, float]]
    hits: Hits | None
    measured_on: dict[str, str]  # what must be equal for two recalls to compare, as far as it is known
    sha256: str | None  # of the validation set
    note: str


def compare(terminal: Terminal, runs_dir: Path, a: str, b: str, json_: bool) -> int:
    runs = [read_standing(_find(runs_dir, words)) for words in (a, b)]
    found = between(*runs)
    if json_:
        print_json(_plain(runs, found))
    else:
        show(terminal.out, *_lines(runs, found, terminal.out.width))
    return ExitCode.OK


def _find(runs_dir: Path, words: str) -> RunDir:
    found = find_run(runs_dir, words)
    if found.run is None or found.checkpoint is not None:
        raise ConfigError(f"'{words}' is a checkpoint, and whole runs are compared (command line). Give the run's name")
    return found.run


def between(a: Standing, b: Standing) -> Comparison:
    settings: list[dict[str, object]] = []
    unread, edited = [], list[str]()
    for letter, one in (("A", a), ("B", b)):
        try:
            loaded = load_config(file=one.run.config)
            sums = {"model.vision.weights (SHA-256)": loaded.weights[:12]} if loaded.weights else {}
            settings.append(flatten(loaded.config) | sums)
            edited += loaded.notes
        except ConfigError as error:
            unread.append(f"the settings of {letter} can't be read: {error.mistakes[0]}")
    of_a, of_b = ({}, {}) if unread else settings
    # What a run was trained by stands in `train`, and what it was expected to reach changed nothing.
    told = [name for name in of_a if name not in CACHED.values() and not name.startswith("expected.")]
    differing = {name: (of_a[name], of_b[name]) for name in told if of_a[name] != of_b.get(name, of_a[name])}
    of_both = [_recalls_of(one) for one in (a, b)]
    notes = edited + [f"{letter} {one.note}" for letter, one in zip("AB", of_both, strict=True) if one.note]
    notes += [f"{letter}: {one.caution}" for letter, one in (("A", a), ("B", b)) if one.caution]
    obstacles = [
        f"{what} {'differ' if what.endswith('s') else 'differs'}: A has {has_a}, B {has_b}"
        for what, has_a in of_both[0].measured_on.items()
        if has_a is not None and (has_b := of_both[1].measured_on.get(what)) is not None and has_a != has_b
    ]
    if not obstacles and not _same_images(*of_both):
        obstacles.append("the validation sets are of one size, but not the same")
    paired = {} if obstacles else _paired(of_both[0].hits, of_both[1].hits)
    intervals = [one.intervals for one in of_both] + [paired]
    rows = tuple(
        Row(
            *recall, of_both[0].recalls[recall], of_both[1].recalls[recall], *(known.get(recall) for known in intervals)
        )
        for recall in RECALLS
        if all(one.recalls for one in of_both)
    )
    return Comparison(differing, tuple(unread), rows, tuple(notes), tuple(obstacles))


def _same_images(a: _Recalls, b: _Recalls) -> bool:
    """As far as it is known."""
    if None not in (a.sha256, b.sha256) and a.sha256 != b.sha256:
        return False
    of_both = [(one.hits.image_ids, [row[6] for row in one.hits.counts]) for one in (a, b) if one.hits]
    return len(of_both) < 2 or of_both[0] == of_both[1]


def _paired(a: Hits | None, b: Hits | None) -> dict[tuple[str, str], tuple[float, float]]:
    """The intervals of B - A."""
    import numpy as np  # the list of runs does without

    from clipcoco.engine.interval import difference_intervals

    if a is None or b is None:
        return {}
    found = difference_intervals(*(np.array(hits.counts, dtype=np.int64) for hits in (a, b)))
    return {recall: (low, high) for recall, (low, high) in zip(RECALLS, found.tolist(), strict=True)}


def _recalls_of(one: Standing) -> _Recalls:
    """Of the best epoch: as measured at the end, or else as the training saw it, without intervals."""
    record, why = read_record(one.run)
    if record is not None and one.best is not None and record.result.step != one.best.step:
        record, why = None, "it was measured at another step"
    if record is not None:
        result, own = record.result, record.result.protocols["own"]
        intervals = {
            (direction, metric): own.interval.r1 if direction == "mean" else getattr(own.interval, direction)[metric]
            for direction, metric in RECALLS
            if own.interval and (direction == "mean" or metric in getattr(own.interval, direction))
        }
        measured_on = {
            "the split": result.split,
            "the gallery": f"{result.images:,} images",
            "the captions": f"{result.captions:,}",
            "the images' source": result.source,
        }
        sha256 = record.provenance.data.get("val")
        sha256 = sha256 if isinstance(sha256, str) else None
        again = f"has no hits by image, which pair the runs. Measure it again: clipcoco report {one.run.words}"
        note = "" if record.hits else again
        return _Recalls(_by_metric(own), intervals, record.hits, measured_on, sha256, note)
    if one.best is None:
        return _Recalls({}, {}, None, {}, None, "was never evaluated")
    gallery = {"the gallery": f"{one.images:,} images"} if one.images is not None else {}
    note = f"has no intervals: {why}. Measure it: clipcoco report {one.run.words}"
    return _Recalls(_by_metric(one.best), {}, None, gallery, None, note)


def _by_metric(own: RecallTable | Evaluated) -> dict[tuple[str, str], float]:
    return {
        (direction, metric): own.r1 if direction == "mean" else float(getattr(own, direction)[metric])
        for direction, metric in RECALLS
    }


def _plain(runs: list[Standing], found: Comparison) -> dict[str, object]:
    return {
        "schema": 1,
        **{
            letter: {"run": one.run.name, "path": str(one.run.path), "state": one.state}
            for letter, one in zip("ab", runs, strict=True)
        },
        "settings": {name: {"a": a, "b": b} for name, (a, b) in found.settings.items()},
        "unread": found.unread,
        "comparable": bool(found.rows) and not found.obstacles,
        "obstacles": found.obstacles,
        "notes": found.notes,
        "recalls": [
            {**asdict(row), "difference": row.b - row.a, "beyond": row.beyond, "overlap": row.overlap}
            for row in found.rows
        ],
    }


def _lines(runs: list[Standing], found: Comparison, width: int) -> list[str | Text]:
    lines: list[str | Text] = []
    for letter, one in zip("AB", runs, strict=True):
        total = "?" if one.epochs is None else f"{one.epochs}"
        how = f" · {one.state}, {one.epochs_done}/{total} epochs"
        name = Text(printable(one.run.name))
        name.truncate(max(8, width - 5 - len(how)), overflow="ellipsis")
        lines.append(Text.assemble(f"  {letter}  ", name, how))
    lines += ["", *(line for text in found.unread for line in indented(text, width))]
    if found.settings:
        values = [
            [printable(shown(value)) for value in of_one] for of_one in zip(*found.settings.values(), strict=True)
        ]
        lines += table({"setting": list(found.settings), "A": values[0], "B": values[1]}, width, cut={"A": 6, "B": 6})
    elif not found.unread:
        lines.append("  No setting differs.")
    lines.append("")
    if found.rows:
        for cuts in range(4):  # where `width` does not suffice, names become short, then words, then intervals go
            rows = table(_columns(found, long_names=cuts < 1, long_words=cuts < 2, intervals=cuts < 3), width)
            if max(row.cell_len for row in rows) <= width:
                break
        lines += [*rows, ""]
        if any(row.beyond is not None for row in found.rows):
            holds = "within the noise: the 95 % interval of B - A, on the same images for both, holds 0."
            lines += indented(holds, width) + indented(
                "Another seed moves recall too, and it does not hold that.", width
            )
    said = [*found.notes, *(f"{text}." for text in found.obstacles)]
    if found.obstacles:
        said.append("So these recalls do not compare.")
    return lines + [line for text in said for line in indented(text, width)]


def indented(text: str, width: int) -> list[str]:
    """A sentence in lines of at most `width` columns."""
    return textwrap.wrap(printable(text), max(width, 20), initial_indent="  ", subsequent_indent="  ")


def _columns(found: Comparison, long_names: bool, long_words: bool, intervals: bool) -> dict[str, list[str]]:
    of_difference = [row.difference_interval for row in found.rows]
    halves = intervals and not any(of_difference)

    def value(recall: float, interval: tuple[float, float] | None) -> str:
        return f"{recall:6.2f}" + (f" ± {say_half(interval):>4}" if interval and halves else "")

    columns = {
        "": [
            f"{DIRECTIONS[row.direction] if long_names else row.direction} {CUTOFFS[row.metric]}" for row in found.rows
        ],
        "     A": [value(row.a, row.a_interval) for row in found.rows],
        "     B": [value(row.b, row.b_interval) for row in found.rows],
        " B - A": [f"{row.b - row.a:+6.2f}" for row in found.rows],
    }
    if intervals and any(of_difference):
        columns["95 % interval"] = [f"[{one[0]:+.2f}, {one[1]:+.2f}]" if one else "" for one in of_difference]
    return columns if found.obstacles else {**columns, " ": [_judgement(row, long_words) for row in found.rows]}


def _judgement(row: Row, long: bool) -> str:
    if row.beyond is not None:
        return ("beyond" if row.beyond else "within") + (" the noise" if long else "")
    short, whole = ("overlap", "intervals overlap") if row.overlap else ("apart", "intervals do not overlap")
    return "" if row.overlap is None else whole if long else short
