"""`clipcoco runs`: every run in a table, one of them, or some side by side."""

import time
from collections.abc import Sequence
from datetime import date, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from clipcoco.cli.options import RUNS, Debug, Json, RunsDir, complete_run, print_json
from clipcoco.console import open_terminal, printable, short_seconds, show, table
from clipcoco.errors import ExitCode

if TYPE_CHECKING:
    from clipcoco.runs.standing import Standing

NAME_WIDTH = 22  # "medium-20261124-021502": columns go before a name is cut shorter
# From the one that goes last on a narrow terminal.
IMPORTANCE = ("run", "state", "R@1", "images", "epochs", "when", "took", "device")
LISTED = (  # of a Standing, in --json
    *("state", "reason", "step", "total_steps", "epochs_done", "epochs", "r1", "best_epoch"),
    *("images", "caution", "device", "seconds", "started", "changed"),
)


def runs(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="A B", help="One run, or two to compare; nothing: all.", autocompletion=complete_run),
    ] = None,
    page: Annotated[bool, typer.Option("--page", help="Compare two or more in a page with their curves.")] = False,
    runs_dir: RunsDir = RUNS,
    json_: Json = False,
    debug: Debug = False,
) -> int:
    """All runs, the best first; one run and what to do next; or what differs between two, settings and recalls.

    [bold]clipcoco runs[/bold]

    [bold]clipcoco runs small-20261123-190211 small-20261123-180155[/bold]
    """
    from clipcoco.cli.compare import (
        compare,
        compare_in_a_page,
    )  # these read strangers' files with models that take a while to build
    from clipcoco.runs.standing import all_standings

    terminal = open_terminal()
    if page:
        return compare_in_a_page(terminal, runs_dir, words or [], json_)
    if words and len(words) == 1:
        from clipcoco.cli.one_run import show_run

        return show_run(terminal, runs_dir, words[0], json_)
    if words:
        return compare(terminal, runs_dir, words, json_)
    standings = all_standings(runs_dir)
    if json_:
        listed = [
            {"run": one.run.name, "path": str(one.run.path), **{key: getattr(one, key) for key in LISTED}}
            for one in standings
        ]
        print_json({"schema": 1, "runs_dir": str(runs_dir), "runs": listed})
        return ExitCode.OK
    if not standings:
        show(terminal.out, f"There is no run in {runs_dir} yet. Start one: clipcoco train --preset demo")
        return ExitCode.OK
    show(terminal.out, *table_of(standings, terminal.out.width, time.time()))
    return ExitCode.OK


def table_of(standings: Sequence["Standing"], width: int, now: float) -> list[Text]:
    """The list of runs in lines of at most `width` columns, and what its R@1 means."""
    from clipcoco.cli.compare import indented

    of_recalls = [one.images for one in standings if one.r1 is not None]
    galleries = set(of_recalls) - {None}
    columns = {
        "run": [printable(one.run.name) for one in standings],
        "state": [_say_state(one) for one in standings],
        "epochs": [f"{one.epochs_done}/{'?' if one.epochs is None else one.epochs}" for one in standings],
        "R@1": ["-" if one.r1 is None else f"{one.r1:.2f}{'*' * bool(one.caution)}" for one in standings],
        "images": ["-" if one.r1 is None else "?" if one.images is None else f"{one.images:,}" for one in standings],
        "device": ["-" if one.device is None else printable(one.device.removesuffix(":0"))[:8] for one in standings],
        "took": ["-" if one.seconds is None else short_seconds(one.seconds) for one in standings],
        "when": [_say_when(one, now) for one in standings],
    }
    # Names are cut first, down to the length of usual ones; then columns go, at last names again.
    for shown in range(len(IMPORTANCE), 2, -1):
        kept = {t: c for t, c in columns.items() if t in IMPORTANCE[:shown] and (t != "images" or len(galleries) > 1)}
        cut = {"run": NAME_WIDTH if shown > 3 else 5}
        lines = table(kept, width, right=("epochs", "R@1", "images", "took"), cut=cut)
        if max(line.cell_len for line in lines) <= width:
            break
    if not of_recalls:
        return lines
    cautions = dict.fromkeys(one.caution for one in standings if one.caution and one.r1 is not None)
    about = "R@1: mean of both directions in percent"
    if len(galleries) > 1:
        about += "; it falls as the gallery grows: compare rows of equal images"
    elif galleries:
        about += f", {galleries.pop():,} images to search" + (" where known" if None in of_recalls else "")
        lines[1].highlight_regex(rf"(?<=\s){standings[0].r1:.2f}(?=[\s*]|$)", "green")
    notes = [about, *(f"*: {printable(caution)}" for caution in cautions)]
    return [*lines, Text(), *(Text(line.plain, "dim") for note in notes for line in indented(note, width))]


def _say_state(one: "Standing") -> str:
    if one.state == "running" and one.total_steps:
        return f"running {min(one.step / one.total_steps, 1):.0%}".replace("%", " %")
    return one.state


def _say_when(one: "Standing", now: float) -> str:
    if one.state in ("running", "starting"):
        return "now"
    ago, then = now - one.changed, datetime.fromtimestamp(one.changed).date()
    days = (date.fromtimestamp(now) - then).days
    if -60 < ago < 60:
        return "just now"
    if 0 <= ago < 3600:
        return f"{ago / 60:.0f} min ago"
    if days == 0 and ago > 0:
        return f"{ago / 3600:.0f} h ago"
    if days == 1:
        return "yesterday"
    return f"{days} days ago" if 1 < days < 7 else str(then)
