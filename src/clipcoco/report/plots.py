"""What the figures of a report show, and the same in words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from statistics import median

from clipcoco.config.schema import Config
from clipcoco.engine.results import RankCounts
from clipcoco.events import Chance, Evaluated, Recalls
from clipcoco.report.figures import ACCENT, DIM, INK, Drawing, Line, Points, curve, rank_histogram, similarity_histogram
from clipcoco.runs.metrics import History
from clipcoco.runs.record import Record

DIRECTIONS = {"i2t": "Image to text", "t2i": "Text to image"}
LOOKS = ((ACCENT, "-", "o"), (ACCENT, "--", "s"), (INK, "-", "^"), (DIM, "-", "o"), (DIM, "--", "s"))
CUTOFFS = (("r1", ACCENT, "-", "o"), ("r5", INK, "--", "s"), ("r10", DIM, ":", "^"))
WORDS = {  # by the name of the figure
    "learning-rate": "Highest {high:.2e} at step {at:,}, {last:.2e} at step {end:,}.",
    "temperature": "{last:.4f} at step {end:,}, between {low:.4f} and {high:.4f} before.",
    "gradient-norm": "Median {median:.3g}, highest {high:.3g} at step {at:,}, before clipping.",
    "speed": "Median {median:,.0f} images a second, from {low:,.0f} to {high:,.0f}.",
    "data-wait": "Median {median:.1f} % of the time is spent waiting for data, at most {high:.1f} %.",
}


@dataclass(frozen=True)
class Axis:
    """Of time: in epochs, or in steps of which the epoch is not known."""

    per_epoch: float | None

    @property
    def label(self) -> str:
        return "epoch" if self.per_epoch else "step"

    def of(self, points: Points) -> Points:
        return [(step / (self.per_epoch or 1), value) for step, value in points]


def training_plots(
    history: History, config: Config | None, chance: Chance | None, chance_loss: float | None, per_epoch: float | None
) -> tuple[list[Drawing], list[Drawing]]:
    """Loss and recalls; and, for who looks closer, what the optimiser and the machine did. What has no rows yet is
    left out."""
    rate, axis = _column(history, "lr"), Axis(per_epoch)
    highest = max((y for _, y in rate), default=0)
    power = math.floor(math.log10(highest)) if highest > 1e-30 else 0
    clip = config.train.grad_clip if config else None
    waits = [(step, 100 * share) for step, share in _column(history, "data_wait")]
    first = [
        _loss(history, chance_loss, axis),
        *(_recalls(history.evaluations, direction, chance) for direction in DIRECTIONS),
        _composition(history.evaluations),
    ]
    closer = [
        _series("learning-rate", f"Learning rate (1e{power})", rate, axis, unit=10**power),
        _series("temperature", "Temperature", _column(history, "temperature"), axis, zero=False),
        _series("gradient-norm", "Gradient norm", _column(history, "grad_norm"), axis, zero=False, clip=clip),
        _series("speed", "Images a second", _column(history, "images_per_second"), axis),
        _series("data-wait", "Waiting for data (%)", waits, axis),
    ]
    return [drawing for drawing in first if drawing], [drawing for drawing in closer if drawing]


def evaluation_plots(record: Record) -> list[Drawing]:
    return [_similarities(record), *(_ranks(record, direction) for direction in DIRECTIONS)]


def _column(history: History, name: str) -> Points:
    """(step, value) where there is a finite value."""
    values = ((row.step, row.clock.get(name, getattr(row, name, math.nan))) for row in history.steps)
    return [(step, value) for step, value in values if math.isfinite(value)]


def _series(
    name: str, title: str, points: Points, axis: Axis, *, unit: float = 1, zero: bool = True, clip: float | None = None
) -> Drawing | None:
    """One line over time, in multiples of `unit`; on a logarithmic axis where it need not start at 0 and goes far."""
    if not points:
        return None
    values = [value for _, value in points]
    (at, high), (end, last), low = max(points, key=lambda point: point[1]), points[-1], min(values)
    words = WORDS[name].format(median=median(values), low=low, high=high, at=at, last=last, end=end)
    return curve(
        name,
        title,
        f"{words} Clipped at {clip:g}." if clip else words,
        axis.label,
        [Line([(at, value / unit) for at, value in axis.of(points)])],
        levels=[clip] if clip else [],
        level_label=f"clip {clip:g}" if clip else "",
        log=not zero and 0 < 30 * low < high,
        zero=zero,
    )


def _loss(history: History, chance: float | None, axis: Axis) -> Drawing | None:
    train = _column(history, "loss")
    val: Points = [(row.step, row.val_loss) for row in history.evaluations if math.isfinite(row.val_loss)]
    words, lines = [], []
    if train:
        (first, begun), (last, ended) = train[0], train[-1]
        words.append(f"Training loss {begun:.3f} at step {first:,}, {ended:.3f} at {last:,}.")
        lines.append(Line(axis.of(train), "training"))
    if val:
        step, low = min(val, key=lambda point: point[1])
        words.append(f"Validation loss {val[-1][1]:.3f} at the end, lowest {low:.3f} at step {step:,}.")
        lines.append(Line(axis.of(val), "validation", INK, "--", "o"))
    levels, label = ([], "") if chance is None else ([chance], f"chance {chance:.3f}")
    if levels:
        words.append(f"Guessing among a batch gives {chance:.3f}.")
    zero = all(y >= 0 for line in lines for _, y in line.points)
    title, said = "Loss (nats)", " ".join(words)
    return curve("loss", title, said, axis.label, lines, levels=levels, level_label=label, zero=zero) if lines else None


def _recalls(evaluations: Sequence[Evaluated], direction: str, chance: Chance | None) -> Drawing | None:
    if not evaluations:
        return None
    found: list[tuple[int, Recalls]] = [(row.epoch, getattr(row, direction)) for row in evaluations]
    epoch, best = max(found, key=lambda at: at[1]["r1"])
    words = (
        f"{DIRECTIONS[direction]}, best R@1 in epoch {epoch}: "
        f"R@1 {best['r1']:.2f}, R@5 {best['r5']:.2f}, R@10 {best['r10']:.2f} %."
    )
    levels = [chance[direction][key] for key, *_ in CUTOFFS] if chance else []
    if levels:
        words += " By chance {:.2f}, {:.2f} and {:.2f} %.".format(*levels)
    return curve(
        f"recall-{direction}",
        f"{DIRECTIONS[direction]} (%)",
        words,
        "epoch",
        [Line([(at, recalls[key]) for at, recalls in found], f"R@{key[1:]}", *look) for key, *look in CUTOFFS],
        levels=levels,
        level_label="chance",
        zero=True,
    )


def _composition(evaluations: Sequence[Evaluated]) -> Drawing | None:
    """Accuracy on false captions, where training saw it."""
    found = [(row.epoch, row.composition) for row in evaluations if row.composition]
    if not found:
        return None
    last = found[-1][1]
    lines = [
        Line([(epoch, at[kind]) for epoch, at in found if kind in at], kind, *look)
        for kind, look in zip(last, cycle(LOOKS), strict=False)
    ]
    words = "At the end: " + ", ".join(f"{kind} {right:.1f} %" for kind, right in last.items()) + ". By chance 50 %."
    title, half = "Right on false captions (%)", [50.0]
    return curve("false-captions", title, words, "epoch", lines, levels=half, level_label="chance", zero=True)


def _similarities(record: Record) -> Drawing:
    found = record.similarities
    words = f"The cosine of an image and a caption of its own is {found.matched_mean:.3f} on average"
    if found.unmatched_mean is not None:
        words += f", of an image and a foreign caption {found.unmatched_mean:.3f}"
    middle = _median(found.edges, found.matched)
    above = sum(count for low, count in zip(found.edges, found.unmatched, strict=False) if low >= middle)
    share = 100 * above / max(sum(found.unmatched), 1)
    words += f". {share:.2f} % of the foreign pairs lie above the median of the own ones, {middle:.2f}."
    return similarity_histogram(found, words)


def _median(edges: Sequence[float], counts: Sequence[int]) -> float:
    """The lower edge of the bin of the median."""
    half, seen = sum(counts) / 2, 0
    for (low, _), count in zip(pairwise(edges), counts, strict=True):
        seen += count
        if seen >= half:
            return low
    return edges[-1]


def _ranks(record: Record, direction: str) -> Drawing:
    own = record.result.protocols["own"]
    counts: RankCounts = getattr(record.ranks, direction)
    middle, by_chance = getattr(own, direction)["median_rank"], own.chance[direction]["median_rank"]
    total = sum(counts.counts)
    beyond = sum(count for upper, count in zip(counts.upper, counts.counts, strict=True) if upper > 128)
    words = (
        f"{100 * counts.counts[0] / total:.2f} % of the queries have rank 1, the median is "
        f"{middle:,g} (by chance {by_chance:,g})."
    )
    if beyond:
        words += f" {100 * beyond / total:.2f} % lie beyond rank 128."
    title = f"{DIRECTIONS[direction]}, ranks"
    return rank_histogram(f"ranks-{direction}", title, counts, middle, by_chance, words)
