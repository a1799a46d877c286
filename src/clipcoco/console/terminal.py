"""The two streams and what is printed on them as lines: recall table, rows of a summary, error line.

Whether to animate is decided here, from the stream itself: FORCE_COLOR would make rich animate into a pipe,
and an ASCII locale would end a run at its first table.
"""

import codecs
import io
import os
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clipcoco.say import say_half, say_order

RECALLS = ("r1", "r5", "r10")
LIVE_WIDTH = 60  # columns below which nothing is animated
START = re.compile(r" *(?:\d\d:\d\d:\d\d )?")
# A command with its quoted words, up to a stop or a gap; or a word.
PIECE = re.compile(r"""(?:clipcoco|pip|hf) (?=[a-z])(?:'[^']*'|"[^"]*"|[^\s'"]|(?<![,.;: ]) (?! ))+|\S+(?: %)?""")
ASCII = str.maketrans("·±→…━╸─▁▂▃▄▅▆▇█", "-~>.==-_.-~=+*#")

_Row = tuple[str, Mapping[str, float], Mapping[str, Sequence[float]] | None, str]  # label, recalls, intervals, rank


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


def show(console: Console, *lines: str | Text, whole: bool = False) -> None:
    """Print each line: on a terminal broken between words, unless it is `whole`; a file or a pipe gets it as it is."""
    for line in lines:
        text = Text(printable(line)) if isinstance(line, str) else line
        try:
            as_it_is = whole or not console.file.isatty()
            console.print(text if as_it_is else wrapped(text, console.width), soft_wrap=True)
        except OSError:  # a full disk, a terminal that is gone
            console.on_broken_pipe()
            if not console.stderr:  # results must not be lost unsaid; what is told meanwhile may be
                raise


def wrapped(text: Text, width: int) -> Text:
    """`text` in lines of `width` columns, which go on below its beginning, or below the text behind a label.

    What people copy stays in one piece: a command, a path, a name. Where one is wider than the terminal, the terminal
    folds it, and a copy of it has no break.
    """
    plain, label = text.plain, text.spans[0].end if text.spans else 0
    starts = START.match(plain)
    assert starts
    first = indent = starts.end()
    if plain[:label].endswith("  "):  # of `summary_rows`; where there is too little room beside it, below
        widest = max((cell_len(piece[0]) for piece in PIECE.finditer(plain, label)), default=0)
        beside = width - label >= max(widest, LIVE_WIDTH // 2)
        first, indent = (label, label) if beside else (first, 2 * first)
    cuts, begin, before = [], 0, 0
    for piece in PIECE.finditer(plain):
        if piece.start() > first and before + cell_len(plain[begin : piece.end()]) > width:
            cuts.append(piece.start())
            begin, before = piece.start(), indent
    lines = text.divide(cuts)
    for line in lines[:-1]:
        line.rstrip()
    return Text("\n" + " " * indent).join(lines)


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


def table_or_blocks(columns: Mapping[str, Sequence[str]], width: int, right: Collection[str] = ()) -> list[Text]:
    """A table with values of no less than 20 cells, or, where `width` does not suffice, a block for each row."""
    _, *heads = columns
    lines = table(columns, width, right, cut=dict.fromkeys(heads, 20))
    if max(line.cell_len for line in lines) <= width:
        return lines
    blocks = []
    for name, *cells in zip(*columns.values(), strict=True):
        blocks += [
            Text(f"  {name}"),
            *summary_rows((f"  {head}", cell) for head, cell in zip(heads, cells, strict=True)),
        ]
    return blocks


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
    title: str,
    protocols: dict[str, Any],
    *notes: str | None,
    closed_form: Mapping[str, Any] | None = None,
    width: int = 80,
) -> list[Text]:
    """The recall tables of the `protocols` of `eval --json`, as lines of at most 80 columns for usual titles.

    Where `width` is less, of 36: intervals then stand below their recalls, and median ranks below the table.

    `notes` go into the lines below each table, the row `closed_form` into that of protocol `own`. The end of a
    training run and `eval` both print this, hence the same digits. A gallery of just 1,000 images is not shown
    once more as its only fold.
    """
    lines: list[Text] = []
    for protocol, recalls in protocols.items():
        if not (lines and (recalls["folds"], recalls["dropped"]) == (1, 0)):
            beside = closed_form if protocol == "own" else None
            lines += [*_recall_table(title, protocol, recalls, notes, beside, width), Text()]
    return lines


