"""The two streams and what is printed on them as lines: recall table, rows of a summary, error line.

Whether to animate is decided here, from the stream itself: FORCE_COLOR would make rich animate into a pipe,
and an ASCII locale would end a run at its first table.
"""

import codecs
import io
import os
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clipcoco.say import say_half, say_order

LIVE_WIDTH = 60  # columns below which nothing is animated
ASCII = str.maketrans("·±→…━╸─▁▂▃▄▅▆▇█", "-~>.==-_.-~=+*#")


def _stand_ins(error: UnicodeError) -> tuple[str, int]:
    """Shown one for one where a stream cannot write the original."""
    assert isinstance(error, UnicodeEncodeError)
    return error.object[error.start : error.end].translate(ASCII).encode("ascii", "replace").decode(), error.end


codecs.register_error("stand-ins", _stand_ins)


def printable(text: str) -> str:
    """`text` with every control character written out: file names and captions must not steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)


def _silence(stream: IO[str]) -> None:
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, stream.fileno())
    os.close(devnull)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """The reader has gone (`| head`): rich would end the process, but a run goes on without its audience."""
        self.quiet = True
        _silence(self.file)


@dataclass(frozen=True)
class Terminal:
    out: Console  # results
    err: Console  # progress, warnings, errors
    live: bool  # err may be animated


def open_terminal(plain: bool = False) -> Terminal:
    """The two streams, made unable to fail on a character. `plain` forbids the panel."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            try:
                stream.reconfigure(errors="stand-ins")
            except OSError:  # a full disk: what still waits there would fail once more when the process ends
                _silence(stream)
    out, err = (
        _Console(stderr=stderr, highlight=False, markup=False, emoji=False, force_interactive=False)
        for stderr in (False, True)
    )
    dumb = os.environ.get("TERM", "dumb").lower() in ("dumb", "unknown")
    live = not plain and sys.stderr.isatty() and not dumb and not os.environ.get("CI") and err.width >= LIVE_WIDTH
    err.is_interactive = live
    return Terminal(out, err, live)


def show(console: Console, *lines: str | Text) -> None:
    """Print each line whole: wrapped on a terminal, while a file or a pipe gets it as it is."""
    for line in lines:
        text = Text(printable(line)) if isinstance(line, str) else line
        try:
            if console.file.isatty():
                console.print(hanging(text, console))
            else:
                console.print(text, soft_wrap=True)
        except OSError:  # a full disk, a terminal that is gone
            console.on_broken_pipe()
            if not console.stderr:  # results must not be lost unsaid; what is told meanwhile may be
                raise


def hanging(text: Text, console: Console) -> Text:
    """A row of `summary_rows` goes on below its text, not below its label."""
    label = text.spans[0].end if text.spans else 0
    if not text.plain[:label].endswith("  ") or console.width < label + LIVE_WIDTH // 2:
        return text
    start, rest = text.divide([label])
    return start + Text("\n" + " " * label).join(rest.wrap(console, console.width - label))


def error_line(*mistakes: str) -> None:
    """`error: ...` on stderr, one line each, whatever the names in it."""
    lines = [Text.assemble(("error: ", "bold red"), printable(mistake)) for mistake in mistakes]
    show(open_terminal(plain=True).err, *lines)


def table(
    columns: Mapping[str, Sequence[str]], width: int, right: Collection[str] = (), cut: Mapping[str, int] | None = None
) -> list[Text]:
    """Cells below their heads, as lines of at most `width` columns where that is possible.

    The columns of `cut` are cut where they must, to no less than so many cells; those of `right` end flush.
    """
    grid, needed = Table(box=None, padding=(0, 0, 0, 2)), 0
    for head, cells in columns.items():
        longest = max(map(cell_len, (head, *cells)))
        least = min(longest, (cut or {}).get(head, longest))
        needed += 2 + least
        grid.add_column(Text(head), justify="right" if head in right else "left", no_wrap=least == longest)
    for row in zip(*columns.values(), strict=True):
        grid.add_row(*(Text(cell, no_wrap=True, overflow="ellipsis") for cell in row))
    console = Console(width=max(width, needed), height=1)  # without a height a dumb terminal has 80 columns
    rendered = "".join(segment.text for segment in console.render(grid)).removesuffix("\n")
    lines = [Text(line.rstrip()) for line in rendered.split("\n")]
    lines[0].stylize("dim")
    return lines


