"""Two runs side by side: the settings that differ, and whether the recalls do.

Two runs are measured on the same images, so that whether they differ is asked of their difference, image by image.
Whether their own intervals overlap is far stricter a question: these hold what is hard for both.
"""

from dataclasses import dataclass
from itertools import product

from clipcoco.config.load import flatten, load_config
from clipcoco.config.schema import CACHED
from clipcoco.engine.results import RecallTable
from clipcoco.errors import ConfigError
from clipcoco.events import Evaluated
from clipcoco.runs.record import Hits, Record, read_record
from clipcoco.runs.standing import Standing

DIRECTIONS = {"i2t": "image -> text", "t2i": "text -> image", "mean": "mean"}
CUTOFFS = {"r1": "R@1", "r5": "R@5", "r10": "R@10"}
RECALLS = (*product(("i2t", "t2i"), CUTOFFS), ("mean", "r1"))  # as `difference_intervals` has them


@dataclass(frozen=True)
class Row:
    """One recall of both runs, or their accuracy on one kind of false caption, in percent; 95 % intervals, [low, high],
    of each and of B - A, where they are known."""

    direction: str  # or the kind
    metric: str
    a: float
    b: float
    a_interval: tuple[float, float] | None
    b_interval: tuple[float, float] | None
    difference_interval: tuple[float, float] | None

    def name(self, long: bool = True) -> str:
        if self.metric not in CUTOFFS:
            return self.direction
        return f"{DIRECTIONS[self.direction] if long else self.direction} {CUTOFFS[self.metric]}"

    @property
    def beyond(self) -> bool | None:
        """Whether the difference is beyond the noise: its interval does not hold 0."""
        if self.difference_interval is None:
            return None
        return not self.difference_interval[0] <= 0 <= self.difference_interval[1]

    @property
    def overlap(self) -> bool | None:
        """Whether the intervals of both have something in common."""
        if self.a_interval is None or self.b_interval is None:
            return None
        return self.a_interval[0] <= self.b_interval[1] and self.b_interval[0] <= self.a_interval[1]


@dataclass(frozen=True)
class Comparison:
    """Run A and run B."""

    settings: dict[str, tuple[object, object]]  # those that differ, by dotted name
    unread: tuple[str, ...]  # configurations that can't be read, and why
    rows: tuple[Row, ...]  # none where a run was never evaluated
    composition: tuple[Row, ...]  # none where a run was not measured on false captions, or on others
    notes: tuple[str, ...]  # what is missing of the recalls
    obstacles: tuple[str, ...]  # why they can't be compared


@dataclass(frozen=True)
class _Recalls:
    recalls: dict[tuple[str, str], float]  # by direction and metric
    intervals: dict[tuple[str, str], tuple[float, float]]
    hits: Hits | None
    measured_on: dict[str, str]  # what must be equal for two recalls to compare, as far as it is known
    sha256: str | None  # of the validation set
    note: str
    record: Record | None = None


def between(a: Standing, b: Standing, letters: str = "AB") -> Comparison:
    """`letters` name both in what is said of them."""
    settings: list[dict[str, object]] = []
    unread, edited = [], list[str]()
    for letter, one in zip(letters, (a, b), strict=True):
        try:
            loaded = load_config(file=one.run.config)
            sums = {"model.vision.weights (SHA-256)": loaded.weights[:12]} if loaded.weights else {}
            settings.append(flatten(loaded.config) | sums)
            edited += loaded.notes
        except ConfigError as error:
            unread.append(f"the settings of {letter} can't be read: {error.mistakes[0]}")
    of_a, of_b = ({}, {}) if unread else settings
    # What a run was trained by stands in `train`, and what it was expected to reach changed nothing.
    told = [name for name in of_a if name not in CACHED.values() and not name.startswith("expected.")]
    differing = {name: (of_a[name], of_b[name]) for name in told if of_a[name] != of_b.get(name, of_a[name])}
    of_both = [_recalls_of(one) for one in (a, b)]
    notes = edited + [f"{letter} {one.note}" for letter, one in zip(letters, of_both, strict=True) if one.note]
    notes += [f"{letter}: {one.caution}" for letter, one in zip(letters, (a, b), strict=True) if one.caution]
    obstacles = [
        f"{what} {'differ' if what.endswith('s') else 'differs'}: {letters[0]} has {has_a}, {letters[1]} {has_b}"
        for what, has_a in of_both[0].measured_on.items()
        if has_a is not None and (has_b := of_both[1].measured_on.get(what)) is not None and has_a != has_b
    ]
    if not obstacles and not _same_images(*of_both):
        obstacles.append("the validation sets are of one size, but not the same")
    paired = {} if obstacles else _paired(of_both[0].hits, of_both[1].hits)
    intervals = [one.intervals for one in of_both] + [paired]
    rows = tuple(
        Row(
            *recall, of_both[0].recalls[recall], of_both[1].recalls[recall], *(known.get(recall) for known in intervals)
        )
        for recall in RECALLS
        if all(one.recalls for one in of_both)
    )
    composition = () if obstacles else _composition(of_both[0].record, of_both[1].record)
    return Comparison(differing, tuple(unread), rows, composition, tuple(notes), tuple(obstacles))


