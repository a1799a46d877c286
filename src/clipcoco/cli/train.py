"""`clipcoco train` and `clipcoco resume`."""

import shlex
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipcoco.cli.options import (
    RUNS,
    Bare,
    ConfigFile,
    Debug,
    Device,
    Init,
    Json,
    Plain,
    Preset,
    Run,
    RunsDir,
    Set,
    load_from,
    print_json,
    split_words,
)
from clipcoco.cli.report import write_or_warn
from clipcoco.cli.signals import stop_signals
from clipcoco.cli.standing import what_remains, where_it_stands
from clipcoco.config.load import LoadedConfig, config_from_plain, flatten, load_config, override
from clipcoco.config.schema import DataConfig
from clipcoco.config.text import expanded
from clipcoco.console import RunConsole, Terminal, open_terminal, recall_tables, show, summary_rows
from clipcoco.data.annotations import check_captions
from clipcoco.errors import CheckpointError, ConfigError, ExitCode
from clipcoco.runs.directory import RunDir, check_name, check_spelling, is_ours
from clipcoco.runs.names import Found, find_run

if TYPE_CHECKING:
    from clipcoco.events import Report, RunEnded
    from clipcoco.runs.start import ReportTo, Stopping


def train(
    words: Bare = None,
    preset: Preset = None,
    config: ConfigFile = None,
    changes: Set = None,
    init: Init = None,
    name: Annotated[str | None, typer.Option(help="The run's name.", show_default=False)] = None,
    or_resume: Annotated[bool, typer.Option("--or-resume", help="Resume run --name where it exists.")] = False,
    runs_dir: RunsDir = RUNS,
    device: Device = None,
    plain: Plain = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all, take a few steps, write nothing.")] = False,
    json_: Json = False,
    debug: Debug = False,
) -> int:
    """Train a model; ends with its recall table.

    [bold]clipcoco train --preset demo[/bold]

    [bold]clipcoco train --preset small --set train.epochs=5 --name first-try[/bold]
    """
    loaded = load_from(preset, config, changes, words, runs_dir)
    terminal = open_terminal(plain)
    show(terminal.err, *(f"warning: {note}" for note in loaded.notes))
    resumes = or_resume and _exists(runs_dir, name)
    if name is not None and not resumes:
        check_name(runs_dir, name)
    start_from = find_run(runs_dir, init).weights() if init is not None else None
    drawing = _will_draw(loaded, device, dry_run)
    from clipcoco.runs.rehearse import rehearse
    from clipcoco.runs.start import start

    if dry_run:
        with RunConsole(terminal) as console:
            told = rehearse(loaded, name, runs_dir, device, start_from, console)
        if json_:
            print_json({"schema": 1, **{label or "versions": text for label, text in told.items()}})
        else:
            show(terminal.out, *summary_rows(told.items()))
        return ExitCode.OK
    if resumes:
        return _resume_same(RunDir(runs_dir / str(name)), loaded, device, terminal, json_)
    if drawing:
        show(terminal.err, f"Drawing 6,500 scenes into {loaded.config.data.root}, once.", "")
    return _conduct(
        terminal,
        lambda report, stopping: start(
            loaded,
            name=name,
            runs_dir=runs_dir,
            device_name=device,
            init=start_from,
            report=report,
            stopping=stopping,
        ),
        loaded.config.data,
        device,
        json_,
    )


def _will_draw(loaded: LoadedConfig, device: str | None, dry_run: bool) -> bool:
    """Whether they are to be drawn first; raises DataError where they are missing, without waiting for torch."""
    from clipcoco.prepare.scenes import to_be_drawn

    drawing = to_be_drawn(loaded) and not dry_run
    if not drawing and device in (None, "auto", "cpu") and loaded.config.train.precision in ("auto", "float32"):
        check_captions(loaded.config.data, loaded.chain[-1])  # another device may be missing, which is told first
    return drawing


def _exists(runs_dir: Path, name: str | None) -> bool:
    """Whether there is a run to resume. One that never saved is cleared away: a job must not stumble over it."""
    if name is None:
        raise ConfigError("--or-resume needs the run's name. Give --name NAME")
    check_spelling(name)
    run = RunDir(runs_dir / name)
    if run.path.is_symlink():
        raise CheckpointError(f"{run.path} is a link (--name). Resume the run it leads to: clipcoco resume {run.words}")
    run.check()
    if any(run.checkpoints.glob("*.pt")):
        return True
    if not is_ours(run):  # nothing there, or a folder that must not be touched
        return False
    with run.lock():
        if run.status().get("checkpoint"):
            raise CheckpointError(f"run {name} has no checkpoints left (--or-resume). Take another --name")
        shutil.rmtree(run.path)
    return False


def resume(
    words: Run = None,
    changes: Set = None,
    runs_dir: RunsDir = RUNS,
    device: Device = None,
    plain: Plain = False,
    json_: Json = False,
    debug: Debug = False,
) -> int:
    """Go on with a stopped run, to the same bits as without the stop.

    [bold]clipcoco resume[/bold]

    [bold]clipcoco resume small --set train.epochs=20[/bold]
    """
    terminal = open_terminal(plain)
    word, bare = split_words(words)
    changes = [*(changes or []), *bare]
    load_config("base", overrides=changes)  # whether they are settings at all, without the checkpoint
    found = find_run(runs_dir, word)
    return _resume(found, runs_dir, changes, device, terminal, json_)


