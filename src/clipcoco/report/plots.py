"""What the figures of a report show, and the same in words."""

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import median

from clipcoco.config.schema import Config
from clipcoco.report.figures import DIM, INK, Drawing, Line, curve, rank_histogram, similarity_histogram
from clipcoco.report.history import History
from clipcoco.rows import EvaluationRow, Recalls
from clipcoco.runs.record import Chance, Record

Points = list[tuple[float, float]]
DIRECTIONS = {"i2t": "Image to text", "t2i": "Text to image"}


def training_plots(
    history: History, config: Config | None, chance: Chance | None, chance_loss: float | None
) -> list[Drawing]:
    """Loss, recalls, then what the optimiser and the machine did. What has no rows yet is left out."""
    found = [_loss(history, chance_loss)]
    found += [_recalls(history.evaluations, direction, chance) for direction in DIRECTIONS]
    found += [
        _rate(history),
        _temperature(history),
        _gradient(history, config.train.grad_clip if config else None),
        _speed(history),
        _wait(history),
    ]
    return [drawing for drawing in found if drawing]


def evaluation_plots(record: Record) -> list[Drawing]:
    chance = record.result.protocols.own.chance
    own = record.result.protocols.own
    ranks = [
        _ranks(record, direction, measured, by_chance)
        for direction, measured, by_chance in (("i2t", own.i2t, chance.i2t), ("t2i", own.t2i, chance.t2i))
    ]
    return [_similarities(record), *ranks]


def _column(history: History, name: str) -> Points:
    """(step, value) where there is a finite value."""
    clocked = name in ("images_per_second", "data_wait")
    values = ((row.step, getattr(row.clock if clocked else row, name)) for row in history.steps)
    return [(step, value) for step, value in values if value is not None]


def _line(points: Points, label: str = "", color: str | None = None, style: str = "-", marker: str = "") -> Line:
    line = Line([x for x, _ in points], [y for _, y in points], label, style=style, marker=marker)
    return Line(line.xs, line.ys, label, color, style, marker) if color else line


def _loss(history: History, chance: float | None) -> Drawing | None:
    train = _column(history, "loss")
    val: Points = [(row.step, row.val_loss) for row in history.evaluations if row.val_loss is not None]
    if not train and not val:
        return None
    words, lines = [], []
    if train:
        words.append(
            f"Training loss {train[0][1]:.3f} at step {train[0][0]:,}, {train[-1][1]:.3f} at {train[-1][0]:,}."
        )
        lines.append(_line(train, "training"))
    if val:
        low = min(val, key=lambda point: point[1])
        words.append(f"Validation loss {val[-1][1]:.3f} at the end, lowest {low[1]:.3f} at step {low[0]:,}.")
        lines.append(_line(val, "validation", INK, "--", "o"))
    levels, label = ([], "") if chance is None else ([chance], f"chance {chance:.3f}")
    if levels:
        words.append(f"Guessing among a batch gives {chance:.3f}.")
    return curve(
        "loss", "Loss (nats)", " ".join(words), "step", lines, levels=levels, level_label=label, zero=_positive(lines)
    )


def _positive(lines: Sequence[Line]) -> bool:
    return all(y >= 0 for line in lines for y in line.ys)


def _recalls(evaluations: Sequence[EvaluationRow], direction: str, chance: Chance | None) -> Drawing | None:
    if not evaluations:
        return None
    lines = []
    for key, color, style, marker in (("r10", DIM, ":", "^"), ("r5", INK, "--", "s"), ("r1", None, "-", "o")):
        points = [(float(row.epoch), float(getattr(getattr(row, direction), key))) for row in evaluations]
        lines.append(_line(points, f"R@{key[1:]}", color, style, marker))
    best = max(evaluations, key=lambda row: float(getattr(row, direction).r1))
    recalls: Recalls = getattr(best, direction)
    words = (
        f"{DIRECTIONS[direction]}, best R@1 in epoch {best.epoch}: "
        f"R@1 {recalls.r1:.2f}, R@5 {recalls.r5:.2f}, R@10 {recalls.r10:.2f} %."
    )
    levels: list[float] = []
    if chance:
        by_chance: Recalls = getattr(chance, direction)
        levels = [by_chance.r1, by_chance.r5, by_chance.r10]
        words += f" By chance {by_chance.r1:.2f}, {by_chance.r5:.2f} and {by_chance.r10:.2f} %."
    return curve(
        f"recall-{direction}",
        f"{DIRECTIONS[direction]} (%)",
        words,
        "epoch",
        lines[::-1],
        levels=levels,
        level_label="chance",
        zero=True,
    )


