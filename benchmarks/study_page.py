"""The figures of docs/study.md from the rows of a study; the words between them are written by hand.

A part of the page between `<!-- NAME -->` and `<!-- end of NAME -->` is what `parts` gives under that name.
"""

import math
import re
from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

Row = dict[str, Any]

BEFORE, ALL = "the recipe before", "all together: the recipe"
T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t for 95 %, by the number of seeds
NOTHING = 3  # of the sum of six recalls: what seeds alone make of it
COLUMNS = (
    *("seeds", "R@1 image to text", "R@1 text to image", "R@1 [images]", "sum of six"),
    *("pairs seen", "CPU s", "seconds"),
)
COCO = {"`small`": 11_829, "all of train2017": 118_287}


def page(words: str, rows: Sequence[Row]) -> str:
    """The page `words` with the figures of `rows` in the place of those that it has."""
    for name, text in parts(rows).items():
        begin, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
        words, count = re.subn(
            re.escape(begin) + ".*?" + re.escape(end), lambda _, new=begin + text + end: new, words, flags=re.DOTALL
        )
        assert count == 1, name
    return words


def parts(rows: Sequence[Row]) -> dict[str, str]:
    recipes, peers, curve = (_by_name(row for row in rows if row["table"] == table) for table in TABLES)
    sizes = [*curve.values(), *([recipes[ALL]] if ALL in recipes else [])]
    return {
        "machine": "; ".join(sorted({row["on"] for row in rows})),
        "headline": _headline(recipes),
        "recipes": _table("recipe", recipes, recipes.get(BEFORE)),
        "peers": _table("trainer", peers),
        "curve": _table("trained on", {f"{found[0]['images']:,} images": found for found in sizes}),
        "forecast": _forecast(sizes),
        "no gain": _no_gain(recipes),
    }


TABLES = ("recipes", "peers", "curve")


def _by_name(rows: Any) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["name"], []).append(row)
    return found


def rsum(rows: Sequence[Row]) -> float:
    """The sum of the six recalls, the mean over the seeds."""
    return mean(sum(row["i2t"]) + sum(row["t2i"]) for row in rows)


def over_seeds(values: Sequence[float]) -> str:
    """The mean and half the width of its 95 % interval; a single seed has none."""
    half = f" ± {T[len(values)] * stdev(values) / math.sqrt(len(values)):.1f}" if len(values) > 1 else ""
    return f"{mean(values):.1f}{half}"


def over_images(rows: Sequence[Row]) -> tuple[float, float]:
    """The 95 % interval of the mean R@1 over the images, the mean over the seeds."""
    low, high = (mean(row["interval"][edge] for row in rows) for edge in (0, 1))
    return low, high


def cost(rows: Sequence[Row], of: str) -> str:
    """The mean over the seeds that a CPU trained: what a GPU takes for the others is no cost of laptop mode."""
    found = [row[of] for row in rows if " · cpu, " in row["on"]]
    return f"{mean(found):,.0f}" if found else "-"


def _table(first: str, groups: dict[str, list[Row]], before: Sequence[Row] | None = None) -> str:
    if not groups:
        return "Not measured yet."
    lines = [" | ".join((first, *COLUMNS)), " | ".join(["---"] * (1 + len(COLUMNS)))]
    for name, rows in groups.items():
        gain = f" ({rsum(rows) - rsum(before):+.1f})" if before and rows is not before else ""
        low, high = over_images(rows)
        cells = (
            f"**{name}**" if name == ALL else name,
            str(len(rows)),
            over_seeds([row["i2t"][0] for row in rows]),
            over_seeds([row["t2i"][0] for row in rows]),
            f"{mean(row['r1'] for row in rows):.1f} [{low:.1f}, {high:.1f}]",
            f"{rsum(rows):.1f}{gain}",
            f"{rows[0]['seen']:,}",
            cost(rows, "cpu_seconds"),
            cost(rows, "seconds"),
        )
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


def _headline(recipes: dict[str, list[Row]]) -> str:
    if not {BEFORE, ALL} <= recipes.keys():
        return "Not measured yet."
    was, now = (
        (*(mean(row[way][0] for row in recipes[name]) for way in ("i2t", "t2i")), cost(recipes[name], "cpu_seconds"))
        for name in (BEFORE, ALL)
    )
    return (
        f"**R@1 {now[0]:.1f} / {now[1]:.1f} (image to text / text to image) where it was {was[0]:.1f} / {was[1]:.1f}, "
        f"from {now[2]} CPU seconds of training where it was {was[2]}.**"
    )


def _no_gain(recipes: dict[str, list[Row]]) -> str:
    """Changes that alone add nothing to the recipe before, and those that the recipe would not miss."""
    if not {BEFORE, ALL} & recipes.keys():
        return "Not measured yet."
    said = []
    for sign, start, base in ((1, "+ ", BEFORE), (-1, "the recipe w", ALL)):
        for name, rows in recipes.items():
            if name.startswith(start) and base in recipes:
                gain = rsum(rows) - rsum(recipes[base])
                if sign * gain < NOTHING:
                    said.append(f"- {name.removeprefix('+ ')}: {gain:+.1f} against {base.removeprefix(ALL[:14])}")
    return "\n".join(said) or "- nothing"


def line(sizes: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Least squares in log2 of the size: the value at one image, and what a doubling adds."""
    logs = [math.log2(size) for size in sizes]
    x, y = mean(logs), mean(values)
    slope = sum((a - x) * (b - y) for a, b in zip(logs, values, strict=True)) / sum((a - x) ** 2 for a in logs)
    return y - slope * x, slope


def _forecast(curve: Sequence[Sequence[Row]]) -> str:
    """From all sizes but the largest to the largest, which was held back; then beyond what was measured."""
    if len(curve) < 3:
        return "Not measured yet."
    sizes, found = [rows[0]["images"] for rows in curve], [mean(row["r1"] for row in rows) for rows in curve]
    start, slope = line(sizes[:-1], found[:-1])
    said, (low, high) = start + slope * math.log2(sizes[-1]), over_images(curve[-1])
    start_all, slope_all = line(sizes, found)
    further = " and ".join(
        f"{start_all + slope_all * math.log2(size):.0f} % for the {size:,} images of {name}"
        for name, size in COCO.items()
    )
    inside = "inside" if low <= said <= high else "outside"
    return (
        f"A straight line in the logarithm of the images, through all sizes but the largest, gains {slope:.1f} points "
        f"of R@1 a doubling. It forecasts **{said:.1f} for {sizes[-1]:,} images, which were held back; measured: "
        f"{found[-1]:.1f}**, an error of {said - found[-1]:+.1f}, {inside} the interval over images "
        f"[{low:.1f}, {high:.1f}].\n\n"
        f"Extrapolated, not measured: the line through all of them ({slope_all:.1f} a doubling) says {further}, in a "
        "gallery of 1,000."
    )
