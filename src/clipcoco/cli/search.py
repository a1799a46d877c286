"""`clipcoco search`."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.style import Style
from rich.text import Text

from clipcoco.cli.options import (
    RUNS,
    Debug,
    Device,
    Json,
    RunsDir,
    Set,
    complete_run,
    data_changes,
    expanded_path,
    print_json,
    write_out,
)
from clipcoco.config.load import override
from clipcoco.console import RunConsole, Terminal, open_terminal, printable, say_seconds, show
from clipcoco.disk.links import refuse_links
from clipcoco.errors import CheckpointError, ConfigError, ExitCode
from clipcoco.runs.names import Found, find_run
from clipcoco.search import check_folder, check_picture, check_words

if TYPE_CHECKING:
    from clipcoco.search.galleries import Gallery
    from clipcoco.search.models import Model
    from clipcoco.search.query import Answer, Hit

Picture = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Look for what is like this picture instead.", callback=expanded_path),
]
OneRun = Annotated[
    str | None,
    typer.Option(
        metavar="RUN", help="A run, RUN/best or a file; otherwise the newest run.", autocompletion=complete_run
    ),
]
Folder = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="All pictures below this folder, not the run's.", callback=expanded_path),
]
FEWEST = 12  # columns that a caption is worth showing in


def search(
    words: Annotated[list[str] | None, typer.Argument(metavar="TEXT", help="What is in the picture.")] = None,
    image: Picture = None,
    run: OneRun = None,
    images: Folder = None,
    model: Annotated[str | None, typer.Option(metavar="local-dir:FOLDER", help="Any model of open_clip.")] = None,
    count: Annotated[int, typer.Option("-k", min=1, max=10_000, help="How many.")] = 5,
    changes: Set = None,
    quiet: Annotated[bool, typer.Option("-q", help="Only the paths, one a line.")] = False,
    json_: Json = False,
    runs_dir: RunsDir = RUNS,
    device: Device = None,
    debug: Debug = False,
) -> int:
    """Find pictures by a sentence, or by a picture.

    [bold]clipcoco search a dog on a sofa[/bold]

    [bold]clipcoco search "a red car" --images ~/Pictures -k 20[/bold]
    """
    text = _checked(words, image, quiet and json_)
    if images is not None:
        check_folder(images)
    settings = data_changes(changes, [], "the search")
    found = find_run(runs_dir, run) if model is None or run is not None else None
    if found is None or found.run is None:
        refuse_links(runs_dir / "search", CheckpointError)
    from clipcoco.search.page import write_page
    from clipcoco.search.query import Query, Told, answer

    searched, gallery = _open(found, images, model, settings)
    name = found.run.name if found and found.run else None
    home = found.run.path if found and found.run else runs_dir / "search" / searched.home
    terminal = open_terminal()
    with RunConsole(terminal) as console:
        told = Told(console, lambda line: show(terminal.err, Text.assemble(("note: ", "yellow"), printable(line))))
        result = answer(Query(text, image), searched, gallery, home / "index", device, count, told)
    things = "captions" if result.captions else "images"
    if result.encoded:
        kept = ", kept for next time" if result.kept else ""
        took = say_seconds(result.encoding_seconds)
        show(terminal.err, f"Encoding {result.encoded:,} {things} … {took}{kept}")
    about = f"{name + ', ' if name else ''}{searched.words} · {result.captions or result.images:,} {things} of "
    about += result.gallery
    if quiet:  # to a program as they are, in bytes: a file name need not be text
        as_text = sys.stdout.isatty()
        paths = (printable(str(hit.path)).encode() if as_text else os.fsencode(hit.path) for hit in result.hits)
        write_out(b"\n".join(paths))
        return ExitCode.OK
    try:
        page = write_page(home / "search", result, about)
    except OSError as error:
        page = None
        told.tell(f"the page of pictures can't be written: {error.strerror} ({error.filename or home / 'search'})")
    if json_:
        print_json(_plain(result, name, searched.source, page))
    else:
        _show(terminal, result, about, page)
    return ExitCode.OK


def _checked(words: list[str] | None, image: Path | None, both_outputs: bool) -> str:
    """The query in words, or the name of the picture."""
    if both_outputs:
        raise ConfigError("-q and --json are both given (command line). Keep one")
    if words and image is not None:
        raise ConfigError("a text and --image are both given (command line). Keep one")
    if words is None and image is None:
        raise ConfigError('nothing to look for (command line). clipcoco search "a dog on a sofa", or --image FILE')
    if image is not None:
        check_picture(image)
        return image.name
    check_words(text := " ".join(words or []))
    return text


def _open(found: Found | None, images: Path | None, model: str | None, changes: list[str]) -> tuple["Model", "Gallery"]:
    """The gallery first when it is a folder: a mistyped path is told before a model is loaded."""
    if found is None and images is None:
        raise ConfigError("a model has no pictures of its own (--model). Add --images DIR, or --run RUN")
    from clipcoco.search import galleries, models

    gallery = galleries.folder_gallery(images) if images is not None else None
    searched = models.open_folder(model) if model is not None else None
    if gallery and searched:
        return searched, gallery
    assert found is not None
    ours, file = models.open_checkpoint(found.weights())
    if gallery is None:
        data = override(file.config, changes).data if changes else file.config.data
        gallery = galleries.validation_gallery(data, file.content.get("data", {}).get("source"))
    return searched or ours, gallery


def _plain(result: "Answer", run: str | None, model: str, page: Path | None) -> dict[str, object]:
    return {
        "schema": 1,
        "query": str(result.query.picture) if result.query.picture else result.query.words,
        "run": run,
        "model": model,
        "gallery": result.gallery,
        "images": result.images,
        "seconds": result.seconds,
        "hits": [
            {"rank": hit.rank, "score": hit.score, "file": str(hit.path), "caption": hit.caption} for hit in result.hits
        ],
        "page": str(page.absolute()) if page else None,
    }


def _show(terminal: Terminal, result: "Answer", about: str, page: Path | None) -> None:
    seconds = result.seconds
    took = f"{max(1, round(1000 * seconds))} ms" if seconds < 0.95 else say_seconds(seconds)
    show(terminal.err, f"{about} · {took}", "")
    show(terminal.out, *_rows(terminal.out, result.hits))
    if page:
        show(terminal.err, "", Text.assemble("  pictures  ", _linked(str(page), page.absolute())))


def _rows(console: Console, hits: tuple["Hit", ...]) -> list[Text]:
    """A line a hit; on a terminal no longer than it is wide, elsewhere whole."""
    ranks = max(2, len(str(len(hits))))
    names = [printable(hit.shown) for hit in hits]
    room = console.width - ranks - 12 if console.is_terminal else sys.maxsize
    width = min(max(map(cell_len, names), default=0), max(room, 8))
    lines = []
    for hit, name in zip(hits, names, strict=True):
        shown = name if cell_len(name) <= width else "…" + name[1 - width :]  # the end tells more
        line = Text.assemble(f"  {hit.rank:>{ranks}}  {hit.score:6.3f}  ", _linked(shown, hit.path))
        if hit.caption and room - width - 2 >= FEWEST:
            line.append(" " * (width - cell_len(shown) + 2))
            line.append(printable(hit.caption), "dim")
        if console.is_terminal:
            line.truncate(console.width, overflow="ellipsis")
        lines.append(line)
    return lines


def _linked(text: str, path: Path) -> Text:
    """A link that a terminal opens; plain text in a pipe or on a terminal that can't."""
    dumb = os.environ.get("TERM", "dumb").lower() in ("dumb", "unknown")
    return Text(text, Style(link=path.as_uri()) if sys.stdout.isatty() and not dumb else "")
