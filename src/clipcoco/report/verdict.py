"""Is it good, why, and what next: said of a run by rules, from what its records hold."""

import shlex
from dataclasses import dataclass
from statistics import fmean

from clipcoco.config.derive import DRAWN
from clipcoco.events import Chance, Evaluated
from clipcoco.report.expected import CEILING, Expected, judge
from clipcoco.report.settings import Settings, again, command, placed, read_settings
from clipcoco.runs.directory import RunDir
from clipcoco.runs.metrics import History, read_history
from clipcoco.runs.record import Record, is_of_best, read_record

EASY = 99.5  # percent: an R@10 that has no room left
RISEN = 1.05  # a validation loss that is so many times its lowest
APART = 1.5  # validation loss over training loss: new captions are harder than known ones
NEXT = {"demo": "tiny", "tiny": "small", "small": "medium", "medium": "full"}


@dataclass(frozen=True)
class Step:
    why: str
    command: str


@dataclass(frozen=True)
class Verdict:
    title: str  # "" before the first evaluation
    reasons: tuple[str, ...]
    steps: tuple[Step, ...]  # what to do next, the most useful first


@dataclass(frozen=True)
class _Known:
    r1: float  # mean of both directions in percent, as is chance
    low: float  # of its 95 % interval, or the same
    half: float
    images: int | None
    chance: float | None


def read_verdict(run: RunDir) -> Verdict:
    """The same from its directory."""
    settings, history, status = read_settings(run), read_history(run), run.status()
    record, _ = read_record(run)
    current = record if record and is_of_best(record, history) else None
    finished = status.state == "finished"
    return judge_run(run, settings, history, current, status.chance, judge(settings, current, finished), finished)


def judge_run(
    run: RunDir,
    settings: Settings,
    history: History,
    record: Record | None,
    chance: Chance | None,
    expected: Expected | None,
    finished: bool,
) -> Verdict:
    """`record` None: there is none of the best checkpoint."""
    best = history.best
    if not record and not best:
        return Verdict("", (), ())
    known = _known(record, best, chance)
    fit, more = _fit(history, known)
    easy = _easy(history)
    ceiling = _ceiling(settings, record)
    title = _title(known, expected, ceiling)
    reasons = [ceiling, fit, easy]
    steps = _steps(run, settings, record, known, expected, more) if finished else ()
    return Verdict(
        title if finished else f"So far: {title[:1].lower()}{title[1:]}", tuple(filter(None, reasons)), steps
    )


def _known(record: Record | None, best: Evaluated | None, chance: Chance | None) -> _Known:
    if record:
        own = record.result.protocols["own"]
        low, high = own.interval.r1 if own.interval else (own.r1, own.r1)
        r1, half, images, chance = own.r1, (high - low) / 2, own.images, own.chance
    else:
        assert best is not None
        low = r1 = best.r1
        half, images = 0.0, None
    by_chance = (chance["i2t"]["r1"] + chance["t2i"]["r1"]) / 2 if chance else None
    return _Known(r1, low, half, images, by_chance)


def _title(known: _Known, expected: Expected | None, ceiling: str) -> str:
    among = f" among {known.images:,} images" if known.images else ""
    if known.chance is not None and known.low <= known.chance:
        return f"No better than guessing{among}: the interval of {known.r1:.2f} % holds what chance gives."
    if expected and not expected.why_not:
        if expected.verdict == "below":
            whose = "its settings expect" if expected.by_hand else "this preset gives"
            return f"Less than {whose}: something went wrong, or luck did."
        as_good = "More than" if expected.verdict == "above" else "As good as"
        near = ceiling and known.r1 + known.half >= fmean(CEILING.values()) - 1  # a point below is none to strive for
        whose = "its settings expect" if expected.by_hand else "this preset promises"
        return f"{as_good} {whose}" + (", and close to all that can be known." if near else ".")
    if known.chance:
        times = known.r1 / known.chance
        times_as_good = f"{times:,.0f} times" if times >= 10 else f"{times:.1f} times"
        return f"{times_as_good} as good as guessing{among}; no band is known to measure it by."
    return f"{known.r1:.2f} % of the first answers are right{among}."


