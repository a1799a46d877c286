"""`clipcoco inspect-config`."""

import contextlib
import os
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from clipcoco.cli.options import Debug, Json, Set, complete_config, print_json, split_words
from clipcoco.config.derive import DRAWN, IN_TRAIN, OFFICIAL, Derived, derive
from clipcoco.config.load import LoadedConfig, dump, load_config, preset_in, preset_names, presets_folder, to_plain
from clipcoco.config.schema import json_schema
from clipcoco.console import open_terminal, say_bytes, show, summary_rows
from clipcoco.data.annotations import SPLITS, count_entries
from clipcoco.errors import ConfigError, DataError, ExitCode
from clipcoco.say import say_count

EDITORS = "# yaml-language-server: $schema=clipcoco.schema.json"  # for those who keep `--schema` beside it


def inspect_config(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME or FILE", help="A preset or a file; nothing: the list.", autocompletion=complete_config
        ),
    ] = None,
    changes: Set = None,
    diff: Annotated[bool, typer.Option("--diff", help="Only what differs from base.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="A JSON Schema of such files, for editors.")] = False,
    json_: Json = False,
    debug: Debug = False,
) -> int:
    """Every setting and where it comes from; the output is a valid config file.

    [bold]clipcoco inspect-config small --set train.epochs=10 > mine.yaml[/bold]

    [bold]clipcoco inspect-config[/bold]
    """
    terminal = open_terminal()
    if schema:
        if words or changes or diff:
            raise ConfigError("--schema is the same for all presets and files (command line). Give nothing else")
        print_json(json_schema())
        return ExitCode.OK
    word, bare = split_words(words)
    if word is None:
        if changes or bare:
            raise ConfigError("--set needs a preset or a file to change. Give its name")
        return _list_presets(json_)
    is_file = word not in preset_names() and (word.endswith((".yaml", ".yml")) or os.path.exists(word))
    if is_file and not os.path.exists(word) and (meant := preset_in(Path(word).stem)):
        raise ConfigError(f"no configuration file at {word}. For the preset: clipcoco inspect-config {meant}")
    overrides = [*(changes or []), *bare]
    loaded = load_config(file=Path(word), overrides=overrides) if is_file else load_config(word, overrides=overrides)
    derived, on_a_cpu = _derive(loaded), None
    with contextlib.suppress(ConfigError, DataError):  # of a recipe that may never be used
        on_a_cpu = _derive(loaded, "cpu")
    show(terminal.err, *(f"warning: {note}" for note in loaded.notes))
    if json_:
        config = to_plain(loaded.config)
        counts = {"derived": asdict(derived), "derived_on_a_cpu": asdict(on_a_cpu) if on_a_cpu else None}
        print_json({"schema": 1, "config": config, "source": loaded.source, **counts})
        return ExitCode.OK
    lines = [
        f"{derived.train_images:,} images · {_steps(derived)} (counts: {derived.counted_from})",
        *([f"on a CPU {_steps(on_a_cpu)}"] if on_a_cpu and on_a_cpu.cached != derived.cached else []),
        f"{derived.parameters / 1e6:.1f} M parameters and {say_bytes(derived.checkpoint_bytes)} a checkpoint at most, "
        f"{derived.checkpoints_kept} kept",
    ]
    width = terminal.out.width if sys.stdout.isatty() else sys.maxsize
    show(terminal.out, *_narrow([EDITORS, *dump(loaded, lines, diff=diff).splitlines()], width), whole=True)
    return ExitCode.OK


def _narrow(lines: list[str], width: int) -> Iterator[str]:
    """Comments move nearer, or below their values, where lines are too long: what is copied is valid still."""
    for line in lines:
        value, *comment = re.split(r" +(?=# )", line, maxsplit=1) if len(line) > width and line[0] != "#" else [line]
        nearer = " ".join((value, *comment))
        for part in [nearer] if len(nearer) <= width else [value, *comment]:
            yield from textwrap.wrap(part, width, subsequent_indent="# ") if part[0] == "#" else [part]


def _steps(derived: Derived) -> str:
    by = ", by train.cached, for all are frozen" if derived.cached else ""
    return f"{say_count(derived.steps_per_epoch, 'step')} an epoch · {say_count(derived.total_steps, 'step')}{by}"


def _derive(loaded: LoadedConfig, device: str = "") -> Derived:
    root = loaded.config.data.folder
    train, val = (count_entries(root, split) for split in SPLITS.values())
    where = str(root)
    if not (train and val):
        from clipcoco.prepare.scenes import to_be_drawn  # and Pillow

        drawn = to_be_drawn(loaded)
        where = "the scenes that will be drawn" if drawn else "the official table"
        train, val = (DRAWN if drawn else OFFICIAL).values()
    if loaded.config.data.exclude != "none" and train == OFFICIAL["train"]:  # of a part of COCO nobody counts them
        train = train[0] - IN_TRAIN[0], train[1] - IN_TRAIN[1]
    return derive(loaded.config, train, val, where, device)


def _list_presets(json_: bool) -> int:
    configs = {name: load_config(name).config for name in preset_names()}
    if json_:
        print_json({"schema": 1, "presets": {name: to_plain(config) for name, config in configs.items()}})
        return ExitCode.OK
    rows = [
        (
            name,
            f"{config.data.root}: {config.data.train_fraction:.0%} train, {config.data.val_fraction:.0%} val; "
            f"batch {config.train.batch_size}, {config.train.epochs} epochs, {config.model.vision.backbone}",
        )
        for name, config in configs.items()
    ]
    below = f"in {presets_folder()}", "clipcoco inspect-config NAME shows every setting"
    show(open_terminal().out, *summary_rows(rows), "", *below)
    return ExitCode.OK
