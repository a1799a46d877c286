"""The report's figures as SVG; the one module that knows matplotlib, which it imports when it draws.

Each is drawn in four marker colours that stand for roles. In the page they become its CSS variables, so that
light, dark and print look right; in a file of its own they become tones that are readable on white and on black.
"""

import contextlib
import io
import math
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from clipcoco.engine.results import RankCounts, Similarities

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, ACCENT, DIM = "#010101", "#020202", "#030303", "#040404"
IN_PAGE = {INK: "currentColor", FAINT: "var(--line)", ACCENT: "var(--accent)", DIM: "var(--dim)"}
ALONE = {INK: "#707070", FAINT: "#b0b0b055", ACCENT: "#1b8a8f", DIM: "#8a8a8a"}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
LINE = 0.085  # a line of text, as a share of the axes' height
MOST = 400  # points of a line: more are averaged, no screen shows them
Points = list[tuple[float, float]]
SVG = "{http://www.w3.org/2000/svg}"
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: small, sharp, in the reader's own font
    "svg.hashsalt": "clipcoco",  # the same bytes from the same run
    "svg.image_inline": True,
    "font.family": ["DejaVu Sans"],  # comes with matplotlib; measures the layout, FONT replaces it
    "font.size": 11,
    "text.color": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.edgecolor": DIM,
    "axes.labelcolor": INK,
    "axes.labelsize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.xmargin": 0.02,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "xtick.color": DIM,
    "ytick.color": DIM,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "ytick.major.size": 0,
    "xtick.major.size": 3,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "hatch.linewidth": 0.6,
}


@dataclass(frozen=True)
class Drawing:
    name: str  # of its file, without the ending
    title: str
    words: str  # what it shows, with its main numbers: for those who cannot see it
    in_page: str  # SVG
    alone: str  # SVG, a file of its own


@dataclass(frozen=True)
class Line:
    points: Points
    label: str = ""
    color: str = ACCENT
    style: str = "-"
    marker: str = ""


def curve(
    name: str,
    title: str,
    words: str,
    xlabel: str,
    lines: Sequence[Line],
    *,
    levels: Sequence[float] = (),
    level_label: str = "",
    log: bool = False,
    zero: bool = False,
) -> Drawing:
    """Lines over epochs, with their names at their ends; `levels` are horizontal and dotted, such as chance; `zero`
    starts y at 0."""
    with _drawing() as (figure, axes):
        axes.set(title=title, xlabel=xlabel)
        ends = []
        for line in lines:
            xs, ys = _thinned(line.points)
            marker = line.marker or ("o" if len(xs) == 1 else "")
            axes.plot(xs, ys, line.style, color=line.color, marker=marker)
            ends.append((ys[-1], line.label, line.color))
        for level in levels:
            axes.axhline(level, color=DIM, linestyle=(0, (1, 1.6)), zorder=1)
        if levels:
            ends.append((max(levels), level_label, DIM))
        if log:
            axes.set_yscale("log")
        if zero:
            axes.set_ylim(bottom=0)
        _ticks(axes)
        _name_ends(axes, [end for end in ends if end[1]])
        return _finished(figure, name, title, words)


def _name_ends(axes: "Axes", ends: list[tuple[float, str, str]]) -> None:
    """Each name (y, text, color) right of the axes, at its height or as near to it as the others leave room."""
    axes.autoscale_view()  # else the limits are not known yet
    bottom, top = (axes.transAxes.transform((0, y))[1] for y in (0, 1))
    heights = [(float(axes.transData.transform((1, y))[1]) - bottom) / (top - bottom) for y, *_ in ends]
    places = sorted((min(max(height, 0), 1), *end[1:]) for height, end in zip(heights, ends, strict=True))
    room = [min(place, 1 - LINE * (len(places) - 1 - number)) for number, (place, *_) in enumerate(places)]
    below = -math.inf
    for place, (_, text, color) in zip(room, places, strict=True):
        below = max(place, below + LINE)
        axes.text(1.02, below, text, color=color, transform=axes.transAxes, verticalalignment="center")


def similarity_histogram(found: Similarities, words: str) -> Drawing:
    """Matched and unmatched pairs, each as shares of its kind."""
    with _drawing() as (figure, axes):
        axes.set(title="Similarity of pairs", xlabel="cosine similarity", ylabel="% of pairs")
        edges, matched, unmatched = _merged(found)
        for shares, name, color, style in ((unmatched, "foreign", DIM, "--"), (matched, "own", ACCENT, "-")):
            axes.stairs(shares, edges, color=color, linestyle=style, linewidth=1.4)
            axes.stairs(shares, edges, fill=True, color=color, alpha=0.2)
            peak = max(shares)
            axes.text(edges[shares.index(peak)], 1.02 * peak, name, color=color, verticalalignment="bottom")
        axes.set_ylim(0, 1.15 * max(*matched, *unmatched))
        _ticks(axes, integer=False)
        return _finished(figure, "similarities", "Similarity of pairs", words)


