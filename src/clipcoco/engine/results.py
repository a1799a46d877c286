"""What is measured of a model, without torch: `eval` prints it, evaluation.json keeps it, the report reads it again.

What is read again may be old, damaged or a stranger's: defaults stand for what earlier versions did not keep.
"""

from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Annotated, Any

from pydantic import Field

from clipcoco.events import Chance, Kind, Percent, Recalls

Range = tuple[float, float]  # [low, high] in percent
Count = Annotated[int, Field(ge=0, le=10**15)]


@dataclass(frozen=True)
class ConfidenceIntervals:
    """Of 95 %, by "r1", "r5", "r10", and of the mean R@1."""

    i2t: dict[str, Range]
    t2i: dict[str, Range]
    r1: Range


@dataclass(frozen=True, kw_only=True)
class RecallTable:
    """Recalls in percent, over all images and captions as one gallery, or means over folds."""

    i2t: Recalls
    t2i: Recalls
    r1: float  # mean of both directions
    rsum: float  # sum of the six recalls, at most 600
    chance: Chance  # what a random order gives in expectation
    interval: ConfidenceIntervals | None = None
    ties: int = 0  # queries, of both directions and over all folds, whose own score equals a foreign one
    images: int  # ranked, over all folds
    captions: int
    folds: int = 1  # the figures are means over so many galleries
    dropped: int = 0  # images behind the last whole fold

    def to_plain(self) -> dict[str, Any]:
        """Dictionaries, lists and numbers: a protocol of `eval --json`."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class FoldsTable(RecallTable):
    order: str = "ids"  # of the images in folds


@dataclass(frozen=True)
class FalseCaptionAccuracy:
    """Of one kind of false caption: the share of pairs in percent whose true caption is nearer to the image."""

    accuracy: Percent
    interval: Range  # of 95 %, over images
    pairs: Count
    images: Count
    ties: Count  # of the pairs: both are equally near, which counts as wrong


@dataclass(frozen=True)
class Composition:
    """Accuracy on false captions, by kind: whether a model knows which word belongs to which thing."""

    source: str  # "drawn scenes", "SugarCrepe"
    kinds: Annotated[dict[Kind, FalseCaptionAccuracy], Field(min_length=1, max_length=20)]
    sha256: str  # of all pairs, in hexadecimal
    chance: float = 50.0


@dataclass(frozen=True)
class Similarities:
    """Cosine similarities of matched pairs (an image with an own caption, M) and of all others (N M - M)."""

    edges: list[float]
    matched: list[Count]  # pairs between two edges
    unmatched: list[Count]
    matched_mean: float
    unmatched_mean: float | None = None  # None: a single image has no foreign caption

    def __post_init__(self) -> None:
        rising = all(-1 <= low < high <= 1 for low, high in pairwise(self.edges))
        fitting = len(self.edges) - 1 == len(self.matched) == len(self.unmatched)
        if not rising or not fitting or not sum(self.matched):
            raise ValueError("the histograms do not fit their edges")


@dataclass(frozen=True)
class RankCounts:
    """How many queries have a rank of 1, 2, 3 to 4, 5 to 8 and so on: `upper` is each group's last rank."""

    upper: list[Count]
    counts: list[Count]

    def __post_init__(self) -> None:
        rising = all(low < high for low, high in pairwise([0, *self.upper]))
        if not rising or len(self.upper) != len(self.counts) or not sum(self.counts):
            raise ValueError("the counts do not fit their ranks")


@dataclass(frozen=True)
class Hub:
    count: int
    file: str = ""  # of an image
    caption: str = ""


@dataclass(frozen=True)
class Hubs:
    """The rows of the gallery that stand most often among the `nearest` of a query, the most frequent first."""

    rows: list[int]
    counts: list[int]
    nearest: int
    queries: int
    gallery: int
    expected: float  # appearances of each row, were all equally near
    never: int  # rows that no query has among its nearest
    found: list[Hub] = field(default_factory=list)  # the rows by name, in evaluation.json


@dataclass(frozen=True)
class Geometry:
    """`gap`: distance between the means of image and text embeddings (Liang et al. 2022). `alignment`: mean squared
    distance of matched pairs; `uniformity`: log mean exp(-2 d^2) over pairs of a kind (Wang & Isola 2020), lower
    is more evenly spread, here of the images, and of each image's first caption. None: a single image."""

    gap: float
    alignment: float
    image_uniformity: float | None = None
    text_uniformity: float | None = None
