"""Options that several commands share."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from clipcoco.config.load import LoadedConfig, load_config, preset_names
from clipcoco.errors import ConfigError

_debug = False


def _note_debug(value: bool) -> None:
    global _debug
    _debug = value


def debugging() -> bool:
    return _debug


def _presets(incomplete: str) -> list[str]:
    return [name for name in preset_names() if name.startswith(incomplete)]


def _runs(incomplete: str) -> list[str]:
    folder = Path("runs")
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    return [name for name in names if name.startswith(incomplete) and not name.startswith(".")]


Preset = Annotated[
    str | None,
    typer.Option(help="demo, tiny, small, medium or full.", autocompletion=_presets, show_default=False),
]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="A YAML file instead.", show_default=False)]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; repeatable.", show_default=False),
]
Bare = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="The same as --set.", show_default=False),
]
Run = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RUN",
        help="A name, a unique prefix, a preset (its newest run), a path, RUN/best; nothing: the newest run.",
        autocompletion=_runs,
        show_default=False,
    ),
]
RunsDir = Annotated[Path, typer.Option(help="Where the runs lie.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.", show_default=False)]
Plain = Annotated[bool, typer.Option("--plain", help="Plain lines, no panel.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback on errors.", callback=_note_debug)]

RUNS = Path("runs")


def load_from(preset: str | None, file: Path | None, changes: list[str] | None, bare: list[str] | None) -> LoadedConfig:
    """The configuration that --preset or --config and --set name together."""
    for word in bare or []:
        if "=" not in word:
            hint = f"Did you mean --preset {word}?" if word in preset_names() else "Settings are KEY=VALUE"
            raise ConfigError(f"'{word}' is not a setting (command line). {hint}")
    if (preset is None) == (file is None):
        which = "Not both" if preset else "Which settings?"
        raise ConfigError(f"{which}: give --preset NAME ({', '.join(preset_names())}) or --config FILE")
    return load_config(preset=preset, file=file, overrides=[*(changes or []), *(bare or [])])


def print_json(value: object) -> None:
    """One object on stdout; a reader that has gone is no error."""
    try:
        typer.echo(json.dumps(value))
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def split_words(words: list[str] | None) -> tuple[str | None, list[str]]:
    """RUN and bare settings out of the words on the command line."""
    runs = [word for word in words or [] if "=" not in word]
    if len(runs) > 1:
        raise ConfigError(f"'{runs[1]}' is one run too many (command line). Give one")
    return (runs[0] if runs else None), [word for word in words or [] if "=" in word]
