"""`clipcoco runs A B`: the settings that differ, and whether the recalls do."""

import textwrap
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from clipcoco import rundir
from clipcoco.cli.options import print_json
from clipcoco.cli.standing import Standing, read_standing
from clipcoco.config.load import flatten, load_config
from clipcoco.config.text import shown
from clipcoco.console import Terminal, printable, show
from clipcoco.errors import ConfigError, ExitCode
from clipcoco.report.record import Protocol, read_record
from clipcoco.rows import EvaluationRow
from clipcoco.rundir import RunDir

WIDE = 76  # columns that a row of recalls with intervals and words takes
DIRECTIONS = {"i2t": "image -> text", "t2i": "text -> image", "mean": "mean"}
CUTOFFS = {"r1": "R@1", "r5": "R@5", "r10": "R@10"}


@dataclass(frozen=True)
class Row:
    """One recall of both runs, in percent, with its 95 % bootstrap interval [low, high]; no mean but R@1 has one."""

    direction: str
    metric: str
    a: float
    b: float
    a_interval: tuple[float, float] | None
    b_interval: tuple[float, float] | None

    @property
    def beyond(self) -> bool | None:
        """Whether the intervals have nothing in common; None where one is missing."""
        if self.a_interval is None or self.b_interval is None:
            return None
        return self.a_interval[1] < self.b_interval[0] or self.b_interval[1] < self.a_interval[0]


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
    found = rundir.find(runs_dir, words)
    if found.run is None or found.checkpoint is not None:
        raise ConfigError(f"'{words}' is a checkpoint, and whole runs are compared (command line). Give the run's name")
    return found.run


def between(a: Standing, b: Standing) -> Comparison:
    settings: list[dict[str, object]] = []
    unread = []
    for letter, one in (("A", a), ("B", b)):
        try:
            settings.append(flatten(load_config(file=one.run.config).config))
        except ConfigError as error:
            unread.append(f"the settings of {letter} can't be read: {error.mistakes[0]}")
    of_a, of_b = ({}, {}) if unread else settings
    differing = {name: (of_a[name], of_b[name]) for name in of_a if of_a[name] != of_b[name]}
    of_both = [_recalls_of(one) for one in (a, b)]
    notes = [f"{letter} {one.note}" for letter, one in zip("AB", of_both, strict=True) if one.note]
    rows = tuple(
        Row(
            direction,
            metric,
            recall,
            of_both[1].recalls[direction, metric],
            *(one.intervals.get((direction, metric)) for one in of_both),
        )
        for (direction, metric), recall in of_both[0].recalls.items()
        if of_both[1].recalls
    )
    obstacles = [
        f"{what} {'differ' if what.endswith('s') else 'differs'}: A has {has_a}, B {has_b}"
        for what, has_a in of_both[0].measured_on.items()
        if has_a is not None and (has_b := of_both[1].measured_on.get(what)) is not None and has_a != has_b
    ]
    if not obstacles and None not in (hashes := [one.sha256 for one in of_both]) and hashes[0] != hashes[1]:
        obstacles.append("the validation sets are of one size, but not the same")
    return Comparison(differing, tuple(unread), rows, tuple(notes), tuple(obstacles))


def _recalls_of(one: Standing) -> _Recalls:
    """Of the best epoch: as measured at the end, or else as the training saw it, without intervals."""
    record, why = read_record(one.run)
    if record is not None and one.best is not None and record.result.step != one.best.step:
        record, why = None, "it was measured at another step"
    if record is not None:
        result, own = record.result, record.result.protocols.own
        intervals = {("mean", "r1"): own.interval.r1} if own.interval else {}
        for direction in ("i2t", "t2i") if own.interval else ():
            known = getattr(own.interval, direction)
            intervals |= {(direction, metric): known[metric] for metric in CUTOFFS if metric in known}
        measured_on = {
            "the split": result.split,
            "the gallery": f"{result.images:,} images",
            "the captions": f"{result.captions:,}",
            "the images' source": result.source,
        }
        sha256 = record.provenance.data.get("val")
        return _Recalls(_by_metric(own), intervals, measured_on, sha256 if isinstance(sha256, str) else None, "")
    if one.best is None:
        return _Recalls({}, {}, {}, None, "was never evaluated")
    gallery = {"the gallery": f"{one.images:,} images"} if one.images is not None else {}
    note = f"has no intervals: {why}. Measure it: clipcoco report {one.run.words}"
    return _Recalls(_by_metric(one.best), {}, gallery, None, note)


