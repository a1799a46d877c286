"""Options that several commands share."""

import glob
import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipcoco.config.text import expanded, one_line
from clipcoco.errors import ConfigError

if TYPE_CHECKING:  # to help and to complete asks for no settings
    from clipcoco.config.load import LoadedConfig


def expanded_path(value: Path | None) -> Path | None:
    """The callback of each option that is a path: after `--option=` no shell fills in ~."""
    return None if value is None else expanded(value)


def _known_device(value: str | None) -> str | None:
    if value is not None:
        from clipcoco.config.messages import check_device

        check_device(value)
    return value


def complete_preset(incomplete: str) -> list[str]:
    from clipcoco.config.load import preset_names

    return [name for name in preset_names() if name.startswith(incomplete)]


def complete_config(incomplete: str) -> list[str]:
    """Presets and YAML files."""
    return [*complete_preset(incomplete), *_safe(_starting(incomplete, "*.yaml") + _starting(incomplete, "*.yml"))]


def complete_setting(context: typer.Context, incomplete: str) -> list[str]:
    """`train.epochs=`, and behind it the values of a setting that has few; bash cuts the words at the `=`."""
    from clipcoco.config.schema import SETTINGS, choices

    key, equals, value = incomplete.partition("=")
    typed = [word for words in context.params.values() if isinstance(words, list) for word in words]
    if not equals and typed[-1:] == ["="]:
        return [one for one in choices(typed[-2]) if one.startswith(value or key)]
    if not equals:
        return [f"{name}=" for name in SETTINGS if name.startswith(key)]
    return [f"{key}={one}" for one in choices(key) if one.startswith(value)]


def complete_from(*values: str) -> Callable[[str], list[str]]:
    return lambda incomplete: [value for value in values if value.startswith(incomplete)]


def complete_bare(context: typer.Context, incomplete: str) -> list[str]:
    """What `train` takes without an option."""
    return [*complete_config(incomplete), *(complete_setting(context, incomplete) if incomplete else [])]


def complete_run(context: typer.Context, incomplete: str) -> list[str]:
    """Runs in --runs-dir; after `RUN/` its checkpoints; and checkpoint files."""
    runs_dir = os.path.expanduser(context.params.get("runs_dir") or RUNS)  # as typed: no shell has expanded it
    name, slash, part = incomplete.partition("/")
    if slash:
        checkpoints = _starting(f"{runs_dir}/{name}/checkpoints/{part}", "*.pt")
        found = [f"{name}/{Path(file).stem}" for file in checkpoints]
    else:
        found = [Path(file).parent.name for file in _starting(f"{runs_dir}/{incomplete}", "*/config.yaml")]
    return sorted(_safe(found + _starting(incomplete, "*.pt")))


def _starting(start: str, pattern: str) -> list[str]:
    return glob.glob(glob.escape(start) + pattern)


def _safe(words: list[str]) -> list[str]:
    """Those that a shell takes as they stand: it evaluates what completion prints, and a name may be anything."""
    return [word for word in words if shlex.quote(word) == word]


RUNS = Path("runs")

Preset = Annotated[
    str | None, typer.Option(help="demo, tiny, small, medium, full or own.", autocompletion=complete_preset)
]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="A YAML file instead.", callback=expanded_path)]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; repeatable.", autocompletion=complete_setting),
]
Bare = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[PRESET or FILE] KEY=VALUE",
        help="A preset or a file without its option; settings as with --set.",
        autocompletion=complete_bare,
    ),
]
Run = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RUN",
        help="A name, a unique prefix, a preset (its newest run), a path, RUN/best; nothing: the newest run.",
        autocompletion=complete_run,
    ),
]
Init = Annotated[
    str | None,
    typer.Option(
        metavar="RUN or FILE", help="Start from these weights, with a fresh optimiser.", autocompletion=complete_run
    ),
]
RunsDir = Annotated[Path, typer.Option(help="The folder of the runs.", callback=expanded_path)]
Device = Annotated[
    str | None,
    typer.Option(
        help="auto, cpu, cuda, cuda:N or mps.",
        callback=_known_device,
        autocompletion=complete_from("auto", "cpu", "cuda", "cuda:", "mps"),
    ),
]
Plain = Annotated[bool, typer.Option("--plain", help="Plain lines, no panel.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback on errors.")]


def load_from(
    preset: str | None, file: Path | None, changes: list[str] | None, bare: list[str] | None, runs_dir: Path = RUNS
) -> "LoadedConfig":
    """The configuration that --preset or --config and --set name together."""
    from clipcoco.config.load import load_config, preset_names
    from clipcoco.config.messages import suggestion
    from clipcoco.config.schema import SETTINGS

    words = [word for word in bare or [] if "=" not in word]
    if words and (preset or file or words[1:] or words[0] in SETTINGS):
        word = words[0] if preset or file else words[-1]
        example = suggestion(word) or "train.epochs"
        raise ConfigError(f"'{word}' is not a setting (command line). Settings are KEY=VALUE, as in {example}=VALUE")
    if words and (words[0].endswith((".yaml", ".yml")) or os.path.isfile(words[0])):
        file = Path(words[0])
    elif words:
        preset = words[0]
    if preset not in preset_names():
        _refuse_run(preset or str(file or ""), runs_dir)
    if (preset is None) == (file is None):
        which = "--preset and --config are both given" if preset else "no settings are named"
        raise ConfigError(f"{which} (command line). Give --preset NAME ({', '.join(preset_names())}) or --config FILE")
    return load_config(
        preset=preset, file=file, overrides=[*(changes or []), *(word for word in bare or [] if "=" in word)]
    )


def _refuse_run(word: str, runs_dir: Path) -> None:
    """A run or a checkpoint in the place of a preset or a file: what was meant is to go on with it."""
    from clipcoco.runs.directory import RunDir

    folders = (folder for folder in (Path(word), runs_dir / word) if word and (folder / "config.yaml").is_file())
    if word.endswith(".pt") and os.path.isfile(word):
        kind, named = "checkpoint", shlex.quote(word)
    elif run := next(folders, None):
        kind, named = "run", RunDir(run).words
    else:
        return
    going_on = f"To go on with a run: clipcoco resume {named}"
    raise ConfigError(f"{one_line(word)} is a {kind}, not a configuration (command line). {going_on}")


def data_changes(changes: list[str] | None, bare: list[str], what: str) -> list[str]:
    """The settings of a command that measures or uses a checkpoint, as far as they can be checked without it."""
    from clipcoco.config.load import load_config

    given = [*(changes or []), *bare]
    if wrong := [change for change in given if not change.startswith("data.")]:
        raise ConfigError(f"{wrong[0]} would change the model, not {what} (--set). Only data.* can be set")
    load_config("base", overrides=given)
    return given


def print_json(value: object) -> None:
    """One object on stdout."""
    write_out(json.dumps(value).encode())


def write_out(text: bytes) -> None:
    """To a program that reads stdout; one that has gone is not an error."""
    try:
        typer.echo(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def split_words(words: list[str] | None) -> tuple[str | None, list[str]]:
    """RUN and bare settings out of the words on the command line."""
    runs = [word for word in words or [] if "=" not in word]
    if len(runs) > 1:
        raise ConfigError(f"'{runs[1]}' is one name too many (command line). Give one, and settings as KEY=VALUE")
    return (runs[0] if runs else None), [word for word in words or [] if "=" in word]