def _rate(history: History) -> Drawing | None:
    points = _column(history, "lr")
    if not points:
        return None
    high = max(points, key=lambda at: at[1])
    words = f"Highest {high[1]:.2e} at step {high[0]:,}, {points[-1][1]:.2e} at step {points[-1][0]:,}."
    power = math.floor(math.log10(high[1])) if high[1] > 0 else 0
    scaled = [(step, value / 10**power) for step, value in points]
    return curve("learning-rate", f"Learning rate (1e{power})", words, "step", [_line(scaled)], zero=True)


def _temperature(history: History) -> Drawing | None:
    points = _column(history, "temperature")
    if not points:
        return None
    values = [value for _, value in points]
    words = f"{values[-1]:.4f} at step {points[-1][0]:,}, between {min(values):.4f} and {max(values):.4f} before."
    return curve("temperature", "Temperature", words, "step", [_line(points)])


def _gradient(history: History, clip: float | None) -> Drawing | None:
    points = _column(history, "grad_norm")
    if not points:
        return None
    values = [value for _, value in points]
    high = max(points, key=lambda at: at[1])
    words = f"Median {median(values):.3g}, highest {high[1]:.3g} at step {high[0]:,}, before clipping."
    levels = [clip] if clip else []
    if clip:
        words += f" Clipped at {clip:g}."
    return curve(
        "gradient-norm",
        "Gradient norm",
        words,
        "step",
        [_line(points)],
        levels=levels,
        level_label=f"clipped at {clip:g}" if clip else "",
        log=0 < 30 * min(values) < max(values),
    )


def _speed(history: History) -> Drawing | None:
    points = _column(history, "images_per_second")
    if not points:
        return None
    values = [value for _, value in points]
    words = f"Median {median(values):,.0f} images a second, from {min(values):,.0f} to {max(values):,.0f}."
    return curve("speed", "Images a second", words, "step", [_line(points)], zero=True)


def _wait(history: History) -> Drawing | None:
    points = [(step, 100 * share) for step, share in _column(history, "data_wait")]
    if not points:
        return None
    values = [value for _, value in points]
    words = f"Median {median(values):.1f} % of the time is spent waiting for data, at most {max(values):.1f} %."
    return curve("data-wait", "Waiting for data (%)", words, "step", [_line(points)], zero=True)


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
    """The lower edge of the bin that the median lies in."""
    half, seen = sum(counts) / 2, 0
    for (low, _), count in zip(pairwise(edges), counts, strict=True):
        seen += count
        if seen >= half:
            return low
    return edges[-1]


def _ranks(record: Record, direction: str, measured: Recalls, by_chance: Recalls) -> Drawing:
    counts = record.ranks.i2t if direction == "i2t" else record.ranks.t2i
    total = sum(counts.counts)
    beyond = sum(count for upper, count in zip(counts.upper, counts.counts, strict=True) if upper > 128)
    words = (
        f"{100 * counts.counts[0] / total:.2f} % of the queries have rank 1, the median is "
        f"{measured.median_rank:,g} (by chance {by_chance.median_rank:,g})."
    )
    if beyond:
        words += f" {100 * beyond / total:.2f} % lie beyond rank 128."
    title = f"{DIRECTIONS[direction]}, ranks"
    return rank_histogram(f"ranks-{direction}", title, counts, measured.median_rank, by_chance.median_rank, words)
