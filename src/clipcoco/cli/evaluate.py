"""`clipcoco eval`."""

import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipcoco.cli.audit import audit as audit_file
from clipcoco.cli.options import (
    RUNS,
    ConfigFile,
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
from clipcoco.config.load import LoadedConfig, flatten, load_config, override
from clipcoco.config.schema import DataConfig
from clipcoco.console import (
    RunConsole,
    Terminal,
    composition_table,
    extended_tables,
    open_terminal,
    recall_tables,
    say_seconds,
    show,
)
from clipcoco.data.annotations import MEASURED, SPLITS
from clipcoco.errors import CheckpointError, ConfigError, DataError, ExitCode
from clipcoco.runs.directory import RunDir
from clipcoco.runs.names import Found, find_run, found_file

if TYPE_CHECKING:
    from clipcoco.engine.embeddings import Seen
    from clipcoco.runs.measure import Evaluation

Checkpoint = Annotated[Path | None, typer.Option(help="A checkpoint file instead.", callback=expanded_path)]
FromEmbeddings = Annotated[
    Path | None,
    typer.Option(metavar="FILE.npz", help="Evaluate any model's embeddings.", callback=expanded_path),
]
ToEmbeddings = Annotated[
    Path | None,
    typer.Option(metavar="FILE.npz", help="Write the embeddings here.", callback=expanded_path),
]
SugarCrepe = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="SugarCrepe's JSON files; else those of prepare-data.", callback=expanded_path),
]
Split = Annotated[str, typer.Option(help="val, train, test or karpathy-test.", autocompletion=complete_from(*MEASURED))]
Protocol = Annotated[
    str,
    typer.Option(
        help="own, 1k, eccv (with CxC, on Karpathy's test) or all.",
        autocompletion=complete_from("own", "1k", "eccv", "all"),
    ),
]
# What a model was trained from or with, and does not compute with now.
BEGINNINGS = ("model.vision.weights", "model.text.dropout", "model.temperature", "model.learn_temperature")


def evaluate(
    words: Run = None,
    checkpoint: Checkpoint = None,
    from_embeddings: FromEmbeddings = None,
    config: ConfigFile = None,
    changes: Set = None,
    split: Split = "val",
    fraction: Annotated[float | None, typer.Option(help="Of the split's images; the run's own otherwise.")] = None,
    protocol: Protocol = "all",
    audit: Annotated[bool, typer.Option("--audit", help="Which definition of recall prints the NUMBERs.")] = False,
    embeddings: ToEmbeddings = None,
    sugar_crepe: SugarCrepe = None,
    runs_dir: RunsDir = RUNS,
    device: Device = None,
    json_: Json = False,
    debug: Debug = False,
) -> int:
    """Measure recall of a run's best checkpoint, or of any checkpoint.

    [bold]clipcoco eval[/bold]

    [bold]clipcoco eval --from-embeddings theirs.npz --audit 58.4 37.8[/bold]
    """
    if protocol not in ("own", "1k", "eccv", "all"):
        raise ConfigError(f"no protocol '{protocol}' (--protocol). Choose own, 1k, eccv or all")
    if split not in MEASURED:
        raise ConfigError(f"no split '{split}' (--split). Choose val, train, test or karpathy-test")
    if fraction is not None and not 0 < fraction <= 1:
        raise ConfigError(f"a fraction is above 0 and at most 1, not {fraction:g} (--fraction)")
    protocols = ("own", "1k", "eccv") if protocol == "all" else (protocol,)
    word, bare = (None, []) if audit else split_words(words)
    if audit and from_embeddings is None:
        raise ConfigError("--audit judges a file of embeddings (command line). Give --from-embeddings FILE.npz")
    if checkpoint is not None and word is not None:
        raise ConfigError(f"--checkpoint and run '{word}' are both given (command line). Keep one")
    if from_embeddings is not None:
        others = (word, bare, checkpoint, config, changes, embeddings, sugar_crepe, fraction)
        if any(others) or split != "val":
            raise ConfigError("--from-embeddings judges the file as it is (command line). Keep only --protocol, --json")
        return _judge(from_embeddings, words or [] if audit else None, protocols, json_)
    given = load_config(file=config) if config is not None else None
    settings = data_changes(changes, bare, "the measurement")
    found = _found_file(checkpoint, runs_dir) if checkpoint is not None else find_run(runs_dir, word)
    if embeddings is not None and not embeddings.absolute().parent.is_dir():
        raise ConfigError(f"{embeddings.parent} is not a folder (--embeddings). Make it first")
    if sugar_crepe is not None and not sugar_crepe.is_dir():
        raise DataError(f"{sugar_crepe} is not a folder (--sugar-crepe). It should hold SugarCrepe's JSON files")
    evaluation = _measure(found, given, settings, split, fraction, protocols, device, sugar_crepe)
    show(open_terminal().err, *(f"warning: {doubt}" for doubt in evaluation.doubts))
    if embeddings is not None:
        from clipcoco.engine.embeddings import write_embeddings

        write_embeddings(embeddings, evaluation.embeddings)
    return _show(evaluation, protocols, json_)