def _same_images(a: _Recalls, b: _Recalls) -> bool:
    """As far as it is known."""
    if None not in (a.sha256, b.sha256) and a.sha256 != b.sha256:
        return False
    of_both = [(one.hits.image_ids, [row[6] for row in one.hits.counts]) for one in (a, b) if one.hits]
    return len(of_both) < 2 or of_both[0] == of_both[1]


def _composition(a: Record | None, b: Record | None) -> tuple[Row, ...]:
    """Of the same pairs of captions."""
    found = [record.result.composition for record in (a, b) if record and record.result.composition]
    if len(found) < 2 or found[0].sha256 != found[1].sha256:
        return ()
    rows = []
    for kind, of_a in found[0].kinds.items():
        if of_b := found[1].kinds.get(kind):
            one, other = (record.false_captions.get(kind) if record else None for record in (a, b))
            same = one and other and (one.image_ids, one.pairs) == (other.image_ids, other.pairs)
            paired = _paired(one.hits(), other.hits()) if one and other and same else {}
            values = of_a.accuracy, of_b.accuracy, of_a.interval, of_b.interval
            rows.append(Row(kind, "accuracy", *values, paired.get(("t2i", "r1"))))
    return tuple(rows)


def _paired(a: Hits | None, b: Hits | None) -> dict[tuple[str, str], tuple[float, float]]:
    """The intervals of B - A."""
    import numpy as np  # the list of runs does without

    from clipcoco.engine.interval import difference_intervals

    if a is None or b is None:
        return {}
    found = difference_intervals(*(np.array(hits.counts, dtype=np.int64) for hits in (a, b)))
    return {recall: (low, high) for recall, (low, high) in zip(RECALLS, found.tolist(), strict=True)}


def _recalls_of(one: Standing) -> _Recalls:
    """Of the best epoch: as measured at the end, or else as the training saw it, without intervals."""
    record, why = read_record(one.run)
    if record is not None and one.best is not None and record.result.step != one.best.step:
        record, why = None, "it was measured at another step"
    if record is not None:
        result, own = record.result, record.result.protocols["own"]
        intervals = {
            (direction, metric): own.interval.r1 if direction == "mean" else getattr(own.interval, direction)[metric]
            for direction, metric in RECALLS
            if own.interval and (direction == "mean" or metric in getattr(own.interval, direction))
        }
        measured_on = {
            "the split": result.split,
            "the gallery": f"{result.images:,} images",
            "the captions": f"{result.captions:,}",
            "the images' source": result.source,
        }
        sha256 = record.provenance.data.get("val")
        sha256 = sha256 if isinstance(sha256, str) else None
        again = f"has no hits by image, which pair the runs. Measure it again: clipcoco report {one.run.words}"
        note = "" if record.hits else again
        return _Recalls(_by_metric(own), intervals, record.hits, measured_on, sha256, note, record)
    if one.best is None:
        return _Recalls({}, {}, None, {}, None, "was never evaluated")
    gallery = {"the gallery": f"{one.images:,} images"} if one.images is not None else {}
    note = f"has no intervals: {why}. Measure it: clipcoco report {one.run.words}"
    return _Recalls(_by_metric(one.best), {}, None, gallery, None, note)


def _by_metric(own: RecallTable | Evaluated) -> dict[tuple[str, str], float]:
    return {
        (direction, metric): own.r1 if direction == "mean" else float(getattr(own, direction)[metric])
        for direction, metric in RECALLS
    }
