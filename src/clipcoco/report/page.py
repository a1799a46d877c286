"""report.html: the page in which a run ends, made from its directory alone: no model, no data, no torch.

One self-contained file without scripts. Whatever is missing or damaged is said in its place; the rest is shown.
"""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from clipcoco.disk.files import write_atomically
from clipcoco.disk.locks import is_held
from clipcoco.engine.results import ConfidenceIntervals, RecallTable
from clipcoco.events import Chance, ClosedForm, Evaluated, Recalls
from clipcoco.report.expected import judge
from clipcoco.report.pictures import first_four, linked_from, short_name
from clipcoco.report.plots import evaluation_plots, training_plots
from clipcoco.report.settings import command, commands, read_settings
from clipcoco.report.template import template
from clipcoco.report.verdict import judge_run
from clipcoco.runs.directory import RunDir, Status
from clipcoco.runs.metrics import History, read_history
from clipcoco.runs.record import Record, is_of_best, read_record
from clipcoco.say import say_bytes, say_half, say_order, say_seconds

RELOAD = 15  # seconds
OURS = ("report.html", "figures")  # of the files of a run: made here, so not listed in what is made


def is_measured(run: RunDir) -> bool:
    """Whether evaluation.json is there, whole, with hits by image, and of the best checkpoint."""
    record, _ = read_record(run)
    return record is not None and record.hits is not None and is_of_best(record, read_history(run))


def write_report(run: RunDir) -> Path:
    """Write report.html and figures/*.svg; a reader sees the old page or the new one, whole.

    Of a run at work it is a page that reloads itself. Raises OSError when the run directory refuses them.
    """
    history, settings, status = read_history(run), read_settings(run), run.status()
    record, why_not = read_record(run)
    chance = record.result.protocols["own"].chance if record else status.chance
    stale = record is not None and not is_of_best(record, history)
    finished, live = status.state == "finished", status.state == "running" and is_held(run.path / ".lock") is not False
    per_epoch = steps_per_epoch(history, status)
    plots, closer = training_plots(history, settings.config, chance, status.chance_loss, per_epoch)
    measured = evaluation_plots(record) if record else []
    tables = _tables(record, history, status)
    current = None if stale else record
    expected = judge(settings, current, finished)
    filters: dict[str, Callable[..., str]] = {
        "thousands": "{:,}".format,
        "size": say_bytes,
        "duration": say_seconds,
        "short": short_name,
        "half": say_half,
    }
    link = linked_from(run.report, run, settings.config, record.result.source if record else None)
    page = template("clipcoco.report", filters=filters | {"link": link}).render(
        name=run.name,
        status=status,
        banner=_banner(run, status, history),
        reload=RELOAD if live else None,
        history=history,
        settings=settings,
        record=record,
        stale=stale,
        verdict=judge_run(run, settings, history, current, chance, expected, finished),
        four=first_four(record) if record else ([], []),
        expected=expected,
        why_not=why_not,
        tables=tables,
        ranks=_ranks(record) if record else [],
        worth=_worth(tables[0], history.closed_form) if tables and history.closed_form else "",
        caution=status.caution or (record.result.caution if record else None),
        plots=plots,
        closer=closer,
        measured=measured,
        report_command=command(run, "report"),
        share_command=command(run, "share"),
        shared=run.shared.name if run.shared.is_file() else None,
        commands=commands(run, settings),
        files=_files(run.path),
        clock=_clock(history),
        started=_utc(status.started),
    )
    write_atomically(run.report, page.encode("utf-8", "replace"))  # a file may be called anything
    run.figures.mkdir(exist_ok=True)
    for drawing in (*plots, *closer, *measured):
        write_atomically(run.figures / f"{drawing.name}.svg", drawing.alone)
    return run.report


def steps_per_epoch(history: History, status: Status) -> float | None:
    if history.evaluations and history.evaluations[-1].epoch:
        return history.evaluations[-1].step / history.evaluations[-1].epoch or None
    return status.total_steps / status.epochs if status.total_steps and status.epochs else None


@dataclass(frozen=True)
class Banner:
    title: str
    text: str
    command: str = ""  # what to do about it


def _banner(run: RunDir, status: Status, history: History) -> Banner | None:
    step, total = max(status.step, history.last_step), status.total_steps
    where = f"at step {step:,}" + (f" of {total:,}" if total else "")
    saved = any(run.checkpoints.glob("*.pt"))
    onward = command(run, "resume") if saved else ""
    match status.state:
        case "finished":
            early = f"{status.reason[:1].upper()}{status.reason[1:]} {where}." if status.reason else ""
            return Banner("Finished early", early) if early else None
        case "stopped":
            return Banner("Stopped", f"By {status.reason or 'a signal'} {where}. Go on from there:", onward)
        case "failed":
            code = f" (exit code {status.exit_code})" if status.exit_code is not None else ""
            reason = status.reason or "no reason is recorded"
            then = "Go on from its last checkpoint:" if saved else "Nothing was saved before."
            return Banner("Failed", f"{where.capitalize()}{code}: {reason}. {then}", onward)
        case "running":
            text = f"This page shows the run {where}. It is written anew at every evaluation and loads itself again."
            text += " Should no process be at work on it:" if saved else ""
            return Banner("Still running", text, onward)
    return Banner("State unknown", "status.json is missing or can't be read, so how the run ended is not known.")