def _ceiling(settings: Settings, record: Record | None) -> str:
    """Of the drawn scenes it is known what a reader who knows them all would reach."""
    if record is None or settings.preset != "demo" or record.result.images != DRAWN["val"][0]:
        return ""
    own = record.result.protocols["own"]
    return (
        f"Some captions are true of several scenes: a reader who knows every scene reaches {CEILING['i2t']:.1f} % "
        f"image to text and {CEILING['t2i']:.1f} % text to image; this run, {own.i2t['r1']:.1f} and "
        f"{own.t2i['r1']:.1f} %."
    )


def _fit(history: History, known: _Known) -> tuple[str, str]:
    """Does it overfit, or is it not done yet? In words, and what would help: "images", "epochs" or ""."""
    rows = history.evaluations
    if not rows:
        return "", ""
    last, lowest = rows[-1], min(rows, key=lambda row: row.val_loss)
    losses = [row.loss for row in history.steps if row.epoch == last.epoch and row.loss == row.loss]
    train, val = fmean(losses) if losses else None, last.val_loss
    both = f"training loss {train:.3f}, validation loss {val:.3f} in epoch {last.epoch}" if train is not None else ""
    if val > RISEN * lowest.val_loss and train is not None and train < val:
        best = f"; the best epoch by R@1 is {history.best.epoch}" if history.best else ""
        return (
            f"It overfits since epoch {lowest.epoch}, whose validation loss was {lowest.val_loss:.3f}: {both}{best}.",
            "images",
        )
    earlier = rows[: max(1, 3 * len(rows) // 4)]
    gain = last.r1 - max(row.r1 for row in earlier)
    if len(rows) > 1 and gain > max(known.half, 0.5):
        return (
            f"It is not done: the last {len(rows) - len(earlier)} of {len(rows)} epochs added {gain:.1f} points.",
            "epochs",
        )
    if train is None:
        return "", ""
    if val > max(APART * train, train + 0.1):
        return f"It knows the captions of its training better than new ones ({both}): more images help most.", "images"
    return f"It does not overfit: {both}.", ""


def _easy(history: History) -> str:
    for direction, name in (("t2i", "text to image"), ("i2t", "image to text")):
        since = None
        for row in history.evaluations:
            full = getattr(row, direction)["r10"] >= EASY
            since = (since or row.epoch) if full else None
        if since is not None:
            r10 = getattr(history.evaluations[-1], direction)["r10"]
            return f"The gallery is too easy to tell good from better: R@10 {name} is {r10:.2f} %, since epoch {since}."
    return ""


def _steps(
    run: RunDir,
    settings: Settings,
    record: Record | None,
    known: _Known,
    expected: Expected | None,
    more: str,
) -> tuple[Step, ...]:
    steps, config = [], settings.config
    own_data = any(at.name in ("data.train_fraction", "data.val_fraction") for at in settings.differing)
    larger = None if own_data else NEXT.get(settings.preset)
    if record is None:
        steps.append(Step("Measure the best checkpoint, with intervals and retrievals", command(run, "report")))
    if known.chance is not None and known.low <= known.chance:
        on_train = f"{command(run, 'eval')} --split train"
        steps.append(Step("Does it know at least what it was trained on? If not, do the captions fit?", on_train))
    elif expected and not expected.why_not and expected.verdict == "below" and config:
        steps.append(Step("Is it luck? The same with another seed", again(run, settings, f"seed={config.seed + 1}")))
    elif more == "epochs" and config:
        steps.append(Step("Train longer", again(run, settings, f"train.epochs={2 * config.train.epochs}")))
    elif more == "images" and not larger and config and config.train.epochs > 3:
        fewer = again(run, settings, "train.early_stop_epochs=2")
        steps.append(Step("Without more images: stop when R@1 no longer rises", fewer))
    if larger and (settings.preset == "demo" or len(steps) == (record is None)):  # nothing better to do
        images = "Real photographs" if settings.preset == "demo" else "More images, and a larger gallery"
        steps.append(Step(images, f"clipcoco prepare-data --preset {larger}"))
    query = (record and record.retrievals.query()) or "what is in the picture"
    words = ["clipcoco", "search", query, "--run", run.name, *placed(run)]
    steps.append(Step("See for yourself", shlex.join(words)))
    return tuple(steps)
