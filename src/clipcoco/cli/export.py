"""`clipcoco export`."""

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipcoco.cli.options import (
    RUNS,
    Debug,
    Json,
    Run,
    RunsDir,
    Set,
    data_changes,
    expanded_path,
    print_json,
    split_words,
)
from clipcoco.config.load import override
from clipcoco.console import RunConsole, open_terminal, say_bytes, show
from clipcoco.errors import ConfigError, ExitCode
from clipcoco.export import NEEDS, check_request
from clipcoco.runs.names import Found, find_run

if TYPE_CHECKING:
    from clipcoco.export.write import Export


def _formats(incomplete: str) -> list[str]:
    return [name for name in NEEDS if name.startswith(incomplete)]


def export(
    format_: Annotated[str, typer.Option("--format", help="open_clip, safetensors or onnx.", autocompletion=_formats)],
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="A new folder for it.", callback=expanded_path)],
    words: Run = None,
    int8: Annotated[bool, typer.Option("--int8", help="Weights of 8 bits, for onnx; recall may lose a point.")] = False,
    changes: Set = None,
    runs_dir: RunsDir = RUNS,
    json_: Json = False,
    debug: Debug = False,
) -> int:
    """Take a run's best model elsewhere: compared with the checkpoint on tensors and recall before it is there.

    [bold]clipcoco export small --format open_clip --output small-open-clip[/bold]

    [bold]clipcoco export RUN/last --format onnx --output onnx --set data.root=DIR[/bold]
    """
    if format_ not in NEEDS:
        near = difflib.get_close_matches(format_, NEEDS, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Choose {', '.join(NEEDS)}"
        raise ConfigError(f"no format '{format_}' (--format). {hint}")
    if int8 and format_ != "onnx":
        raise ConfigError(f"--int8 is for --format onnx, not {format_} (command line). Leave one out")
    name = f"{format_} int8" if int8 else format_
    word, bare = split_words(words)
    changes = data_changes(changes, bare, "the comparison")
    check_request(name, output)
    found = find_run(runs_dir, word)
    from clipcoco.engine.model_file import open_model
    from clipcoco.export.write import export_model

    model_file = open_model(found.weights())
    data = override(model_file.config, changes).data if changes else model_file.config.data
    with RunConsole(open_terminal()) as console:
        exported = export_model(model_file, found.run, name, output, data, console)
    return _show(exported, found, name, json_)


def _show(exported: "Export", found: Found, format_: str, json_: bool) -> int:
    terminal, parity = open_terminal(), exported.parity
    if parity.note:
        show(terminal.err, f"note: recall was not compared: {parity.note}")
    if json_:
        result = {"schema": 1, "run": found.run.name if found.run else None, "checkpoint": str(found.weights())}
        print_json({**result, "format": format_, **exported.to_plain()})
        return ExitCode.OK
    size = say_bytes(sum(exported.files.values()))
    lines = [
        f"{found.run.name if found.run else found.weights()}, {found.weights().stem} -> {exported.folder} ({size})",
        f"embeddings differ by {parity.difference:.1e} at most, token ids of {parity.texts:,} texts not at all",
    ]
    if parity.texts_cleaned:
        lines.append(f"{format_} itself cleans {parity.texts_cleaned:,} of these texts to other ids than in training")
    if parity.recall:
        before, after = parity.recall.checkpoint, parity.recall.export
        lines.append(
            f"mean R@1 on {after.images:,} validation images: {before.r1:.2f} of the checkpoint, "
            f"{after.r1:.2f} of the export"
        )
    show(terminal.out, *lines, f"how to load it: {exported.folder / 'README.md'}")
    return ExitCode.OK
