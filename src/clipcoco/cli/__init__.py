"""The command line: parse, call one function, show. Nothing here imports torch before a command needs it."""

import errno
import os
import signal
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated

import typer

from clipcoco.cli import env, evaluate, export, inspect, prepare, report, runs, search, share, train
from clipcoco.cli.habits import say_usage
from clipcoco.cli.signals import NAMES, handled
from clipcoco.config.text import shown
from clipcoco.console import error_line
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

app = typer.Typer(
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

app.command("train", rich_help_panel="Train and measure")(train.train)
app.command("resume", rich_help_panel="Train and measure")(train.resume)
app.command("eval", rich_help_panel="Train and measure")(evaluate.evaluate)
app.command("prepare-data", rich_help_panel="Data")(prepare.prepare_data)
app.command("inspect-config", rich_help_panel="Look")(inspect.inspect_config)
app.command("runs", rich_help_panel="Look")(runs.runs)
app.command("report", rich_help_panel="Look")(report.report)
app.command("env", rich_help_panel="Look")(env.env)
app.command("search", rich_help_panel="Use")(search.search)
app.command("share", rich_help_panel="Use")(share.share)
app.command("export", rich_help_panel="Use")(export.export)


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
