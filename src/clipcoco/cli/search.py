"""`clipcoco search`."""

import os
import sys
from contextlib import suppress
from dataclasses import dataclass, field
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
from clipcoco.console import RunConsole, Terminal, error_line, open_terminal, printable, say_seconds, show
from clipcoco.disk.links import refuse_links
from clipcoco.errors import CheckpointError, ClipcocoError, ConfigError, ExitCode
from clipcoco.runs.names import Found, find_run
from clipcoco.search import check_folder, check_picture, check_words
from clipcoco.search.folder import check_model

if TYPE_CHECKING:
    from clipcoco.search.galleries import Gallery
    from clipcoco.search.index import Index
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
FEWEST = 40  # columns that a caption is worth being cut to


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
    """Find pictures by a sentence, or by a picture; without either, asks for sentences.

    [bold]clipcoco search a dog on a sofa[/bold]

    [bold]clipcoco search "a red car" --images ~/Pictures -k 20[/bold]
    """
    query = _checked(words, image, quiet, json_)
    if images is not None:
        check_folder(images)
    settings = data_changes(changes, [], "the search")
    found = find_run(runs_dir, run) if model is None or run is not None else None
    if found is None or found.run is None:
        refuse_links(runs_dir / "search", CheckpointError)
    if found is None and images is None:
        raise ConfigError("a model has no pictures of its own (--model). Add --images DIR, or --run RUN")
    if model is not None:
        check_model(model)
    # ---- from here on torch, whose import takes seconds
    terminal = open_terminal()
    if watched := sys.stderr.isatty() and not quiet:
        show(terminal.err, f"Reading {model or (found and found.words)} …")
    from clipcoco.runs.record import NEVER

    searched, gallery, worth = _open(found, images, model, settings)
    home = found.run.path if found and found.run else runs_dir / "search" / searched.home
    named = f"{found.run.name}, {searched.words}" if found and found.run else searched.words
    search = _Search(terminal, searched, gallery, home, device, count, f"{named}{worth}")
    if watched:
        show(terminal.err, search.about)
    elif (quiet or json_) and worth.endswith(NEVER):
        search.tell(search.about)
    if query is None:
        return _ask(search)
    result = search.answer(query, image)
    if not (quiet or json_):
        if not watched:
            show(terminal.err, search.about)
        search.show(result)
        return ExitCode.OK
    search.say_encoded(result)
    if json_:
        name = found.run.name if found and found.run else None
        print_json(_plain(result, name, searched.source, search.page(result)))
    else:
        _write_paths(result)
    return ExitCode.OK


def _write_paths(result: "Answer") -> None:
    """To a program as they are, in bytes: a file name need not be text."""
    as_text = sys.stdout.isatty()
    paths = (printable(str(hit.path)).encode() if as_text else os.fsencode(hit.path) for hit in result.hits)
    write_out(b"\n".join(paths))


@dataclass
class _Search:
    """A model and a gallery that stay open from question to question."""

    terminal: Terminal
    model: "Model"
    gallery: "Gallery"
    home: Path  # of the index, and of the pages
    device: str | None
    count: int
    about: str  # the model, and what it is worth
    index: "Index | None" = None
    told: set[str] = field(default_factory=set)

    def tell(self, note: str) -> None:
        """Each note once."""
        if note not in self.told:
            self.told.add(note)
            show(self.terminal.err, Text.assemble(("note: ", "yellow"), printable(note)))

    def answer(self, words: str, image: Path | None) -> "Answer":
        from clipcoco.search.query import Query, Told, answer, open_index

        self.index = self.index or open_index(self.model, self.gallery, self.home / "index")
        with RunConsole(self.terminal) as console:
            query, told = Query(words, image), Told(console, self.tell)
            return answer(query, self.model, self.gallery, self.index, self.device, self.count, told)

    def say_encoded(self, result: "Answer") -> None:
        if result.encoded:
            kept = ", kept for next time" if result.kept else ""
            took = say_seconds(result.encoding_seconds)
            show(self.terminal.err, f"Encoding {result.encoded:,} images … {took}{kept}")

    def page(self, result: "Answer") -> Path | None:
        from clipcoco.search.page import write_page

        try:
            return write_page(self.home / "search", result, f"{self.about} · {_where(result)}")
        except OSError as error:
            why = f"{error.strerror} ({error.filename or self.home / 'search'})"
            self.tell(f"the page of pictures can't be written: {why}")
            return None

    def show(self, result: "Answer") -> None:
        self.say_encoded(result)
        page, terminal, seconds = self.page(result), self.terminal, result.seconds
        took = f"{max(1, round(1000 * seconds))} ms" if seconds < 0.95 else say_seconds(seconds)
        show(terminal.err, f"{_where(result)} · {took}", "")
        show(terminal.out, *_rows(terminal.out, result.hits))
        if page:
            show(terminal.err, "", Text.assemble("  pictures  ", _linked(str(page), page.absolute())))


