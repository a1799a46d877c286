"""`clipcoco prepare-data` and `clipcoco inspect-config`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from clipcoco.cli.options import Debug, Json, Preset, Set, print_json, split_words
from clipcoco.config.derive import OFFICIAL, Derived, derive
from clipcoco.config.load import LoadedConfig, dump, load_config, preset_names, presets_folder, to_plain
from clipcoco.console import open_terminal, say_bytes, show, summary_rows
from clipcoco.data.captions import check_files, count_entries, overlap, read_captions
from clipcoco.errors import ConfigError, ExitCode

BY_HAND = "unpack train2017.zip, val2017.zip and annotations_trainval2017.zip of cocodataset.org there"


def prepare_data(
    preset: Preset = None,
    train_fraction: Annotated[float | None, typer.Option(help="Of train2017's images.", show_default=False)] = None,
    val_fraction: Annotated[float | None, typer.Option(help="Of val2017's images.", show_default=False)] = None,
    root: Annotated[
        Path | None, typer.Option(help="The folder; the preset's data.root otherwise.", show_default=False)
    ] = None,
    changes: Set = None,
    json_: Json = False,
    debug: Debug = False,
) -> int:
    """Draw the embedded data set, or check a COCO folder.

    [bold]clipcoco prepare-data --preset demo[/bold]

    [bold]clipcoco prepare-data --preset small --root /data/coco[/bold]
    """
    terminal = open_terminal()
    overrides = [*(changes or [])]
    if train_fraction is not None:
        overrides.append(f"data.train_fraction={train_fraction}")
    if val_fraction is not None:
        overrides.append(f"data.val_fraction={val_fraction}")
    loaded = load_config(preset=preset or "full", overrides=overrides)
    folder = Path(root or loaded.config.data.root).expanduser()
    if "demo" in loaded.chain:
        from clipcoco.prepare.scenes import draw_scenes, is_drawn

        if is_drawn(folder):
            show(terminal.err, f"Nothing to do: the scenes are in {folder}.")
        else:
            draw_scenes(folder)
    data = loaded.config.data
    train = read_captions(folder, "train2017", get_them=BY_HAND).subset(data.train_fraction, data.subset_seed)
    val = read_captions(folder, "val2017", get_them=BY_HAND).subset(data.val_fraction, data.subset_seed)
    for note in (*train.notes, *val.notes):
        show(terminal.err, f"note: {note}")
    check_files(train, folder, get_them=BY_HAND)
    check_files(val, folder, get_them=BY_HAND)
    if both := overlap(train, val):
        show(terminal.err, f"warning: {both:,} images are in both splits: recall on them says little")
    counts = {
        "root": str(folder),
        "train_images": len(train.files),
        "train_captions": len(train.captions),
        "val_images": len(val.files),
        "val_captions": len(val.captions),
    }
    if json_:
        print_json({"schema": 1, **counts})
        return ExitCode.OK
    show(
        terminal.out,
        f"Ready: {len(train.files):,} train and {len(val.files):,} val images, "
        f"{len(train.captions) + len(val.captions):,} captions in {folder}.",
        f"Next: clipcoco train --preset {preset or 'full'}",
    )
    return ExitCode.OK


def inspect_config(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME or FILE", help="A preset or a file; nothing: the list.", show_default=False),
    ] = None,
    changes: Set = None,
    diff: Annotated[bool, typer.Option("--diff", help="Only what differs from base.")] = False,
    json_: Json = False,
    debug: Debug = False,
) -> int:
    """Every setting and where it comes from; the output is a valid config file.

    [bold]clipcoco inspect-config small --set train.epochs=10 > mine.yaml[/bold]

    [bold]clipcoco inspect-config[/bold]
    """
    terminal = open_terminal()
    word, bare = split_words(words)
    if word is None:
        if changes or bare:
            raise ConfigError("--set needs a preset or a file to change. Give its name")
        return _list_presets(json_)
    is_file = word not in preset_names() and (word.endswith((".yaml", ".yml")) or Path(word).exists())
    overrides = [*(changes or []), *bare]
    loaded = load_config(file=Path(word), overrides=overrides) if is_file else load_config(word, overrides=overrides)
    derived = _derive(loaded)
    if json_:
        config = to_plain(loaded.config)
        print_json({"schema": 1, "config": config, "source": loaded.source, "derived": asdict(derived)})
        return ExitCode.OK
    lines = [
        f"{derived.train_images:,} images · {derived.steps_per_epoch:,} steps an epoch · "
        f"{derived.total_steps:,} steps (counts: {derived.counted_from})",
        f"{derived.parameters / 1e6:.1f} M parameters · {say_bytes(derived.checkpoint_bytes)} a checkpoint, "
        f"{derived.checkpoints_kept} kept · loss at chance {derived.chance_loss:.3f}",
    ]
    show(terminal.out, *dump(loaded, lines, diff=diff).splitlines())
    return ExitCode.OK


def _derive(loaded: LoadedConfig) -> Derived:
    root = Path(loaded.config.data.root).expanduser()
    train, val = count_entries(root, "train2017"), count_entries(root, "val2017")
    where = str(root)
    if not (train and val):
        drawn = "demo" in loaded.chain
        where = "the scenes that will be drawn" if drawn else "the official table"
        train, val = ((6000, 30_000), (500, 2500)) if drawn else (OFFICIAL["train2017"], OFFICIAL["val2017"])
    return derive(
        loaded.config,
        train_images=train[0],
        train_captions=train[1],
        val_images=val[0],
        val_captions=val[1],
        counted_from=where,
    )


def _list_presets(json_: bool) -> int:
    terminal = open_terminal()
    loaded = {name: load_config(name) for name in preset_names()}
    if json_:
        print_json({"schema": 1, "presets": {name: to_plain(entry.config) for name, entry in loaded.items()}})
        return ExitCode.OK
    rows = []
    for name, entry in loaded.items():
        config = entry.config
        rows.append(
            (
                name,
                f"{config.data.root}: {config.data.train_fraction:.0%} train, {config.data.val_fraction:.0%} val; "
                f"batch {config.train.batch_size}, {config.train.epochs} epochs, {config.model.vision.backbone}",
            )
        )
    show(
        terminal.out,
        *summary_rows(rows),
        "",
        f"in {presets_folder()}",
        "clipcoco inspect-config NAME shows every setting",
    )
    return ExitCode.OK
