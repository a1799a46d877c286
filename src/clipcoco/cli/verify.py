"""What `clipcoco prepare-data` shows at work, and `--verify` in the end."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.text import Text

from clipcoco.cli.options import print_json
from clipcoco.console import TaskConsole, Terminal, printable, show, table_or_blocks
from clipcoco.errors import ExitCode

if TYPE_CHECKING:
    from clipcoco.events import ReportTask
    from clipcoco.prepare.check import Verified
    from clipcoco.prepare.plan import Request

_NAMED = 3  # files that a line names


@contextmanager
def working(terminal: Terminal, stopped: str = "The same command goes on where it was.") -> Iterator["ReportTask"]:
    """Progress; and when Ctrl-C or SIGTERM ends it, a person learns what comes next."""
    try:
        with TaskConsole(terminal) as console:
            yield console
    except BaseException as error:
        if not isinstance(error, Exception):
            show(terminal.err, f"Stopped. {stopped}")
        raise


def show_verified(terminal: Terminal, request: "Request", json_: bool) -> int:
    """Verify and show one table; 3 when a file is not as it should be."""
    from clipcoco.data.captions import read_captions
    from clipcoco.prepare.check import verify, verify_copies
    from clipcoco.prepare.plan import FOLDERS

    found, copies = [], {}
    with working(terminal, "Nothing was changed.") as report:
        for split in FOLDERS:
            whole = read_captions(request.root, split)
            table = request.part_of(whole, split)
            found.append(verify(whole, table, request.coco.counts[split], request.prepared_size, report))
            if request.prepared_size:
                copies[split] = verify_copies(table, request.prepared_size, report)
    across = len(found[0].hashes & found[1].hashes)
    broken = sum(split.problems for split in found) + sum(len(a) + len(s) for a, s in copies.values())
    if json_:
        splits = {split.split: {k: v for k, v in asdict(split).items() if k != "hashes"} for split in found}
        told: dict[str, Any] = {"schema": 1, "root": str(request.root), "splits": splits, "duplicates_across": across}
        told["copies"] = {split: {"altered": a, "stale": s} for split, (a, s) in copies.items()}
        print_json({**told, "sound": not broken})
        return ExitCode.DATA if broken else ExitCode.OK
    show(terminal.out, *_lines(found, copies, across, terminal.out.width), "")
    if broken:
        next_ = "Get them again: the same command without --verify, after removing them"
        show(terminal.out, f"{broken:,} files are not as they should be. {next_}")
        return ExitCode.DATA
    show(terminal.out, "All files are present and unchanged.")
    return ExitCode.OK


def _lines(
    found: "list[Verified]", copies: dict[str, tuple[tuple[str, ...], tuple[str, ...]]], across: int, width: int
) -> list[Text]:
    """A table of both splits, and some of the files that it counts by name."""
    files = {
        "missing": [split.missing for split in found],
        "altered": [split.altered for split in found],
        "unreadable": [split.unreadable for split in found],
        "copies altered or gone": [altered for altered, _ in copies.values()],
        "copies of another original": [stale for _, stale in copies.values()],
        "named as another format": [split.wrong_type for split in found],
    }
    files = {label: of_splits for label, of_splits in files.items() if of_splits}
    counts = {
        "images": [split.images for split in found],
        "captions": [split.captions for split in found],
        "the published counts": ["yes" if split.official else "no" for split in found],
        **{label: [len(names) for names in of_splits] for label, of_splits in files.items()},
        "greyscale": [split.greyscale for split in found],
        "exact duplicates within": [split.duplicates for split in found],
        "captions of several images": [split.equal_captions for split in found],
        "exact duplicates across the splits": [across, ""],
    }
    cells = [[f"{n:,}" if isinstance(n, int) else n for n in column] for column in zip(*counts.values(), strict=True)]
    columns = {"": list(counts), **dict(zip((split.split for split in found), cells, strict=True))}
    lines = table_or_blocks(columns, width, right=list(columns)[1:])
    for label, of_splits in files.items():
        for names in filter(None, of_splits):
            more = f" and {len(names) - _NAMED:,} more (--json names all)" if len(names) > _NAMED else ""
            lines.append(Text(printable(f"  {label}: {', '.join(names[:_NAMED])}{more}")))
    return lines