def summary_rows(rows: Iterable[tuple[str, str]]) -> list[Text]:
    """`  label     text` lines; one with an empty label stands at the margin and has a blank line below."""
    rows = list(rows)
    width = max(6, *(len(label) for label, _ in rows)) + 2
    lines: list[Text] = []
    for label, text in rows:
        if label:
            lines.append(Text.assemble((f"  {printable(label):<{width}}", "dim"), printable(text)))
        else:
            lines += [Text(printable(text)), Text()]
    return lines


def recall_tables(
    title: str, protocols: dict[str, Any], *notes: str | None, closed_form: Mapping[str, Any] | None = None
) -> list[Text]:
    """The recall tables of the `protocols` of `eval --json`, as lines of at most 80 columns for usual titles.

    `notes` go into the lines below each table, the row `closed_form` into that of protocol `own`. The end of a
    training run and `eval` both print this, hence the same digits. A gallery of just 1,000 images is not shown
    once more as its only fold.
    """
    lines: list[Text] = []
    for protocol, recalls in protocols.items():
        if not (lines and (recalls["folds"], recalls["dropped"]) == (1, 0)):
            beside = closed_form if protocol == "own" else None
            lines += [*_recall_table(title, protocol, recalls, notes, beside), Text()]
    return lines


def _recall_table(
    title: str,
    protocol: str,
    recalls: dict[str, Any],
    notes: Sequence[str | None],
    closed_form: Mapping[str, Any] | None,
) -> list[Text]:
    interval = recalls.get("interval") or {}
    width = max(13, len(title))

    def row(label: str, r: dict[str, float], spread: dict[str, list[float]] | None, median: str) -> str:
        cells = ""
        for key, gap in (("r1", 2), ("r5", 3), ("r10", 3)):
            half = f" ±{say_half(spread[key]):>4}" if spread else ""
            cells += f"{r[key]:>{gap + 5}.2f}{half:<6}"
        return f"  {label:<{width}}{cells}{median:>15}".rstrip()

    i2t, t2i, chance = recalls["i2t"], recalls["t2i"], recalls["chance"]
    mean, by_chance = _mean(recalls), _mean(chance)
    medians = [f"{r['median_rank']:,g}" for r in (chance["i2t"], chance["t2i"]) if "median_rank" in r]
    lines = [
        Text(f"  {title:<{width}}{'R@1':>13}{'R@5':>14}{'R@10':>14}{'median rank':>15}", "dim"),
        Text(row("image -> text", i2t, interval.get("i2t"), f"{i2t['median_rank']:,g}")),
        Text(row("text -> image", t2i, interval.get("t2i"), f"{t2i['median_rank']:,g}")),
        Text(row("mean", mean, None, "")),
        Text(row("chance", by_chance, None, " / ".join(dict.fromkeys(medians))), "dim"),
        Text(),
    ]
    lines[3].stylize("bold", width + 2, width + 9)
    if closed_form:
        lines.insert(4, Text(row("closed form", _mean(closed_form), None, "")))
        i2t, t2i = ("/".join(f"{closed_form[way][key]:.2f}" for key in ("r1", "r5", "r10")) for way in ("i2t", "t2i"))
        lines.append(Text(f"  closed form: CCA, no training; i2t {i2t}, t2i {t2i}", "dim"))
    return lines + [Text(line, "dim") for line in _about_recalls(protocol, recalls, notes)]


def _mean(ways: Mapping[str, Any]) -> dict[str, float]:
    return {key: (ways["i2t"][key] + ways["t2i"][key]) / 2 for key in ("r1", "r5", "r10")}


def _about_recalls(protocol: str, recalls: dict[str, Any], notes: Sequence[str | None]) -> list[str]:
    ties = f" ({recalls['ties']:,})" if recalls.get("ties") else ""
    parts = [f"{recalls['images']:,} images, {recalls['captions']:,} captions, ties are misses{ties}"]
    if protocol == "1k":
        many = "one fold" if recalls["folds"] == 1 else f"mean of {recalls['folds']} folds"
        folds = f"1k: {many} of 1,000 images {say_order(recalls['order'])}"
        parts = [folds, f"{recalls['dropped']:,} left out", *parts]
    parts += filter(None, notes)
    if recalls.get("interval"):
        parts.append("± 95 % interval over images")
    lines = [f"  {parts[0]}"]
    for part in parts[1:]:
        if len(lines[-1]) + len(part) + 2 <= 80:
            lines[-1] += f"; {part}"
        else:
            lines.append(f"  {part}")
    return lines
