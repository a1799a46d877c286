"""The live panel of a training run, drawn from one frozen view: no clock, no terminal, no state."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.panel import Panel
from rich.text import Text

WIDTH = 80
SPARKS = "▁▂▃▄▅▆▇█"
FRAME_LINES = 10  # all lines but figures and epochs, and one to spare for the prompt
HEADS = ("epoch", "val loss", "R@1", "i2t R@1", "R@5", "R@10", "t2i R@1", "R@5", "R@10")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class View:
    name: str  # of the run
    title: str  # what stands behind it
    subtitle: str
    page: str  # the path of the live page; "" without one
    done: int  # steps of the run
    total: int
    time: str  # how long it will take
    losses: Sequence[float]  # of the log intervals, the newest last
    chance_loss: float
    chance: Row  # {"i2t": {"r1", "r5", "r10"}, "t2i": ...}
    closed_form: Row | None  # its row, in runs that have one
    last: Row  # the newest step row; empty before the first
    evaluations: Sequence[Row]  # evaluation rows, one an epoch


def draw(view: View, width: int, height: int) -> Panel:
    """The panel for a terminal of `width` columns and `height` lines, at most 80 columns wide."""
    width = min(WIDTH, width)
    title = Text(view.name)
    title.truncate(max(12, width - 9 - len(view.title)), overflow="ellipsis")
    page = f"page {view.page}" if view.page else ""
    subtitle = " · ".join(filter(None, (view.subtitle, page)))
    beside = cell_len(subtitle) <= width - 6
    figures = _figures(view, width)
    room = height - FRAME_LINES - len(figures) - (view.closed_form is not None) - (not beside)
    steps = f"step {view.done:,} of {view.total:,}  {view.done / view.total:4.0%}".replace("%", " %")
    lines = [
        bar(view.done / view.total, width - 7 - len(steps)).append(f"   {steps}"),
        Text(view.time),
        Text() if beside else Text(page),
        *figures,
        Text(),
        *_epochs(view, wide=width == WIDTH, room=max(1, room)),
    ]
    return Panel(
        Text("\n").join(lines),
        title=title.append(f" · {view.title}"),
        title_align="left",
        subtitle=Text(subtitle if beside else view.subtitle, overflow="ellipsis") if subtitle else None,
        subtitle_align="left",
        border_style="dim",
        width=width,
    )


def bar(share: float, width: int) -> Text:
    halves = round(2 * width * min(share, 1.0))
    done = "━" * (halves // 2) + "╸" * (halves % 2)
    return Text.assemble((done, "bold"), ("─" * (width - len(done)), "dim"))


def sparkline(values: Sequence[float]) -> str:
    low, high = min(values, default=0.0), max(values, default=0.0)
    return "".join(SPARKS[round(7 * (value - low) / (high - low)) if high > low else 3] for value in values)


def _figures(view: View, width: int) -> list[Text]:
    last, clock = view.last, view.last.get("clock", {})
    speed = clock.get("images_per_second", 0.0)
    loss = (f"{last['loss']:.3f}" if last else "-").rjust(7)
    images = (f"{speed:,.0f} images/s" if speed >= 10 else f"{speed:.1f} images/s") if last else "-"
    wait = f"{clock.get('data_wait', 0.0):.0%}".replace("%", " %") if last else "-"
    lr, temperature = (f"{last['lr']:.1e}", f"{last['temperature']:.3f}") if last else ("-", "-")
    cells = (
        *(f"loss {loss}  {sparkline(view.losses[-10:])}", f"chance {view.chance_loss:>14.3f}", f"lr   {lr:>10}"),
        *(f"speed  {images}", f"waiting for data {wait:>4}", f"temp {temperature:>10}"),
    )
    # One beside another only where there is room: a terminal may become narrower while a run goes.
    one_below_another = tuple((number,) for number in range(6))
    rows = ((0, 1, 2), (3, 4, 5)) if width == WIDTH else ((0, 1), (3, 4), (2, 5)) if width > 56 else one_below_another
    rooms = (32, 28, 15)
    return [Text("".join(f"{cells[n]:<{room}}" for n, room in zip(row, rooms, strict=False)).rstrip()) for row in rows]


def _epochs(view: View, wide: bool, room: int) -> list[Text]:
    """The newest epochs that fit, and always the best, in green and marked."""
    best = next((row for row in reversed(view.evaluations) if row["best"]), None)
    shown = list(view.evaluations[-room:])
    if best is not None and all(row is not best for row in shown):
        shown[0] = best
    by_chance = {**view.chance, "r1": (view.chance["i2t"]["r1"] + view.chance["t2i"]["r1"]) / 2}
    lines = [Text(_line(HEADS, wide), "dim"), Text(_line(_cells("chance", view.chance_loss, by_chance), wide), "dim")]
    if view.closed_form:
        lines.append(Text(_line(_cells("CCA", None, view.closed_form), wide), "dim"))
    for row in shown:
        mark = "*" if row is best else ""
        cells = _cells(f"{row['epoch']}", row["val_loss"], row)
        lines.append(Text(_line(cells, wide) + mark, "green" if mark else ""))
    return lines


def _cells(label: str, loss: float | None, row: Row) -> list[str]:
    recalls = [row[way][key] for way in ("i2t", "t2i") for key in ("r1", "r5", "r10")]
    return [label, "-" if loss is None else f"{loss:.3f}", *(f"{recall:.2f}" for recall in (row["r1"], *recalls))]


def _line(cells: Sequence[str], wide: bool) -> str:
    """A narrow panel has R@1 alone."""
    rooms = (7, 9, 8, 10, 8, 8, 10, 7, 8)
    shown = zip(cells, rooms, HEADS, strict=True)
    return "".join(f"{cell:>{room}}" for cell, room, head in shown if wide or head not in ("R@5", "R@10"))
