"""Whether a finished run lies in the band of recall that its preset states for itself, or that was set for this run."""

from collections.abc import Collection
from dataclasses import dataclass

from clipcoco.config.backbones import BACKBONES
from clipcoco.config.derive import DRAWN, OFFICIAL, subset_size
from clipcoco.report.settings import Settings, read_settings
from clipcoco.runs.directory import RunDir
from clipcoco.runs.record import Record, read_record

# What a band allows for: where the pictures are, how fast it goes, what is kept, and luck.
FREE = {
    *("seed", "data.root", "data.subset_seed", "data.prepared_size", "data.workers"),
    *("train.precision", "train.log_every_steps", "checkpoint.every_steps", "checkpoint.keep"),
}
# R@1 on the drawn scenes of a reader who knows every one: some captions are true of several, and ties are misses.
CEILING = {"i2t": 99.4, "t2i": 99.88}


@dataclass(frozen=True)
class Expected:
    low: float  # mean R@1 of both directions in percent, as are the other two
    high: float
    r1: float
    protocol: str
    images: int  # measured on
    cached: bool  # from a frozen backbone's features
    why_not: str  # what makes it another run than the preset's band is about; "" for nothing
    by_hand: bool  # set for this run: not the preset's

    @property
    def verdict(self) -> str:
        return "below" if self.r1 < self.low else "above" if self.r1 > self.high else "within"

    @property
    def band(self) -> str:
        among = "folds of 1,000" if self.protocol == "1k" else "own gallery"
        if self.protocol == "own" and not self.why_not:
            among += f" of {self.images:,}"
        return f"{self.low:g} to {self.high:g} %, {among}"

    def to_plain(self) -> dict[str, object]:
        """Of `train --json`."""
        by = "settings" if self.by_hand else "preset"
        return {"low": self.low, "high": self.high, "protocol": self.protocol, "verdict": self.verdict, "by": by}


def read_expected(run: RunDir) -> Expected | None:
    """Of a run that has just ended and was measured; None where its preset states nothing, or nothing of this run."""
    found = judge(read_settings(run), read_record(run)[0], run.status().state == "finished")
    return None if found and found.why_not else found


def judge(settings: Settings, record: Record | None, finished: bool) -> Expected | None:
    """None for a run without an end, a recall or a band."""
    config = settings.config
    if config is None or settings.problem or settings.preset == "base" or record is None or not finished:
        return None
    cached, protocol = config.train.frozen_epochs == "all", config.expected.protocol
    band = config.expected.cached if cached else config.expected.trained
    table = record.result.protocols.get(protocol)
    if band == "none" or table is None:
        return None
    why_not = "" if settings.own_band else _why_not(settings, record)
    return Expected(band[0], band[1], table.r1, protocol, record.result.images, cached, why_not, settings.own_band)


def _why_not(settings: Settings, record: Record) -> str:
    assert settings.config is not None
    if settings.init:
        return f"it began with the weights of {settings.init}"
    free = _free(settings, record)
    changed = [at.name for at in settings.differing if at.name not in free and not at.name.startswith("train.cached.")]
    if changed:
        more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
        return f"changed settings: {', '.join(changed[:4])}{more}"
    data, whole = settings.config.data, DRAWN if settings.preset == "demo" else OFFICIAL
    fractions = {"train": data.train_fraction, "val": data.val_fraction}
    wanted = {split: subset_size(whole[split][0], fraction) for split, fraction in fractions.items()}
    found = {"train": record.provenance.data.get("train_images"), "val": record.result.images}
    if found != wanted:
        return f"other data than its {wanted['train']:,} + {wanted['val']:,} images"
    return ""


def _free(settings: Settings, record: Record) -> Collection[str]:
    """FREE, and what changes nothing in this run."""
    assert settings.config is not None
    vision, free = settings.config.model.vision, set(FREE)
    if vision.weights != "none":  # BatchNorm keeps its statistics, so that pieces have the gradient of the batch
        free.add("train.micro_batch_size")
    if settings.config.train.frozen_epochs == "all":  # as auto comes to where a band of cached features is stated
        free |= {"train.frozen_epochs", "train.backbone_lr_scale"}
        free |= set() if settings.config.data.cached_crops else {"data.crop_scale"}
    # A file of one's own may be the published one, whose name ends in the first digits of its sum.
    asked = next((at.preset for at in settings.differing if at.name == "model.vision.weights"), "")
    digits = BACKBONES[vision.backbone].published.get(asked, "").removesuffix(".pth").rpartition("-")[2]
    if digits and str(record.provenance.data.get("weights", "")).startswith(digits):
        free.add("model.vision.weights")
    return free
