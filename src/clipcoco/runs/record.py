"""evaluation.json: what the best checkpoint was measured to be, as the report reads it.

The file may be old, damaged or a stranger's; what does not fit these classes is no record.
"""

import json
from itertools import pairwise
from typing import Annotated, Any, Self

from pydantic import Field, StringConstraints, ValidationError, model_validator

from clipcoco.disk.files import read_own
from clipcoco.disk.seal import unsealed
from clipcoco.rows import Part, Recalls
from clipcoco.runs.directory import RunDir

SCHEMA = 1
Count = Annotated[int, Field(ge=0, le=2**31)]
Base64 = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]*=*$")]


class Chance(Part):
    i2t: Recalls
    t2i: Recalls


class Interval(Part):
    """[low, high] in percent."""

    i2t: dict[str, tuple[float, float]]
    t2i: dict[str, tuple[float, float]]
    r1: tuple[float, float]


class Protocol(Part):
    i2t: Recalls
    t2i: Recalls
    r1: float
    rsum: float
    chance: Chance
    interval: Interval | None = None
    ties: int = 0
    images: int
    captions: int
    folds: int = 1
    dropped: int = 0
    order: str = "ids"  # of the images in folds


class Protocols(Part):
    own: Protocol
    one_k: Protocol | None = Field(None, alias="1k")


class Result(Part):
    """What `eval --json` prints."""

    step: int
    split: str
    source: str
    images: int
    captions: int
    protocols: Protocols
    precision: str | None = None


class ImageHit(Part):
    file: str
    score: float  # cosine similarity
    right: bool


class CaptionHit(Part):
    caption: str
    score: float
    right: bool


class TextQuery(Part):
    caption: str
    rank: int  # of its image, from 1
    drawn: bool  # by the seed; otherwise one of the worst
    hits: list[ImageHit]  # the nearest, best first; the right one last when it is not among them


class ImageQuery(Part):
    file: str
    rank: int  # of the best of its own captions
    drawn: bool
    hits: list[CaptionHit]


class Retrievals(Part):
    texts: list[TextQuery]
    images: list[ImageQuery]


class Similarities(Part):
    edges: list[float]
    matched: list[int]
    unmatched: list[int]
    matched_mean: float
    unmatched_mean: float | None = None

    @model_validator(mode="after")
    def _fit(self) -> Self:
        rising = all(-1 <= low < high <= 1 for low, high in pairwise(self.edges))
        fitting = len(self.edges) - 1 == len(self.matched) == len(self.unmatched)
        if not rising or not fitting or not sum(self.matched):
            raise ValueError("the histograms do not fit their edges")
        return self


class RankCounts(Part):
    upper: list[int]
    counts: list[int]

    @model_validator(mode="after")
    def _fit(self) -> Self:
        rising = all(low < high for low, high in zip([0, *self.upper], self.upper, strict=False))
        if not rising or len(self.upper) != len(self.counts) or not sum(self.counts):
            raise ValueError("the counts do not fit their ranks")
        return self


class Ranks(Part):
    i2t: RankCounts
    t2i: RankCounts


class Hits(Part):
    """Of each image what intervals of recall need, `clipcoco.engine.interval.Hits`: another run's are paired by id."""

    image_ids: list[int]  # ascending
    counts: list[tuple[Count, Count, Count, Count, Count, Count, Count]]

    @model_validator(mode="after")
    def _fit(self) -> Self:
        rising = all(low < high for low, high in pairwise(self.image_ids))
        bounded = all(max(row[:3]) <= 1 <= row[6] >= max(row[3:6]) for row in self.counts)
        if not rising or not bounded or not self.counts or len(self.image_ids) != len(self.counts):
            raise ValueError("the hits do not fit their images")
        return self


class Hub(Part):
    file: str = ""  # of an image
    caption: str = ""
    count: int


class Hubs(Part):
    found: list[Hub]
    nearest: int
    queries: int
    gallery: int
    expected: float
    never: int


class BothHubs(Part):
    images: Hubs
    captions: Hubs


class Geometry(Part):
    gap: float
    alignment: float
    image_uniformity: float | None = None
    text_uniformity: float | None = None


class Provenance(Part):
    """What of the checkpoint the page shows without opening it."""

    checkpoint: str
    weights_sha256: str
    parameters: int
    vocabulary: int
    versions: dict[str, str]
    data: dict[str, Any]  # the fingerprint


class Record(Part):
    result: Result
    retrievals: Retrievals
    similarities: Similarities
    ranks: Ranks
    hits: Hits | None = None  # older versions kept none
    hubs: BothHubs
    geometry: Geometry
    thumbnails: dict[str, Base64]  # JPEG of at most 160 pixels a side, by file
    seed: int
    provenance: Provenance


def read_record(run: RunDir) -> tuple[Record | None, str]:
    """The record of a run, or None and why there is none, as half a sentence."""
    try:
        content = unsealed(json.loads(read_own(run.evaluation)))
        if isinstance(content, dict) and isinstance(content.get("schema"), int) and content["schema"] > SCHEMA:
            return None, "evaluation.json was written by a newer clipcoco"
        return Record.model_validate(content), ""
    except FileNotFoundError:
        return None, "evaluation.json is not there"
    except OSError as error:
        return None, f"evaluation.json can't be read: {error.strerror}"
    except (ValidationError, ValueError, RecursionError):
        return None, "evaluation.json is damaged"