def _resume_same(run: RunDir, loaded: LoadedConfig, device: str | None, terminal: Terminal, json_: bool) -> int:
    """--or-resume: the run must be of the same configuration."""
    from clipcoco.engine import checkpoint
    from clipcoco.engine.weights import file_sha256
    from clipcoco.runs.resume import CHANGEABLE

    _, content, _ = checkpoint.newest(run.checkpoints)
    old = flatten(config_from_plain(content["config"], str(run.path)))
    new = flatten(loaded.config)
    differing = sorted(key for key in new if key not in CHANGEABLE and old[key] != new[key])
    if differing:
        raise ConfigError(
            f"run {run.name} has another configuration: {', '.join(differing[:4])} (--or-resume). Take another --name"
        )
    weights, began = expanded(str(new["model.vision.weights"])), content.get("data", {}).get("weights")
    if began and weights.is_file() and file_sha256(weights) != began:
        raise ConfigError(
            f"run {run.name} began with another {weights}, of SHA-256 {began[:12]} (--or-resume). Take another --name"
        )
    return _resume(Found(run, None), run.path.parent, [], device, terminal, json_)


def _resume(
    found: Found, runs_dir: Path, changes: list[str], device: str | None, terminal: Terminal, json_: bool
) -> int:
    """A run goes on in its directory; a checkpoint file that lies in none, in a new one."""
    from clipcoco.engine import checkpoint
    from clipcoco.engine.plain_parts import checked
    from clipcoco.engine.state import TrainState
    from clipcoco.report.page import is_measured
    from clipcoco.runs import resume as resuming

    run, path, damaged = found.run, found.checkpoint, list[str]()
    with run.lock() if run else nullcontext("") as note:
        if note:
            show(terminal.err, f"warning: {note}")
        content = checked(checkpoint.load(path), path) if path else {}
        if run is not None:
            newest, last, damaged = checkpoint.newest(run.checkpoints)
            path, content, gone_on = path or newest, content or last, TrainState.from_plain(last["state"]).step
            if (step := TrainState.from_plain(content["state"]).step) < gone_on:  # it would destroy what came after
                raise CheckpointError(
                    f"run {run.name} has gone on to step {gone_on:,}, {path.name} is of step "
                    f"{step:,}. Go on: clipcoco resume {run.words}, or start anew from those "
                    f"weights: clipcoco train --preset NAME --init {path}"
                )
        assert path is not None, "of a run, or a file"
        words, name = (run.words, run.name) if run else (shlex.quote(str(path)), str(path))
        before = config_from_plain(content["config"], str(path))
        config = override(before, changes) if changes else before
        changed = resuming.check_changes(before, config)
        state = TrainState.from_plain(content["state"])
        measured = run is None or (is_measured(run) and run.report.exists() and not json_)
        if state.is_finished(config.train) and measured:
            show(
                terminal.err,
                f"{name} is finished ({state.step:,} steps). Train longer: clipcoco resume {words} "
                f"train.epochs={config.train.epochs + 1}, or anew from its weights: clipcoco train --preset NAME "
                f"--init {words}",
            )
            return ExitCode.OK
        for line in damaged:
            show(terminal.err, f"warning: {line}. Taking {path.name}")
        alone = f"{name}, of step {state.step:,}, lies in no run: it goes on in a new one in {runs_dir}."
        show(terminal.err, where_it_stands(run, state.step) if run else alone, *changed, "")
        return _conduct(
            terminal,
            lambda report, stopping: resuming.resume(
                run or runs_dir,
                path,
                content,
                config,
                changes=changes,
                device_name=device,
                report=report,
                stopping=stopping,
            ),
            config.data,
            device,
            json_,
        )


def _conduct(
    terminal: Terminal,
    work: Callable[["ReportTo", "Stopping"], tuple[RunDir, "RunEnded"]],
    data: DataConfig,
    device: str | None,
    json_: bool,
) -> int:
    """Run `work` with the panel and the signals; after the last step, measure the best checkpoint and show it."""
    from clipcoco.runs.metrics import LogFile

    console = RunConsole(terminal)

    def report_to(run: RunDir | None) -> "Report":
        if run is not None:
            console.log = LogFile(run.log)
        return console

    try:
        with console:
            run, ended = work(report_to, lambda: stop_signals(console.stopping))
    except KeyboardInterrupt:
        if console.run:
            console.show(what_remains(RunDir(console.run.folder)))
        raise
    if ended.state == "stopped":
        _report_stopped(run, ended.reason, console)
        return ExitCode.STOPPED
    from clipcoco.cli.evaluate import measure_run

    evaluation = measure_run(run, data, device, terminal)
    write_or_warn(run, console.show)
    result = evaluation.result
    here = (run.checkpoints / "best.pt").exists()  # else it stayed in the run that a checkpoint was copied out of
    best = (run.status().get("best") or {}).get("epoch", "?")
    note = f"epoch {best} is the best" if here else "of the last step"
    if json_:
        print_json(result)
        return ExitCode.OK
    show(terminal.out, "", *recall_tables(result["split"], result["protocols"], note))
    rows = [
        ("report", str(run.report)),
        ("search", 'clipcoco search "what is in the picture"'),
        ("again", f"clipcoco eval {run.words}"),
        ("curves", f"tensorboard --logdir {shlex.quote(str(run.tensorboard))}"),
    ]
    show(terminal.out, *summary_rows(rows))
    return ExitCode.OK


def _report_stopped(run: RunDir, reason: str, console: RunConsole) -> None:
    """The page of a run that has saved and stops: other signals have nothing to add, a second Ctrl-C still leaves."""
    with stop_signals(lambda signal: None) as stop:
        stop.reason = reason
        write_or_warn(run, console.show)
