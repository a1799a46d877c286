"""evaluation.json: what the best checkpoint was measured to be, as the report reads it.

The file may be old, damaged or a stranger's; what does not fit these classes is refused.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, NotRequired, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from typing_extensions import TypedDict

from clipcoco.disk.seal import read_sealed
from clipcoco.engine.results import Composition, FoldsTable, Geometry, Hubs, RankCounts, RecallTable, Similarities
from clipcoco.runs.directory import RunDir
from clipcoco.runs.metrics import History

SCHEMA = 1
NEVER = "never measured"
Count = Annotated[int, Field(ge=0, le=2**31)]
Base64 = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]*=*$")]
Protocols = TypedDict("Protocols", {"own": RecallTable, "1k": NotRequired[FoldsTable | None]})


class Part(BaseModel):
    """What later versions add is passed over. The rules hold in the engine's own classes too."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Result(Part):
    """What `eval --json` prints."""

    step: int
    split: str
    source: str
    images: int
    captions: int
    protocols: Protocols
    composition: Composition | None = None  # of other data than drawn scenes and val2017, and of older versions
    caution: str | None = None  # what stands beside every recall
    precision: str | None = None


class Hit(Part):
    file: str = ""  # of an image
    caption: str = ""
    score: float  # cosine similarity
    right: bool


class Query(Part):
    file: str = ""  # of an image
    caption: str = ""
    rank: int  # from 1, of its image, or of the best of its own captions
    drawn: bool  # by the seed; otherwise one of the worst
    hits: list[Hit]  # the nearest, best first; the right one last when it is not among them


class Retrievals(Part):
    texts: list[Query]
    images: list[Query]

    def query(self) -> str | None:
        """What a person may type to see it work: of the captions drawn by the seed the shortest that found its image,
        or the shortest of all where none did."""
        drawn = [(query.rank != 1, len(query.caption), query.caption) for query in self.texts if query.drawn]
        return min(drawn)[2].rstrip(" .").lower() if drawn else None


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


class FalseCaptionHits(Part):
    """Of one kind of false caption, of each image that has some: how many pairs are right, of how many."""

    image_ids: list[int]  # ascending
    right: list[Count]
    pairs: list[Count]

    @model_validator(mode="after")
    def _fit(self) -> Self:
        rising = all(low < high for low, high in pairwise(self.image_ids))
        rows = list(zip(self.right, self.pairs, strict=False))
        fitting = len(self.image_ids) == len(self.right) == len(self.pairs) > 0
        if not rising or not fitting or not all(right <= pairs > 0 for right, pairs in rows):
            raise ValueError("the hits on false captions do not fit their images")
        return self

    def hits(self) -> Hits:
        """As of captions that find their image, or do not."""
        rows = [(0, 0, 0, right, right, right, pairs) for right, pairs in zip(self.right, self.pairs, strict=True)]
        return Hits(image_ids=self.image_ids, counts=rows)


class HardWord(Part):
    """A word whose captions are missed more often than captions are, beyond the noise."""

    word: str
    missed: Count
    captions: Count  # that have it


class Confusion(Part):
    """So many missed captions have `word`, which no caption of the image found has: most of these say `taken_for`."""

    word: str
    taken_for: str
    count: Count


class Failures(Part):
    """Captions that do not find their image first, and images that find none of their captions first."""

    captions: Count
    images: Count
    equal_captions: Count  # of those: the image found has the very same caption, so that both are right
    equal_images: Count
    all_words: Count  # of the other captions: those of the image found have all their words too
    words: list[HardWord]
    confusions: list[Confusion]


class Named(Part):
    """An image, and the caption that is nearest to it."""

    file: str
    caption: str


class BothHubs(Part):
    images: Hubs
    captions: Hubs


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
    false_captions: dict[str, FalseCaptionHits] = {}  # by kind, as in the result's composition
    failures: Failures | None = None
    nearest: list[Named] | None = None  # by image as in `hits`; older versions, and of many images
    hubs: BothHubs
    geometry: Geometry
    thumbnails: dict[str, Base64]  # JPEG of at most 160 pixels a side, by file
    seed: int
    provenance: Provenance


def measured(run: RunDir | None, content: Mapping[str, Any], caution: str) -> dict[str, Any] | None:
    """The recall of the weights in the checkpoint `content`, and of no others: those of this very step.

    By protocol, as in `eval --json`, and with the "caution" where there is one.
    """
    step, warned = content["state"].get("step"), {"caution": caution} if caution else {}
    record, _ = read_record(run) if run else (None, "")
    if record is not None and record.result.step == step:
        own, folds = record.result.protocols["own"], record.result.protocols.get("1k")
        return {"own": own.to_plain()} | ({"1k": folds.to_plain()} if folds else {}) | warned
    for row in content.get("metrics", []):  # what training saw
        if (row["event"], row["step"]) == ("evaluation", step):
            seen = {key: row.get(key) for key in ("i2t", "t2i", "r1", "rsum")}
            return {"own": {**seen, "images": content.get("data", {}).get("val_images")}} | warned
    return None


def say_measured(recall: Mapping[str, Any] | None) -> str:
    """What `measured` gives, as half a sentence."""
    if recall is None:
        return NEVER
    own, caution = recall["own"], recall.get("caution")
    over = f" over {own['images']:,} images (chance {100 / own['images']:.2f})" if own["images"] else ""
    return f"mean R@1 {own['r1']:.2f}{over}" + (f"; {caution}" if caution else "")


def read_record(run: RunDir) -> tuple[Record | None, str]:
    """The record of a run, or None and why there is none, as half a sentence."""
    try:
        content = read_sealed(run.evaluation)
        if isinstance(content, dict) and isinstance(content.get("schema"), int) and content["schema"] > SCHEMA:
            return None, "evaluation.json was written by a newer clipcoco"
        return Record.model_validate(content), ""
    except FileNotFoundError:
        return None, "evaluation.json is not there"
    except OSError as error:
        return None, f"evaluation.json can't be read: {error.strerror}"
    except ValueError:  # a ValidationError is one
        return None, "evaluation.json is damaged"


def is_of_best(record: Record, history: History) -> bool:
    """Whether it was measured of the checkpoint that is the best by now, as far as that is known."""
    best = history.best
    return best is None or best.weights_sha256 == record.provenance.weights_sha256
