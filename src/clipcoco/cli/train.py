"""`clipcoco train` and `clipcoco resume`: a run is planned, then given its directory, then goes."""

import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from clipcoco.cli.signals import stop_signals
from clipcoco.cores import processes
from clipcoco.errors import ExitCode

if TYPE_CHECKING:
    from clipcoco.config.load import LoadedConfig
    from clipcoco.config.schema import DataConfig
    from clipcoco.console import RunConsole, Terminal
    from clipcoco.engine.embeddings import Seen
    from clipcoco.events import RunEnded
    from clipcoco.runs.directory import RunDir
    from clipcoco.runs.names import Found
    from clipcoco.runs.plan import Plan

    Went = tuple[RunDir, RunEnded, Seen]


def train(
    words: Bare = None,
    preset: Preset = None,
    config: ConfigFile = None,
    changes: Set = None,
    init: Init = None,
    name: Annotated[str | None, typer.Option(help="The run's name.")] = None,
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

    [bold]clipcoco train --preset small --set seed=1 --name another-seed[/bold]
    """
    from clipcoco.config.load import flatten
    from clipcoco.console import RunConsole, open_terminal, show
    from clipcoco.data.annotations import check_captions
    from clipcoco.runs import directory, names

    # ---- what needs no torch, whose import takes seconds
    loaded = load_from(preset, config, changes, words, runs_dir)
    asked = flatten(loaded.config)
    if processes()[0] and not dry_run:
        return _follow(asked)
    console = RunConsole(terminal := open_terminal(plain))
    show(terminal.err, *(f"warning: {note}" for note in loaded.notes))
    there = names.find_resumable(runs_dir, name, clear=not dry_run) if or_resume else None
    if or_resume and dry_run:  # what is there is resumed or cleared away, which a rehearsal does not do
        there = name = None
    if name is not None and there is None:
        directory.check_name(runs_dir, name)
    start_from = names.find_run(runs_dir, init).weights() if init is not None else None
    from clipcoco.prepare.scenes import to_be_drawn

    drawing = to_be_drawn(loaded) and not dry_run
    if not drawing and device in (None, "auto", "cpu") and loaded.config.train.precision in ("auto", "float32"):
        check_captions(loaded.config.data, loaded.chain[-1])  # another device may be missing, which is told first
    from clipcoco.runs.follow import together
    from clipcoco.runs.start import draw_missing_scenes, new_run, plan_run

    if there is not None:
        return _resume(names.Found(there, None), [], asked, runs_dir, device, terminal, json_, same=loaded)
    where: dict[str, Any] = {"name": name, "runs_dir": runs_dir, "device_name": device}
    if dry_run:
        return _rehearse(lambda: plan_run(loaded, **where, init=start_from, report=console, keep=False), console, json_)
    # ---- check, then go
    with together() as group:
        if drawing:
            draw_missing_scenes(loaded, device, lambda line: show(terminal.err, line, ""))
        with _panel(console):
            plan = plan_run(loaded, **where, init=start_from, report=console, group=group).looked_at(console)
            went = _go(plan, new_run(plan, runs_dir, name), asked, console)
        return group.end(_finish(went, loaded.config.data, device, console, json_))


def _rehearse(planned: Callable[[], "Plan"], console: "RunConsole", json_: bool) -> int:
    from clipcoco.console import show, summary_rows
    from clipcoco.runs.follow import refuse_many_processes
    from clipcoco.runs.rehearse import rehearse

    refuse_many_processes("--dry-run")
    with _panel(console):
        told = rehearse(planned(), console)
    if json_:
        print_json({"schema": 1, **{label or "versions": text for label, text in told.items()}})
    else:
        show(console.terminal.out, *summary_rows(told.items()))
    return ExitCode.OK


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

    [bold]clipcoco resume small --set train.epochs=40[/bold]
    """
    from clipcoco.config.load import load_config
    from clipcoco.console import open_terminal
    from clipcoco.runs.names import find_run

    word, bare = split_words(words)
    changes = [*(changes or []), *bare]
    load_config("base", overrides=changes)  # whether they are settings at all, without the checkpoint
    asked = {"settings": " ".join(changes)}
    if processes()[0]:
        return _follow(asked)
    return _resume(find_run(runs_dir, word), changes, asked, runs_dir, device, open_terminal(plain), json_)


def _resume(
    found: "Found",
    changes: list[str],
    asked: Mapping[str, object],
    runs_dir: Path,
    device: str | None,
    terminal: "Terminal",
    json_: bool,
    same: "LoadedConfig | None" = None,
) -> int:
    """A run goes on in its directory, a checkpoint of no run in a new one; `same` is what it must be of."""
    from clipcoco.console import RunConsole, show
    from clipcoco.report.page import is_measured
    from clipcoco.runs.follow import together
    from clipcoco.runs.resume import check_same, open_saved, plan_resume, resumed_run
    from clipcoco.runs.standing import where_it_stands

    console = RunConsole(terminal)
    with together() as group, open_saved(found, changes) as saved:
        if same is not None:
            check_same(saved, same)
        run, step = saved.run, saved.state.step
        measured = run is None or (is_measured(run) and run.report.exists() and not json_)
        if saved.state.is_finished(saved.config.train) and measured:
            show(
                terminal.err,
                f"{saved.name} is finished ({step:,} steps). Train longer: clipcoco resume {saved.words} "
                f"train.epochs={saved.config.train.epochs + 1}, or start a new run from its weights: "
                f"clipcoco train --preset NAME --init {saved.words}",
            )
            group.said(None)  # to the others, that there is nothing to do
            return group.end(ExitCode.OK)
        alone = f"{saved.name}, of step {step:,}, belongs to no run: it goes on in a new one in {runs_dir}."
        show(terminal.err, where_it_stands(run, step) if run else alone, *saved.changed, "")
        with _panel(console):
            plan = plan_resume(saved, runs_dir=runs_dir, device_name=device, report=console, group=group)
            went = _go(plan, resumed_run(saved, plan, runs_dir), asked, console)
        return group.end(_finish(went, saved.config.data, device, console, json_))


def _follow(asked: Mapping[str, object]) -> int:
    """What every process but the first does, which alone speaks and writes."""
    from clipcoco.runs.follow import follow, hear, together

    with together() as group:
        told = hear(group)
        if told is not None:
            with stop_signals(lambda signal: None) as stop:
                follow(group, told, asked, stop)
        return group.end(ExitCode.OK)


@contextmanager
def _panel(console: "RunConsole") -> Iterator[None]:
    """After a second Ctrl-C, which ends a run at once, it says what is left."""
    try:
        with console:
            yield
    except KeyboardInterrupt:
        if console.run:
            console.show(_what_remains(console.run.folder))
        raise


def _what_remains(folder: Path) -> str:
    """After a second Ctrl-C: how to go on, or the same command under a name that is free."""
    from clipcoco.runs.directory import RunDir, free_name

    run = RunDir(folder)
    if any(run.checkpoints.glob("*.pt")):
        return f"Stopped at once. Go on with: clipcoco resume {run.words}"
    free = free_name(run.path.parent, run.name)
    again = [word.replace(run.name, free) if word.endswith(run.name) else word for word in sys.argv[1:]]
    return f"Stopped at once, nothing was saved. Start again: {shlex.join(['clipcoco', *again])}"


def _go(
    plan: "Plan",
    directory: AbstractContextManager[tuple["RunDir", str]],
    asked: Mapping[str, object],
    console: "RunConsole",
) -> "Went":
    """From here on a signal asks the run to stop; until here it ended the process."""
    from clipcoco.engine.embeddings import Seen
    from clipcoco.report.live import LivePage
    from clipcoco.runs.follow import lead
    from clipcoco.runs.go import go
    from clipcoco.runs.metrics import LogFile

    with stop_signals(console.stopping) as stop, directory as (run, note):
        console.log = LogFile(run.log)
        page, seen = LivePage(run, console), Seen()
        try:
            lead(plan, run, asked)
            return run, go(plan, run, note, page, stop, seen=seen), seen
        except BaseException:
            page.end()
            raise


def _finish(went: "Went", data: "DataConfig", device: str | None, console: "RunConsole", json_: bool) -> int:
    """Of a finished run the best checkpoint is measured, shown and made into a page; of a stopped one the page."""
    from clipcoco.cli.evaluate import measure_best
    from clipcoco.cli.report import write_or_warn
    from clipcoco.console import composition_table, recall_tables, summary_rows
    from clipcoco.report.expected import read_expected
    from clipcoco.report.settings import command
    from clipcoco.report.verdict import read_verdict
    from clipcoco.runs.metrics import read_history

    (run, ended, seen), terminal = went, console.terminal
    if ended.state == "stopped":
        with stop_signals(lambda signal: None) as stop:  # others have nothing to add, a second Ctrl-C still leaves
            stop.reason = ended.reason
            write_or_warn(run, console.show)
        return ExitCode.STOPPED
    try:
        result = measure_best(run, data, device, terminal, seen).result
    finally:  # what can't be measured has no page that says that it runs
        write_or_warn(run, console.show)
    expected = read_expected(run)
    if json_:
        print_json({**result, "expected": expected.to_plain() if expected else None})
        return ExitCode.OK
    here = (run.checkpoints / "best.pt").exists()  # else it stayed in the run that a checkpoint was copied out of
    best = run.status().best
    note = f"epoch {best.epoch if best else '?'} is the best" if here else "of the last step"
    closed = read_history(run).closed_form
    beside = vars(closed) if closed else None
    notes = note, result["caution"]
    rows = [("expected", f"{expected.band}: {expected.r1:.2f} lies {expected.verdict}")] if expected else []
    if expected and expected.verdict == "below":
        rows.append(
            ("look at", "the report's notes (skipped steps, unreadable pictures), its curves; then another seed")
        )
    *_, following, search = (None, *read_verdict(run).steps)
    rows += [("report", str(run.report)), ("search", search.command if search else "")]
    if not result["caution"]:  # no page runs the text encoder of others
        rows += [("share", f"{command(run, 'share')}    one file that searches in a browser")]
    rows += [("next", f"{following.command}    {following.why.lower()}")] if following else []
    width = terminal.out.width
    tables = recall_tables(result["split"], result["protocols"], *notes, closed_form=beside, width=width)
    tables = [*tables, *composition_table(result["composition"], width)]
    console.show("", *tables, *summary_rows(rows), results=True)
    return ExitCode.OK