def rank_histogram(name: str, title: str, found: RankCounts, median: float, chance: float, words: str) -> Drawing:
    """Shares of queries by rank, on a logarithmic axis."""
    from matplotlib.ticker import FixedLocator, StrMethodFormatter

    with _drawing() as (figure, axes):
        axes.set(title=title, xlabel="rank of the right answer", ylabel="% of queries")
        edges = [1, *(upper + 1 for upper in found.upper)]
        shares = [100 * count / sum(found.counts) for count in found.counts]
        axes.stairs(shares, edges, color=ACCENT, linewidth=1.2)
        axes.stairs(shares, edges, fill=True, color=ACCENT, alpha=0.25)
        axes.set_xscale("log")
        axes.set_xlim(1, edges[-1])
        axes.set_ylim(bottom=0)
        _ticks(axes)
        for at, text, color, height in ((median, "median", INK, 0.98), (chance, "by chance", DIM, 0.86)):
            axes.axvline(at, color=color, linewidth=1.2, linestyle="-" if color == INK else (0, (1, 1.6)))
            left = at * at < edges[-1]
            across = axes.get_xaxis_transform()
            axes.text(
                at, height, f" {text} {at:,g} ", color=color, transform=across, ha="left" if left else "right", va="top"
            )
        axes.xaxis.set_major_locator(FixedLocator([10**power for power in range(len(str(edges[-1])))]))
        axes.xaxis.set_minor_locator(FixedLocator([]))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        return _finished(figure, name, title, words)


@contextmanager
def _drawing() -> Iterator[tuple["Figure", "Axes"]]:
    """An empty figure in our style. Settings and environment of a process that uses matplotlib stay as they are."""
    with contextlib.nullcontext() if "matplotlib" in sys.modules else _without_files():
        import matplotlib.figure
        import matplotlib.style
    with matplotlib.style.context(["default", STYLE]):
        figure = matplotlib.figure.Figure(figsize=(4.7, 3.1), layout="constrained")
        yield figure, figure.add_subplot()


@contextmanager
def _without_files() -> Iterator[None]:
    """Import matplotlib without the user's settings, which may be wrong; without notes in the home folder, where
    nothing of ours belongs; and without listing the system's fonts, which takes seconds when there is no such note."""
    with tempfile.TemporaryDirectory() as folder:
        ours = {"MPLBACKEND": "", "MATPLOTLIBRC": os.devnull, "MPLCONFIGDIR": folder, "MPL_IGNORE_SYSTEM_FONTS": "1"}
        before = {name: os.environ.get(name) for name in ours}
        os.environ |= ours
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def _thinned(points: Points) -> Iterator[list[float]]:
    """The xs and the ys of at most MOST points, means of neighbours where there were more."""
    size = -(-len(points) // MOST)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return ([math.fsum(point[axis] for point in group) / len(group) for group in groups] for axis in (0, 1))


def _merged(found: Similarities) -> tuple[list[float], list[float], list[float]]:
    """The occupied part of the histograms in at most about 60 bins, in percent."""
    both = [one + other for one, other in zip(found.matched, found.unmatched, strict=True)]
    occupied = [number for number, count in enumerate(both) if count]
    first, last = occupied[0], occupied[-1] + 1
    size = -(-(last - first) // 60)
    starts = range(first, last, size)
    edges = [*(found.edges[start] for start in starts), found.edges[min(starts[-1] + size, len(both))]]

    def shares(counts: Sequence[int]) -> list[float]:
        return [100 * sum(counts[start : start + size]) / max(sum(counts), 1) for start in starts]

    return edges, shares(found.matched), shares(found.unmatched)


def _ticks(axes: "Axes", integer: bool = True) -> None:
    """Steps of 1, 2 or 5, as people count; `integer`: so does x."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axes.xaxis.set_major_locator(MaxNLocator(8, integer=integer, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    if axes.get_yscale() == "linear":
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))


def _finished(figure: "Figure", name: str, title: str, words: str) -> Drawing:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    root = _cleaned(buffer.getvalue().decode(), name, title, words)
    alone = ElementTree.tostring(root, "unicode")
    del root.attrib["width"], root.attrib["height"]
    in_page = ElementTree.tostring(root, "unicode").replace(' xmlns="http://www.w3.org/2000/svg"', "")
    return Drawing(name, title, words, _painted(in_page, IN_PAGE), _painted(alone, ALONE) + "\n")


def _cleaned(svg: str, name: str, title: str, words: str) -> ElementTree.Element:
    """Without metadata and global style; ids that nobody refers to are gone, others are this figure's own."""
    used = set(re.findall(r"#([\w-]+)[\")]", svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", svg)
    svg = re.sub(r'url\(#|xlink:href="#', lambda found: f"{found[0].removeprefix('xlink:')}{name}-", svg)
    ElementTree.register_namespace("", SVG.strip("{}"))
    root = ElementTree.fromstring(svg)
    for node in (*root.findall(f"{SVG}metadata"), *root.findall(f"{SVG}defs[{SVG}style]")):
        root.remove(node)
    root.attrib |= {"role": "img", "aria-labelledby": f"{name}-title {name}-words", "stroke-linejoin": "round"}
    for place, (tag, kind, text) in enumerate((("title", "title", title), ("desc", "words", words))):
        node = ElementTree.Element(f"{SVG}{tag}", {"id": f"{name}-{kind}"})
        node.text = text
        root.insert(place, node)
    return root


def _painted(svg: str, colors: dict[str, str]) -> str:
    for marker, color in colors.items():
        svg = svg.replace(marker, color)
    return svg.replace("'DejaVu Sans'", FONT)
