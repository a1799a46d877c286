"""`clipcoco runs A B`: what `clipcoco.report.comparison` finds, in lines or as JSON; more runs in a page."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.text import Text

from clipcoco.cli.options import print_json
from clipcoco.config.text import shown
from clipcoco.console import Terminal, printable, say_half, show, summary_rows, table, table_or_blocks, wrapped
from clipcoco.errors import ConfigError, ExitCode
from clipcoco.report.comparison import Comparison, Row, between
from clipcoco.runs.directory import RunDir
from clipcoco.runs.names import find_run
from clipcoco.runs.standing import Standing, read_standing

PAGE = "compare.html"  # in the folder of runs
MOST = 6  # runs whose lines a figure tells apart


def compare(terminal: Terminal, runs_dir: Path, words: Sequence[str], json_: bool) -> int:
    if len(words) != 2:
        raise ConfigError(
            f"two runs are compared, not {len(words)} (command line). Add --page: a page takes up to {MOST}"
        )
    runs = [read_standing(whole_run(runs_dir, one)) for one in words]
    found = between(runs[0], runs[1])
    if json_:
        print_json(_plain(runs, found))
    else:
        show(terminal.out, *_lines(runs, found, terminal.out.width))
    return ExitCode.OK


def compare_in_a_page(terminal: Terminal, runs_dir: Path, words: Sequence[str], json_: bool) -> int:
    if not 2 <= len(words) <= MOST:
        raise ConfigError(f"a page compares 2 to {MOST} runs, not {len(words)} (--page). Name them")
    from clipcoco.report.together import write_comparison  # draws

    page = write_comparison(runs_dir / PAGE, [read_standing(whole_run(runs_dir, one)) for one in words])
    if json_:
        print_json({"schema": 1, "page": str(page.absolute())})
    else:
        show(terminal.out, *summary_rows([("page", str(page))]))
    return ExitCode.OK


def whole_run(runs_dir: Path, words: str) -> RunDir:
    found = find_run(runs_dir, words)
    if found.run is None or found.checkpoint is not None:
        raise ConfigError(f"'{words}' is a checkpoint, and whole runs are compared (command line). Give the run's name")
    return found.run


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
        "recalls": [_plain_row(row) for row in found.rows],
        "composition": [_plain_row(row) for row in found.composition],
    }


def _plain_row(row: Row) -> dict[str, object]:
    return {**asdict(row), "difference": row.b - row.a, "beyond": row.beyond, "overlap": row.overlap}


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
        lines += table_or_blocks({"setting": list(found.settings), "A": values[0], "B": values[1]}, width)
    elif not found.unread:
        lines.append("  No setting differs.")
    lines.append("")
    if found.rows:
        lines += [*_table(found.rows, not found.obstacles, width), ""]
        if found.composition:
            lines += [*_table(found.composition, True, width, "false captions"), ""]
        if any(row.beyond is not None for row in found.rows):
            holds = "within the noise: the 95 % interval of B - A, on the same images for both, holds 0."
            lines += indented(holds, width)
            lines += indented("Another seed moves recall too, and it does not hold that.", width)
    said = [*found.notes, *(f"{text}." for text in found.obstacles)]
    if found.obstacles:
        said.append("So these recalls do not compare.")
    return lines + [line for text in said for line in indented(text, width)]


def indented(text: str, width: int) -> list[Text]:
    """A sentence in lines of at most `width` columns, as far as its commands and paths allow."""
    return [*wrapped(Text(f"  {printable(text)}"), width).split("\n")]


def _table(rows: Sequence[Row], judged: bool, width: int, head: str = "") -> list[Text]:
    """Where the width does not suffice, names become short, then words, then intervals go, then the R@ of names."""
    for cuts in range(5):
        lines = table(_columns(rows, judged, head, cuts), width)
        if max(line.cell_len for line in lines) <= width:
            break
    return lines


def _columns(rows: Sequence[Row], judged: bool, head: str, cuts: int) -> dict[str, list[str]]:
    of_difference = [row.difference_interval for row in rows]
    halves = cuts < 3 and not any(of_difference)

    def value(recall: float, interval: tuple[float, float] | None) -> str:
        return f"{recall:6.2f}" + (f" ± {say_half(interval):>4}" if interval and halves else "")

    names = [printable(row.name(long=cuts < 1)) for row in rows]
    of_recall = cuts == 4 and any("R@" in name for name in names)
    columns = {
        "R@" if of_recall else head: [name.replace("R@", "") for name in names] if of_recall else names,
        "     A": [value(row.a, row.a_interval) for row in rows],
        "     B": [value(row.b, row.b_interval) for row in rows],
        " B - A": [f"{row.b - row.a:+6.2f}" for row in rows],
    }
    if cuts < 3 and any(of_difference):
        columns["95 % interval"] = [f"[{one[0]:+.2f}, {one[1]:+.2f}]" if one else "" for one in of_difference]
    if not judged:
        return columns
    word = " " if cuts < 2 else "noise" if any(row.beyond is not None for row in rows) else "±"
    return {**columns, word: [_judgement(row, long=cuts < 2) for row in rows]}


def _judgement(row: Row, long: bool) -> str:
    if row.beyond is not None:
        return ("beyond" if row.beyond else "within") + (" the noise" if long else "")
    short, whole = ("overlap", "intervals overlap") if row.overlap else ("apart", "intervals do not overlap")
    return "" if row.overlap is None else whole if long else short
