"""The two streams and what is printed on them as lines: a table, rows of a summary, an error line.

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
from typing import IO

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

LIVE_WIDTH = 60  # columns below which nothing is animated
START = re.compile(r" *(?:\d\d:\d\d:\d\d )?")
# A command with its quoted words, up to a stop or a gap; or a word.
PIECE = re.compile(r"""(?:clipcoco|pip|hf) (?=[a-z])(?:'[^']*'|"[^"]*"|[^\s'"]|(?<![,.;: ]) (?! ))+|\S+(?: %)?""")
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