def _recall_table(
    title: str,
    protocol: str,
    recalls: dict[str, Any],
    notes: Sequence[str | None],
    closed_form: Mapping[str, Any] | None,
    width: int,
) -> list[Text]:
    i2t, t2i, chance = recalls["i2t"], recalls["t2i"], recalls["chance"]
    interval = recalls.get("interval") or {}
    medians = [f"{r['median_rank']:,g}" for r in (chance["i2t"], chance["t2i"]) if "median_rank" in r]
    ranks = [f"{i2t['median_rank']:,g}", f"{t2i['median_rank']:,g}", " / ".join(dict.fromkeys(medians))]
    rows = [
        ("image -> text", i2t, interval.get("i2t"), ranks[0]),
        ("text -> image", t2i, interval.get("t2i"), ranks[1]),
        ("mean", _mean(recalls), None, ""),
        *([("closed form", _mean(closed_form), None, "")] if closed_form else []),
        ("chance", _mean(chance), None, ranks[2]),
    ]
    lines = _wide(title, rows)
    if max(line.cell_len for line in lines) > width:
        ranks = [
            f"{label} {rank}" for label, rank in zip(("image -> text", "text -> image", "chance"), ranks, strict=True)
        ]
        lines = [*_narrow(title, rows), Text(), Text(f"  median rank: {', '.join(ranks)}", "dim")]
    lines.append(Text())
    if closed_form:
        i2t, t2i = ("/".join(f"{closed_form[way][key]:.2f}" for key in RECALLS) for way in ("i2t", "t2i"))
        lines.append(Text(f"  closed form: CCA, no training; i2t {i2t}, t2i {t2i}", "dim"))
    return lines + [Text(line, "dim") for line in _about_recalls(protocol, recalls, notes)]


def _wide(title: str, rows: Sequence[_Row]) -> list[Text]:
    width = max(13, len(title))
    lines = [Text(f"  {title:<{width}}{'R@1':>13}{'R@5':>14}{'R@10':>14}{'median rank':>15}", "dim")]
    for label, recalls, interval, median in rows:
        cells = ""
        for key, gap in zip(RECALLS, (2, 3, 3), strict=True):
            half = f" ±{say_half(interval[key]):>4}" if interval else ""
            cells += f"{recalls[key]:>{gap + 5}.2f}{half:<6}"
        line = Text(f"  {label:<{width}}{cells}{median:>15}".rstrip(), "dim" if label == "chance" else "")
        if label == "mean":
            line.stylize("bold", width + 2, width + 9)
        lines.append(line)
    return lines


def _narrow(title: str, rows: Sequence[_Row]) -> list[Text]:
    lines = [Text(f"  {title}"), Text(f"{'R@1':>22}{'R@5':>7}{'R@10':>7}", "dim")]
    for label, recalls, interval, _ in rows:
        cells = "".join(f"{recalls[key]:>7.2f}" for key in RECALLS)
        lines.append(Text(f"  {label:<13}{cells}", "dim" if label == "chance" else ""))
        if interval:
            halves = "".join(f"{say_half(interval[key]):>7}" for key in RECALLS)
            lines.append(Text(f"{'±':>15}{halves}", "dim"))
    return lines


def composition_table(composition: Mapping[str, Any] | None, width: int = 80) -> list[Text]:
    """The accuracies on false captions that `eval --json` has, as lines; none where there is none."""
    if not composition:
        return []
    kinds = {printable(kind): found for kind, found in composition["kinds"].items()}
    first, wide = max(13, *map(len, kinds)), width >= 54
    lines = [Text(f"  {'false captions':<{first}}{'right':>12}" + f"{'pairs':>14}{'ties':>8}" * wide, "dim")]
    for kind, found in kinds.items():
        half = f" ± {say_half(found['interval']):>4}"
        more = f"{half}{found['pairs']:>7,}{found['ties']:>8,}" * wide
        lines.append(Text(f"  {kind:<{first}}{found['accuracy']:>12.2f}{more}"))
    lines.append(Text(f"  {'chance':<{first}}{composition['chance']:>12.2f}", "dim"))
    said = (
        "  right: the image is nearer to its caption than to the one made false",
        f"  {printable(composition['source'])}; ties are wrong; ± 95 % interval over images",
    )
    return [*lines, Text(), *(line for one in said for line in wrapped(Text(one, "dim"), width).split("\n")), Text()]


def extended_tables(extended: Mapping[str, Any], *notes: str | None) -> list[Text]:
    """CxC and ECCV Caption of `eval --json`, as lines."""
    lines: list[Text] = []
    for title, found, keys in (
        ("CxC", extended["cxc"], {"R@1": "r1", "R@5": "r5", "R@10": "r10"}),
        ("ECCV Caption", extended["eccv"], {"mAP@R": "map_at_r", "R-Precision": "rprecision", "R@1": "r1"}),
    ):
        rows = {"image -> text": found["i2t"], "text -> image": found["t2i"]}
        rows |= {f"chance, {way}": found["chance"][way] for way in ("i2t", "t2i")}
        columns = {title: list(rows)} | {
            head: [f"{row[key]:.2f}" for row in rows.values()] for head, key in keys.items()
        }
        queries = f"{found['queries']['i2t']:,} images and {found['queries']['t2i']:,} captions ask, ties are misses"
        said = "; ".join(filter(None, (queries, *notes)))
        lines += [*table(columns, 80, right=list(keys)), Text(), Text(f"  {said}", "dim"), Text()]
    return lines


def _mean(ways: Mapping[str, Any]) -> dict[str, float]:
    return {key: (ways["i2t"][key] + ways["t2i"][key]) / 2 for key in RECALLS}


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