@dataclass(frozen=True)
class Row:
    label: str
    recalls: Recalls
    spread: dict[str, str]  # half of the 95 % interval, by "r1", "r5", "r10"
    kind: str = ""  # "mean"; "chance" and "closed-form" are there to compare with


@dataclass(frozen=True)
class Table:
    title: str
    about: str
    rows: tuple[Row, ...]
    r1: float
    spread: str | None  # of r1
    chance: float | None


def _tables(record: Record | None, history: History, status: Status) -> list[Table]:
    """The recalls of the best checkpoint; what training saw of it when it is not measured by itself."""
    if not record or not is_of_best(record, history):
        epoch = history.best.epoch if history.best else 0
        about = f"the validation images form one gallery; percent; as measured in training after epoch {epoch}"
        return [_table("own", about, history.best, status.chance, None, history.closed_form)] if history.best else []
    own, folds = record.result.protocols["own"], record.result.protocols.get("1k")
    found = [("own", f"all {own.images:,} images and {own.captions:,} captions form one gallery", own)]
    if folds is not None and (folds.folds, folds.dropped) != (1, 0):
        galleries = "one gallery" if folds.folds == 1 else f"the mean of {folds.folds} galleries"
        about = f"{galleries} of 1,000 images {say_order(folds.order)}, {folds.dropped:,} left out"
        found.append(("1k", about, folds))
    tables = []
    for protocol, about, table in found:
        ties = f" ({table.ties:,} queries tied)" if table.ties else ""
        about = f"{about}; percent; ties count against the model{ties}"
        closed_form = history.closed_form if protocol == "own" else None
        tables.append(_table(protocol, about, table, table.chance, table.interval, closed_form))
    return tables


def _table(
    protocol: str,
    about: str,
    entry: RecallTable | Evaluated,
    chance: Chance | None,
    interval: ConfidenceIntervals | None,
    closed_form: ClosedForm | None,
) -> Table:
    rows = []
    for label, direction in (("image → text", "i2t"), ("text → image", "t2i")):
        spread = getattr(interval, direction) if interval else {}
        rows.append(Row(label, getattr(entry, direction), {key: say_half(known) for key, known in spread.items()}))
        if chance:
            rows.append(Row("by chance", chance[direction], {}, "chance"))
        if closed_form:
            rows.append(Row("closed form", getattr(closed_form, direction), {}, "closed-form"))
    rows.append(Row("mean", {key: (entry.i2t[key] + entry.t2i[key]) / 2 for key in ("r1", "r5", "r10")}, {}, "mean"))
    half = say_half(interval.r1) if interval else None
    by_chance = (chance["i2t"]["r1"] + chance["t2i"]["r1"]) / 2 if chance else None
    return Table(f"Protocol {protocol}", about, tuple(rows), entry.r1, half, by_chance)


def _ranks(record: Record) -> list[tuple[str, int, list[int]]]:
    """Of each direction: how many queries there are, and how many find the right answer at rank 1, at 2 to 5, at 6 to
    10, and beyond."""
    own, found = record.result.protocols["own"], []
    for label, direction, queries in (("images", "i2t", own.images), ("captions", "t2i", own.captions)):
        recalls = getattr(own, direction)
        within = [round(recalls[key] * queries / 100) for key in ("r1", "r5", "r10")] + [queries]
        found.append((label, queries, [within[0], *(after - before for before, after in pairwise(within))]))
    return found


def _worth(own: Table, closed_form: ClosedForm) -> str:
    """Was training worth it? Said of a mean R@1 with two decimals, which the reader can subtract."""
    more = round(own.r1, 2) - round(closed_form.r1, 2)
    verdict = f"{more:.2f} points more" if more > 0 else f"{-more:.2f} points less: it was not" if more else "no more"
    within = f" The difference lies within ± {own.spread}." if own.spread and abs(more) <= float(own.spread) else ""
    return (
        f"Was training worth it? The closed form, a canonical correlation analysis of the same features with the words "
        f"of the captions, needs none and reaches {closed_form.r1:.2f} % R@1; training reaches {own.r1:.2f} %, "
        f"{verdict}.{within}"
    )


def _clock(history: History) -> list[tuple[str, str]]:
    """Where the time went, as far as the records tell."""
    parts = (("training steps", history.steps), (f"{len(history.evaluations)} evaluations", history.evaluations))
    took = [
        (label, sum(one for row in rows if math.isfinite(one := row.clock.get("seconds", 0)))) for label, rows in parts
    ]
    return [(label, say_seconds(seconds)) for label, seconds in took if seconds]


def _files(folder: Path) -> list[tuple[str, int]]:
    """Relative names and bytes, sorted; hidden files and what the report itself makes left out."""
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if name.parts[0] in OURS or any(part.startswith(".") for part in name.parts) or not path.is_file():
            continue
        with contextlib.suppress(FileNotFoundError):  # a run at work renames its checkpoints
            if path.name != "log.txt":  # whose last lines come after the page
                found.append((name.as_posix(), path.stat().st_size))
    return found


def _utc(seconds: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds)) if seconds is not None else ""