def _where(result: "Answer") -> str:
    return f"{result.images:,} images of {result.gallery}"


def _ask(search: _Search) -> int:
    """Questions until an empty line; an error of one ends none of the others."""
    with suppress(ImportError):
        import readline  # noqa: F401  # input() then has a history, and lines that can be edited
    show(search.terminal.err, "Say what is in the picture; an empty line ends.")
    while True:
        show(search.terminal.err, "")
        try:
            words = input("search: ")
            if not words.strip():
                return ExitCode.OK
            search.show(search.answer(words, None))
        except EOFError:
            show(search.terminal.err, "")
            return ExitCode.OK
        except KeyboardInterrupt:
            show(search.terminal.err, "")
            raise
        except UnicodeDecodeError as error:
            error_line(f"the question is not text: {error.reason} (terminal). Ask again")
        except ClipcocoError as error:
            error_line(str(error))


def _checked(words: list[str] | None, image: Path | None, quiet: bool, json_: bool) -> str | None:
    """The query in words, or the name of the picture; None where somebody is to be asked."""
    if quiet and json_:
        raise ConfigError("-q and --json are both given (command line). Keep one")
    if words and image is not None:
        raise ConfigError("a text and --image are both given (command line). Keep one")
    if image is not None:
        check_picture(image)
        return image.name
    if words is None:
        if sys.stdin.isatty() and sys.stdout.isatty() and not (quiet or json_):
            return None
        raise ConfigError('nothing to look for (command line). clipcoco search "a dog on a sofa", or --image FILE')
    check_words(text := " ".join(words))
    return text


def _open(
    found: Found | None, images: Path | None, model: str | None, changes: list[str]
) -> tuple["Model", "Gallery", str]:
    """With what the model was measured to be worth. A folder comes first: a mistyped path is told before a model loads.

    No model has pictures of its own but a run's.
    """
    from clipcoco.runs.record import measured, say_measured
    from clipcoco.search import galleries, models

    gallery = galleries.folder_gallery(images) if images is not None else None
    searched = models.open_folder(model) if model is not None else None
    if gallery and searched:
        return searched, gallery, ""
    assert found is not None
    ours, file = models.open_checkpoint(found.weights())
    if gallery is None:
        data = override(file.config, changes).data if changes else file.config.data
        gallery = galleries.own_gallery(data, file.content.get("data", {}).get("source"))
    if searched:
        return searched, gallery, ""
    total = found.run.status().total_steps if found.run else None
    step = f"step {file.content['state']['step']:,}" + (f" of {total:,}" if total else "")
    recall = measured(found.run, file.content, file.config.model.text.caution)
    return ours, gallery, f", {step}: {say_measured(recall)}"


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


def _rows(console: Console, hits: tuple["Hit", ...]) -> list[Text]:
    """A line a hit, its caption cut on a terminal; where that leaves too little of it, whole on lines of its own."""
    ranks = max(2, len(str(len(hits))))
    names = [printable(hit.shown) for hit in hits]
    width = max(map(cell_len, names), default=0)
    beside = not console.is_terminal or console.width - ranks - width - 14 >= FEWEST
    lines = []
    for hit, name in zip(hits, names, strict=True):
        line = Text.assemble(f"  {hit.rank:>{ranks}}  {hit.score:6.3f}  ", _linked(name, hit.path))
        below = Text(" " * (ranks + 12) + printable(hit.caption or ""), "dim")
        if hit.caption and beside:
            line.append(" " * (width - cell_len(name) + 2))
            line.append(printable(hit.caption), "dim")
            if console.is_terminal:
                line.truncate(console.width, overflow="ellipsis")
        lines += [line, below] if hit.caption and not beside else [line]
    return lines


def _linked(text: str, path: Path) -> Text:
    """A link that a terminal opens; plain text in a pipe or on a terminal that can't."""
    dumb = os.environ.get("TERM", "dumb").lower() in ("dumb", "unknown")
    return Text(text, Style(link=path.as_uri()) if sys.stdout.isatty() and not dumb else "")
