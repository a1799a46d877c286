"""What a run tells of itself at its start, line by line."""

from pathlib import Path

from clipcoco.config.backbones import MINILM
from clipcoco.config.derive import Derived
from clipcoco.config.schema import Config
from clipcoco.data.captions import CaptionTable
from clipcoco.data.split import Source
from clipcoco.say import say_count


def say_data(config: Config, train: CaptionTable, val: CaptionTable, source: Source, workers: int, why: str) -> str:
    said = f"{source.name} ({source.why})" if source.why else source.name
    less = f" (without {config.data.exclude})" if config.data.exclude != "none" else ""
    return (
        f"{config.data.root}: {len(train.files):,}{less} + {len(val.files):,} images, "
        f"{len(train.captions):,} + {len(val.captions):,} captions; {said}; "
        f"{workers} workers ({why})"
    )


def say_model(config: Config, parameters: int, origin: str) -> str:
    weights = config.model.vision.weights
    start_from = f"from {origin or weights}" if origin or weights != "none" else "from scratch"
    return (
        f"{config.model.vision.backbone} at {config.data.image_size} px {start_from} + {config.model.text.tower}: "
        f"{parameters / 1e6:.1f} M -> {config.model.projection_dim} dimensions"
    )


def say_training(config: Config, derived: Derived, micro_batch: int, processes: int) -> str:
    frozen = ""
    if derived.frozen_epochs:
        many = "all epochs" if derived.cached else say_count(derived.frozen_epochs, "epoch")
        frozen = f", backbone frozen for {many} ({derived.frozen_reason})"
        frozen += ", hence as train.cached says" * derived.cached
    captions = config.train.captions_per_image
    more = f", {captions} captions of each image" * (captions > 1)
    more += f", {config.train.text_negatives} false captions an image" * (config.train.text_negatives > 0)
    pieces = ""
    if config.train.micro_batch_size == "auto":
        pieces = f" in pieces of {micro_batch or 'what fits'}"
    elif micro_batch < config.train.batch_size:
        pieces = f" in pieces of {micro_batch}" + " with BatchNorm statistics of their own" * derived.normalised
    if processes > 1:
        pieces += f" on {processes} processes"
    return (
        f"{say_count(config.train.epochs, 'epoch')} x {say_count(derived.steps_per_epoch, 'step')} "
        f"x {say_count(config.train.batch_size, 'image')}{pieces}, "
        f"lr {config.train.lr:g}, seed {config.seed}{more}{frozen}"
    )


def say_captions(config: Config, captions: int) -> str:
    return (
        f"each passes the text encoder once: {2 * MINILM.width * captions / 1e6:,.0f} MB at most in "
        f"{Path(config.data.root) / '.clipcoco'}, kept for later runs; {config.model.text.caution}"
    )


def say_features(config: Config, derived: Derived) -> str:
    data = config.data
    size = 2 * config.model.vision.width * (data.cached_views * derived.train_images + derived.val_images)
    crops = [say_count(data.cached_crops, "crop")] if data.cached_crops else []
    seen = ["each image", *["its mirror image"] * data.flip, *crops]
    passes = "pass" if len(seen) > 1 else "passes"
    return (
        f"{' and '.join(seen)} {passes} the backbone once: {size / 1e6:,.0f} MB in "
        f"{Path(config.data.root) / '.clipcoco'}, kept for later runs"
    )
