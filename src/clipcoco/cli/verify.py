"""What `clipcoco prepare-data` shows at work, and `--verify` in the end."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from clipcoco.cli.options import print_json
from clipcoco.console import TaskConsole, Terminal, show
from clipcoco.errors import ExitCode

if TYPE_CHECKING:
    from clipcoco.events import ReportTask
    from clipcoco.prepare.check import Verified
    from clipcoco.prepare.plan import Wish

_NAMED = 3  # files that a line names


@contextmanager
def working(terminal: Terminal, stopped: str = "The same command goes on where it was.") -> Iterator["ReportTask"]:
    """Progress; and when Ctrl-C or SIGTERM ends it, a person learns what comes next."""
    try:
        with TaskConsole(terminal) as console:
            yield console
    except Exception:
        raise
    except BaseException:
        show(terminal.err, f"Stopped. {stopped}")
        raise


def show_verified(terminal: Terminal, wish: "Wish", json_: bool) -> int:
    """Verify and show one table; 3 when a file is not as it should be."""
    from clipcoco.data.captions import read_captions
    from clipcoco.prepare.check import verify, verify_copies
    from clipcoco.prepare.plan import COCO, FOLDERS

    found, copies = [], {}
    with working(terminal, "Nothing was changed.") as report:
        for split in FOLDERS:
            whole = read_captions(wish.root, split)
            table = whole.subset(wish.fractions[split], wish.subset_seed)
            found.append(verify(whole, table, COCO.counts[split], wish.prepared_size, report))
            if wish.prepared_size:
                copies[split] = verify_copies(table, wish.prepared_size, report)
    across = len(found[0].hashes & found[1].hashes)
    broken = sum(split.problems for split in found) + sum(len(a) + len(s) for a, s in copies.values())
    if json_:
        splits = {split.split: {k: v for k, v in asdict(split).items() if k != "hashes"} for split in found}
        told: dict[str, Any] = {"schema": 1, "root": str(wish.root), "splits": splits, "duplicates_across": across}
        told["copies"] = {split: {"altered": a, "stale": s} for split, (a, s) in copies.items()}
        print_json({**told, "sound": not broken})
        return ExitCode.DATA if broken else ExitCode.OK
    show(terminal.out, *_table(found, copies, across), "")
    if broken:
        show(terminal.out, f"{broken:,} files are not as they should be. Get them anew: the same command without "
             "--verify, after removing them")  # fmt: skip
        return ExitCode.DATA
    show(terminal.out, "All files are present and unchanged.")
    return ExitCode.OK


def _table(
    found: "list[Verified]", copies: dict[str, tuple[tuple[str, ...], tuple[str, ...]]], across: int
) -> list[str]:
    head, rows = f"  {'':<34}" + "".join(f"{split.split:>12}" for split in found), []

    def row(label: str, values: list[object]) -> None:
        rows.append(f"  {label:<34}" + "".join(f"{value:>12,}" if isinstance(value, int) else f"{value:>12}"
                                                for value in values))  # fmt: skip

    row("images", [split.images for split in found])
    row("captions", [split.captions for split in found])
    row("the published counts", ["yes" if split.official else "no" for split in found])
    row("missing", [len(split.missing) for split in found])
    row("altered", [len(split.altered) for split in found])
    row("unreadable", [len(split.unreadable) for split in found])
    if copies:
        row("copies altered or gone", [len(copies[split.split][0]) for split in found])
        row("copies of another original", [len(copies[split.split][1]) for split in found])
    row("greyscale", [split.greyscale for split in found])
    row("named as another format", [len(split.wrong_type) for split in found])
    row("exact duplicates within", [split.duplicates for split in found])
    row("captions of several images", [split.equal_captions for split in found])
    rows.append(f"  {'exact duplicates across the splits':<34}{across:>12,}")
    for split in found:
        altered, stale = copies.get(split.split, ((), ()))
        for label, files in (
            ("missing", split.missing),
            ("altered", split.altered),
            ("unreadable", split.unreadable),
            ("copy altered or gone", altered),
            ("copy of another original", stale),
            ("named as another format", split.wrong_type),
        ):
            if files:
                more = f" and {len(files) - _NAMED:,} more (--json names all)" if len(files) > _NAMED else ""
                rows.append(f"  {label}: {', '.join(files[:_NAMED])}{more}")
    return [head, *rows]
