"""`clipcoco share`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipcoco.cli.options import (
    RUNS,
    Debug,
    Device,
    Json,
    Run,
    RunsDir,
    Set,
    complete_from,
    data_changes,
    expanded_path,
    print_json,
    split_words,
)
from clipcoco.cli.report import write_or_warn
from clipcoco.cli.search import Folder
from clipcoco.config.load import override
from clipcoco.console import RunConsole, open_terminal, printable, say_bytes, show, summary_rows
from clipcoco.data.annotations import MEASURED
from clipcoco.errors import ConfigError, ExitCode
from clipcoco.runs.directory import RunDir
from clipcoco.runs.names import find_run
from clipcoco.search import check_folder
from clipcoco.share import check_output

if TYPE_CHECKING:
    from clipcoco.search.models import Model
    from clipcoco.share.bundle import Pictures
    from clipcoco.share.page import Page

Output = Annotated[
    Path | None,
    typer.Option(metavar="FILE.html", help="Otherwise search.html in the run's folder.", callback=expanded_path),
]
Split = Annotated[
    str,
    typer.Option(
        help="val, test or karpathy-test.", autocompletion=complete_from(*(one for one in MEASURED if one != "train"))
    ),
]
Bits = Annotated[
    int, typer.Option(metavar="8 or 16", help="Of weights and vectors.", autocompletion=complete_from("8", "16"))
]


def share(
    words: Run = None,
    images: Folder = None,
    split: Split = "val",
    output: Output = None,
    bits: Bits = 8,
    changes: Set = None,
    runs_dir: RunsDir = RUNS,
    device: Device = None,
    json_: Json = False,
    debug: Debug = False,
) -> int:
    """Make one HTML file that searches pictures by what is typed, offline, in any browser: to look at, and to send.

    [bold]clipcoco share[/bold]

    [bold]clipcoco share small --images ~/Pictures/2026 --output holidays.html[/bold]
    """
    if split not in MEASURED or split == "train":
        why = "no training caption leaves in a page" if split == "train" else f"no split '{split}'"
        raise ConfigError(f"{why} (--split). Choose val, test or karpathy-test")
    if bits not in (8, 16):
        raise ConfigError(f"weights have 8 or 16 bits here, not {bits} (--bits). Choose one")
    if images is not None:
        check_folder(images)
    word, bare = split_words(words)
    settings = data_changes(changes, bare, "the pictures")
    found = find_run(runs_dir, word)
    path = output or (found.run.shared if found.run else RunDir(Path()).shared)
    check_output(path)
    # ---- from here on torch, whose import takes seconds
    from clipcoco.search.models import open_checkpoint
    from clipcoco.share.page import share_page

    terminal = open_terminal()
    model, file = open_checkpoint(found.weights())
    data = override(file.config, settings).data if settings else file.config.data
    home = found.run.path if found.run else runs_dir / "search" / model.home
    with RunConsole(terminal) as console:
        gallery = _of_folder(images, model, home / "index", device, console) if images else None
        name = found.run.name if found.run else model.words
        page = share_page(file, name, data, split, gallery, bits, device, path, console)
    if found.run and found.run.report.exists() and path == found.run.shared:
        write_or_warn(found.run, lambda line: show(terminal.err, line))  # so that it leads there
    if json_:
        print_json({"schema": 1, "run": found.run.name if found.run else None, **page.to_plain()})
    else:
        show(terminal.out, *summary_rows(_said(page)))
    return ExitCode.OK


def _of_folder(
    images: Path, model: "Model", indexes: Path, device: str | None, console: RunConsole
) -> Callable[[], "Pictures"]:
    """Its pictures, encoded when they are asked for."""
    from clipcoco.search.galleries import folder_gallery
    from clipcoco.search.query import Told, rows_of
    from clipcoco.share.bundle import Pictures

    folder = folder_gallery(images)
    told = Told(console, lambda note: show(console.terminal.err, f"note: {printable(note)}"))

    def pictures() -> Pictures:
        names, vectors = rows_of(model, folder, indexes, device, told)
        return Pictures(names, [folder.folder / name for name in names], [], vectors)

    return pictures


def _said(page: "Page") -> list[tuple[str, str]]:
    rows = [("page", f"{page.path}, {say_bytes(page.size)}, {page.images:,} pictures")]
    if page.cost:
        before, after = page.cost.model.r1, page.cost.page.r1
        where = f"on {page.cost.images:,} images of {page.cost.split}"
        rows.append(("recall", f"mean R@1 {after:.2f} at {page.bits} bits, {before:.2f} of the model, {where}"))
    else:
        rows.append(("recall", f"not measured: {page.unmeasured}"))
    return [*rows, ("open it", "in any browser, here or elsewhere: it asks no network")]
