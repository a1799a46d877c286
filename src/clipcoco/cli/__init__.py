"""The command line: parse, call one function, show. Of all commands one is imported, and torch when that needs it."""

import errno
import importlib
import os
import signal
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from clipcoco.cli.signals import NAMES, handled
from clipcoco.cores import processes
from clipcoco.errors import (
    ClipcocoError,
    ConfigError,
    EnvironmentProblem,
    ExitCode,
    Unheard,
    broken_package,
    is_out_of_memory,
)
from clipcoco.version import __version__

# Their names, in what file and function each is, under what title it is listed, and how its help begins.
COMMANDS = {
    "train": ("train.train", "Train and measure", "Train a model; ends with its recall table."),
    "resume": ("train.resume", "Train and measure", "Go on with a stopped run, to the same bits as without the stop."),
    "eval": (
        "evaluate.evaluate",
        "Train and measure",
        "Measure recall of a run's best checkpoint, or of any checkpoint.",
    ),
    "prepare-data": (
        "prepare.prepare_data",
        "Data",
        "Get COCO onto the disk, resumable and verified; or your own pictures.",
    ),
    "inspect-config": (
        "inspect.inspect_config",
        "Look",
        "Every setting and where it comes from; the output is a valid config file.",
    ),
    "runs": (
        "runs.runs",
        "Look",
        "All runs, the best first; one run and what to do next; or what differs between two, settings and recalls.",
    ),
    "report": (
        "report.report",
        "Look",
        "Write the page of a run, report.html; measures its best checkpoint first, unless that is done.",
    ),
    "env": (
        "env.env",
        "Look",
        "One block about this machine to paste into a bug report. No names of hosts or users, no secrets.",
    ),
    "search": (
        "search.search",
        "Use",
        "Find pictures by a sentence, or by a picture; without either, asks for sentences.",
    ),
    "share": (
        "share.share",
        "Use",
        "Make one HTML file that searches pictures by what is typed, offline, in any browser: to look at, and to send.",
    ),
    "export": (
        "export.export",
        "Use",
        "Take a run's best model elsewhere: compared with the checkpoint on tensors and recall before it is there.",
    ),
}
_SETTINGS: dict[str, Any] = {
    "context_settings": {"help_option_names": ["-h", "--help"]},
    "pretty_exceptions_enable": False,
    "rich_markup_mode": "rich",
}


class _Commands(Mapping[str, Any]):
    """Each is imported when it is asked for."""

    def __getitem__(self, name: str) -> Any:
        module, function = COMMANDS[name][0].split(".")
        one = typer.Typer(add_completion=False, **_SETTINGS)
        one.command(name)(getattr(importlib.import_module(f"{__name__}.{module}"), function))
        return typer.main.get_command(one)

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


class _Group(TyperGroup):
    """Lists commands without importing them."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands: Any = _Commands()

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """To be listed."""
        if cmd_name not in COMMANDS:
            return None
        _, title, line = COMMANDS[cmd_name]
        return TyperCommand(cmd_name, help=line, rich_help_panel=title)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """To be run, or helped with."""
        name, listed, rest = super().resolve_command(ctx, args)
        return name, listed and self.commands[name], rest


app = typer.Typer(cls=_Group, **_SETTINGS)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", "-V", help="Show the version and leave.")] = False,
) -> None:
    """Train a CLIP-style image-text model on COCO captions, and measure its retrieval honestly.

    [bold]clipcoco train --preset demo[/bold]      a recall table in minutes, offline

    [bold]clipcoco inspect-config small[/bold]     every setting, and where it comes from
    """
    if version:
        typer.echo(f"clipcoco {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())
    elif processes()[0] and context.invoked_subcommand not in ("train", "resume"):
        raise typer.Exit  # one of many that a launcher started: the first one is enough for it
    elif context.invoked_subcommand != "env":
        try:  # before torch is imported, which without a working directory ends the process in a way of its own
            os.getcwd()
        except OSError as error:
            what = f"the working directory is gone: {error.strerror} (cd)"
            raise EnvironmentProblem(f"{what}. Change to a folder that exists") from error


_FIRST = {"help": "--help", "version": "--version"}  # commands elsewhere


class _Terminated(BaseException):
    """SIGTERM, SIGUSR1 or SIGHUP while there is nothing to save."""


def _terminate(*_: object) -> None:
    raise _Terminated


def run(arguments: Sequence[str]) -> int:
    """Run one command; gives the exit code. An error is one line, a traceback only with --debug."""
    words = [_FIRST.get(word, word) if i == 0 else word for i, word in enumerate(arguments)]
    if words[:1] == ["--help"] and len(words) > 1:  # `clipcoco help train`
        words = [*words[1:], "--help"]
    try:
        with handled(NAMES.keys() - {signal.SIGINT}, _terminate):
            code = app(args=words, standalone_mode=False)
        return code if isinstance(code, int) else ExitCode.OK
    except _Terminated:
        return ExitCode.TERMINATED
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # `--help | head` has seen enough
            return ExitCode.OK
        return stop.code if isinstance(stop.code, int) else ExitCode.BUG
    except Exception as error:
        match error.__cause__:  # of a signal in an import, while it makes a class
            case _Terminated():
                return ExitCode.TERMINATED
            case KeyboardInterrupt():
                return ExitCode.INTERRUPTED
        return _tell(error, words)


def _tell(error: Exception, words: Sequence[str]) -> int:
    """One line for each mistake; gives the exit code."""
    from clipcoco.cli.habits import say_usage
    from clipcoco.config.text import shown
    from clipcoco.console import error_line

    if hasattr(error, "format_message"):  # typer's own, for usage: it vendors click, so no class to name
        error_line(say_usage(error, words))
        return ExitCode.CONFIG
    if "--debug" in words:
        with suppress(OSError):
            traceback.print_exc()
    known = error if isinstance(error, ClipcocoError) else broken_package(error)
    if processes()[0] and not isinstance(error, Unheard):  # process 0 says it for all
        return known.exit_code if known else ExitCode.BUG
    if known is not None:
        error_line(*(known.mistakes if isinstance(known, ConfigError) else [str(known)]))
        return known.exit_code
    if is_out_of_memory(error):
        what = f"there is not enough memory ({type(error).__name__})"
        error_line(f"{what}. Close other programs, or try another --device")
        return ExitCode.ENVIRONMENT
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        error_line(f"{shown(str(error.filename))} is longer than a name can be (command line). Shorten it")
        return ExitCode.CONFIG
    if isinstance(error, OSError):
        error_line(f"{error.strerror or error} ({error.filename or 'no file named'}). Check disk, path and permission")
        return ExitCode.ENVIRONMENT
    what = str(error).strip().splitlines()[0] if str(error).strip() else ""
    error_line(f"this is a bug in clipcoco: {type(error).__name__}: {what}. --debug shows where")
    return ExitCode.BUG
