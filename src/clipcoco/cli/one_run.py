"""`clipcoco runs X`: one run: its table, what differs from its preset, its files, and what to do next."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.text import Text

from clipcoco.cli.compare import indented, whole_run
from clipcoco.cli.options import print_json
from clipcoco.console import (
    Terminal,
    composition_table,
    printable,
    recall_tables,
    say_bytes,
    show,
    summary_rows,
    table_or_blocks,
)
from clipcoco.errors import ExitCode
from clipcoco.report.settings import Settings, read_settings
from clipcoco.report.verdict import Verdict, read_verdict
from clipcoco.runs.directory import RunDir
from clipcoco.runs.metrics import read_history
from clipcoco.runs.record import is_of_best, read_record
from clipcoco.runs.standing import Standing, read_standing


def show_run(terminal: Terminal, runs_dir: Path, words: str, json_: bool) -> int:
    run = whole_run(runs_dir, words)
    one, settings, verdict = read_standing(run), read_settings(run), read_verdict(run)
    files, commands = _files(run), _next(one, verdict)
    if json_:
        print_json(
            {
                "schema": 1,
                "run": run.name,
                "path": str(run.path),
                "state": one.state,
                "r1": one.r1,
                "caution": one.caution,
                "settings": {at.name: {"value": at.value, "preset": at.preset} for at in settings.differing},
                "files": files,
                "verdict": verdict.title,
                "reasons": verdict.reasons,
                "next": [command for _, command in commands],
            }
        )
        return ExitCode.OK
    width, total = terminal.out.width, "?" if one.epochs is None else f"{one.epochs}"
    reason = f" ({one.reason})" if one.reason else ""
    title = f"{run.name} · {one.state}{reason}, {one.epochs_done}/{total} epochs"
    lines: list[str | Text] = [*indented(title, width), "", *_recalls(run, one, width)]
    lines += [line for text in (verdict.title, *verdict.reasons) if text for line in indented(text, width)]
    lines += ["", *_settings(settings, width), ""]
    lines += summary_rows([(name, f"{run.path / name}, {say_bytes(size)}") for name, size in files.items()])
    lines.append("")
    for why, command in commands:
        lines += [*indented(why if why.endswith("?") else f"{why}:", width), f"    {command}"]
    show(terminal.out, *lines)
    return ExitCode.OK


def _recalls(run: RunDir, one: Standing, width: int) -> Sequence[str | Text]:
    """Of the best checkpoint as it was measured, or else R@1 as the training saw it."""
    record, why_not = read_record(run)
    history = read_history(run)
    if record and is_of_best(record, history):
        own, folds = record.result.protocols["own"], record.result.protocols.get("1k")
        protocols = {"own": own.to_plain()} | ({"1k": folds.to_plain()} if folds else {})
        best = f"epoch {one.best_epoch}" if one.best_epoch else None
        closed = history.closed_form
        beside = vars(closed) if closed else None
        notes = best, record.result.caution
        tables = recall_tables(record.result.split, protocols, *notes, closed_form=beside, width=width)
        composition = asdict(record.result.composition) if record.result.composition else None
        return [*tables, *composition_table(composition, width)]
    if one.r1 is None:
        return indented("It was never evaluated.", width)
    why = why_not or "it is of an earlier checkpoint"
    seen = f"R@1 {one.r1:.2f} as the training saw it in epoch {one.best_epoch}; not measured: {why}."
    return indented(f"{seen} {one.caution}".strip(), width)


def _settings(settings: Settings, width: int) -> Sequence[str | Text]:
    said = indented(f"{settings.problem}.", width) if settings.problem else []
    if settings.config is None:
        return said
    if not settings.differing:
        return said + indented(f"Every setting is that of the preset {settings.preset}.", width)
    columns = {
        "setting": [at.name for at in settings.differing],
        "this run": [printable(at.value) for at in settings.differing],
        settings.preset: [printable(at.preset) for at in settings.differing],
    }
    return [*said, *table_or_blocks(columns, width)]


def _files(run: RunDir) -> dict[str, int]:
    """What a person opens, by name: the page, the records, the checkpoints; in bytes."""
    found = [run.report, run.config, run.log, run.metrics, *sorted(run.checkpoints.glob("*.pt"))]
    return {str(path.relative_to(run.path)): path.stat().st_size for path in found if path.is_file()}


def _next(one: Standing, verdict: Verdict) -> list[tuple[str, str]]:
    if one.state in ("running", "starting"):
        return [("Its page", str(one.run.report))] if one.run.report.exists() else []
    if one.state != "finished":
        saved = any(one.run.checkpoints.glob("*.pt"))
        return [("Go on", f"clipcoco resume {one.run.words}")] if saved else []
    return [(step.why, step.command) for step in verdict.steps]