def _by_metric(own: Protocol | EvaluationRow) -> dict[tuple[str, str], float]:
    recalls = {
        (direction, metric): float(getattr(getattr(own, direction), metric))
        for direction, metric in product(("i2t", "t2i"), CUTOFFS)
    }
    return {**recalls, ("mean", "r1"): own.r1}


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
        "recalls": [{**asdict(row), "difference": row.b - row.a, "beyond": row.beyond} for row in found.rows],
    }


def _lines(runs: list[Standing], found: Comparison, width: int) -> list[str | Text]:
    lines: list[str | Text] = []
    for letter, one in zip("AB", runs, strict=True):
        total = "?" if one.epochs is None else f"{one.epochs}"
        how = f" · {one.state}, {one.epochs_done}/{total} epochs"
        lines.append(f"  {letter}  {_cut(printable(one.run.name), max(8, width - 5 - len(how)))}{how}")
    lines += ["", *(line for text in found.unread for line in indented(text, width))]
    if found.settings:
        lines += _settings(found.settings, width)
    elif not found.unread:
        lines.append("  No setting differs.")
    lines.append("")
    if found.rows:
        lines += _table(found, width)
    said = [*found.notes, *(f"{text}." for text in found.obstacles)]
    if found.obstacles:
        said.append("So these recalls do not compare.")
    return lines + [line for text in said for line in indented(text, width)]


def indented(text: str, width: int) -> list[str]:
    """A sentence in lines of at most `width` columns."""
    return textwrap.wrap(printable(text), max(width, 20), initial_indent="  ", subsequent_indent="  ")


def _cut(text: str, width: int) -> str:
    return text if cell_len(text) <= width else set_cell_size(text, width - 1).rstrip() + "…"


def _settings(settings: dict[str, tuple[object, object]], width: int) -> list[str | Text]:
    rows = [(name, *(printable(shown(value)) for value in values)) for name, values in settings.items()]
    label = max(len(name) for name, _, _ in rows)
    room = max(6, (width - label - 6) // 2)
    value = min(room, max(cell_len(a) for _, a, _ in rows))
    lines: list[str | Text] = [Text(f"  {'setting':<{label}}  {'A':<{value}}  B", "dim")]
    for name, a, b in rows:
        cell = _cut(a, value)
        lines.append(f"  {name:<{label}}  {cell}{' ' * (value - cell_len(cell))}  {_cut(b, room)}")
    return lines


def _table(found: Comparison, width: int) -> list[str | Text]:
    wide = width >= WIDE
    halves = wide and any(row.a_interval or row.b_interval for row in found.rows)
    words = {True: "beyond the intervals", False: "within the noise", None: ""}
    if not wide:
        words = {True: "beyond", False: "noise", None: ""}
    names = [f"{DIRECTIONS[row.direction] if wide else row.direction} {CUTOFFS[row.metric]}" for row in found.rows]
    label = max(map(len, names))

    def value(recall: float, interval: tuple[float, float] | None) -> str:
        half = f" ± {(interval[1] - interval[0]) / 2:4.1f}" if interval else ""
        return f"{recall:6.2f}{half:<7}" if halves else f"{recall:6.2f}"

    titles = [f"{letter:>6}{' ' * 7 if halves else ''}" for letter in "AB"]
    lines: list[str | Text] = [Text(f"  {'':<{label}}  {'  '.join(titles)}  {'B - A':>6}", "dim")]
    for name, row in zip(names, found.rows, strict=True):
        line = f"  {name:<{label}}  {value(row.a, row.a_interval)}  {value(row.b, row.b_interval)}"
        line += f"  {row.b - row.a:+6.2f}" + ("" if found.obstacles else f"  {words[row.beyond]}")
        lines.append(line.rstrip())
    lines.append("")
    if not found.obstacles and any(row.beyond is not None for row in found.rows):
        lines += indented("beyond: the 95 % bootstrap intervals over images do not overlap.", width)
        lines += indented("Another seed moves recall too, and they do not hold that.", width)
    return lines