def _judge(path: Path, numbers: list[str] | None, protocols: tuple[str, ...], json_: bool) -> int:
    if not path.exists():
        raise DataError(f"no file at {path} (--from-embeddings)")
    if numbers is not None:
        return audit_file(path, numbers, json_)
    from clipcoco.runs.measure import evaluate_embeddings

    with RunConsole(open_terminal()) as console:
        evaluation = evaluate_embeddings(path, protocols, console)
    return _show(evaluation, protocols, json_)


def _found_file(checkpoint: Path, runs_dir: Path) -> Found:
    if checkpoint.is_file():
        return found_file(checkpoint)
    hint = "A run keeps its own in RUN/checkpoints"
    with suppress(CheckpointError, ConfigError):  # where it is not a run either
        found = find_run(runs_dir, str(checkpoint))
        typed = shlex.quote(str(checkpoint))
        hint = f"It is a run: clipcoco eval {found.run.words if found.run and not found.checkpoint else typed}"
    raise CheckpointError(f"no checkpoint at {checkpoint} (--checkpoint). {hint}")


def _measure(
    found: Found,
    given: LoadedConfig | None,
    changes: list[str],
    split: str,
    fraction: float | None,
    protocols: tuple[str, ...],
    device: str | None,
    sugar_crepe: Path | None,
) -> "Evaluation":
    if sys.stderr.isatty():  # the import of torch takes seconds
        show(open_terminal().err, f"Reading {found.words} …")
    from clipcoco.engine.model_file import open_model
    from clipcoco.runs.measure import evaluate_checkpoint

    path = found.weights()
    model_file = open_model(path)
    data = model_file.config.data
    if given is not None:
        show(open_terminal().err, *(f"warning: {note}" for note in given.notes))
        own, other = flatten(model_file.config), flatten(given.config)
        differing = [
            key for key in own if key.startswith("model.") and key not in BEGINNINGS and own[key] != other[key]
        ]
        if differing:
            raise ConfigError(
                f"{given.layers[-1]} describes another model than {path}: {', '.join(differing[:4])} (--config). "
                f"The checkpoint knows its own configuration: leave --config out"
            )
        data = given.config.data
    if changes:
        data = override(model_file.config.model_copy(update={"data": data}), changes).data
    with RunConsole(open_terminal()) as console:
        run = found.run.name if found.run else None
        return evaluate_checkpoint(model_file, run, data, split, fraction, protocols, device, console, sugar_crepe)


def measure_best(
    run: RunDir, data: DataConfig | None, device: str | None, terminal: Terminal, seen: "Seen | None" = None
) -> "Evaluation":
    """Measure the best checkpoint of a run for its page, for TensorBoard, and for a person."""
    from clipcoco.report.strips import show_in_tensorboard
    from clipcoco.runs.measure import measure_run

    with RunConsole(terminal) as console:
        evaluation = measure_run(run, data, device, console, seen)
    show_in_tensorboard(run)
    _say_learnt_from(evaluation.result, terminal)
    return evaluation


def _say_learnt_from(result: dict[str, Any], terminal: Terminal) -> None:
    """Of a validation split a warning: a picture that was trained on is found again all too well."""
    if many := result["trained_images"]:
        of = f"{many:,} of {result['images']:,} images were trained on"
        meant = result["split"] == SPLITS["train"] or result["split"].endswith(" train")
        show(terminal.err, f"note: {of}" if meant else f"warning: {of}: recall on them says little", "")


def _show(evaluation: "Evaluation", protocols: tuple[str, ...], json_: bool) -> int:
    result = evaluation.result
    if json_:
        print_json(result)
        return ExitCode.OK
    terminal = open_terminal()
    what = result["run"] or result["checkpoint"] or "embeddings"
    step = f", step {result['step']:,}" if result["step"] is not None else ""
    which = f", {Path(result['checkpoint']).stem}{step}" if result["checkpoint"] else ""
    show(
        terminal.err,
        f"{what}{which} · {result['split']} · {result['source']} · {result['precision'] or 'float32'}",
        "",
    )
    if result["trained_on"] not in (None, result["source"]):
        show(terminal.err, f"warning: trained on {result['trained_on']}, measured on {result['source']}", "")
    _say_learnt_from(result, terminal)
    notes = say_seconds(result["seconds"]), result["caution"]
    width = terminal.out.width
    tables = recall_tables(result["split"], result["protocols"], *notes, width=width)
    extended = extended_tables(result["extended"], result["caution"]) if "extended" in result else []
    show(terminal.out, *tables, *composition_table(result["composition"], width), *extended)
    return ExitCode.OK
