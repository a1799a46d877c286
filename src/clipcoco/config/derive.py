"""What follows from a configuration and the size of the data: plain arithmetic, without the data or torch."""

import math
from dataclasses import dataclass

from clipcoco.config.backbones import BACKBONES, MINILM
from clipcoco.config.schema import CachedConfig, Config, ModelConfig, TrainConfig
from clipcoco.errors import ConfigError, DataError

# Images and captions of COCO 2017, as published.
OFFICIAL = {"train": (118_287, 591_753), "val": (5_000, 25_014)}
IN_TRAIN = 4_407, 22_044  # of Karpathy's test split
DRAWN = {"train": (6_000, 30_000), "val": (500, 2_500)}  # of the embedded data set
_HEAD_STEPS = 2_000  # before the backbone's pretrained features are exposed to the heads' gradients
_BYTES_A_PARAMETER = 12  # a float32 weight and AdamW's two moments
_BYTES_A_FROZEN_ONE = 4
_CHECKPOINTS = 3  # last, previous and best
_STEPS, _EPOCHS = 11, 20  # from cached features: of an epoch, and how many epochs of as many


@dataclass(frozen=True)
class Derived:
    train_images: int  # after the fraction, as are the other counts
    train_captions: int  # in proportion to the images: exact only for the whole split
    val_images: int
    val_captions: int
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    frozen_epochs: int
    frozen_reason: str
    cached: bool  # all epochs are frozen, so that train.cached holds: `as_cached`
    normalised: bool  # BatchNorm of the backbone is trained, over the rows of a piece
    backbone_lr_scale: float
    parameters: int  # with a full vocabulary; small training sets yield a smaller one
    checkpoint_bytes: int
    checkpoints_kept: int
    counted_from: str  # where the counts of images and captions come from


def subset_size(n: int, fraction: float) -> int:
    return math.floor(n * fraction + 0.5)


def count_parameters(model: ModelConfig, vocab_size: int) -> int:
    """Numbers of the DualEncoder, the temperature among them, and those of a frozen text encoder."""
    backbone, dim = BACKBONES[model.vision.backbone].parameters, model.projection_dim
    return backbone + model.vision.width * dim + sum(_count_text(model, vocab_size)) + 1


def _count_text(model: ModelConfig, vocab_size: int) -> tuple[int, int]:
    """The numbers of the text tower that are trained, and those that are frozen."""
    text, dim = model.text, model.projection_dim
    frozen = text.weights != "none"
    width = MINILM.width if frozen else text.width
    norm = 2 * width
    attention = (3 * width * width + 3 * width) + (width * width + width)
    mlp = (4 * width * width + 4 * width) + (4 * width * width + width)
    block = norm + attention + norm + mlp
    if frozen:
        head = width * dim + (width + 1) * MINILM.hidden + (MINILM.hidden + 1) * dim
        return head, (vocab_size + MINILM.positions) * width + norm + MINILM.layers * block
    embeddings = (vocab_size + text.context_length * (text.layers > 0)) * width
    norms = norm * (1 + (text.pool == "mean"))
    return embeddings + text.layers * block + norms + width * dim, 0


def resolve_warmup(warmup_steps: int | float, total_steps: int) -> int:
    """Steps of the linear warm-up; raises ConfigError when the run is shorter."""
    if isinstance(warmup_steps, float):
        return subset_size(total_steps, warmup_steps)
    if warmup_steps > total_steps:
        raise ConfigError(
            f"train.warmup_steps is {warmup_steps:,}, more than the {total_steps:,} steps of the whole run. "
            "Give a share, as in --set train.warmup_steps=0.05"
        )
    return warmup_steps


def micro_batch(train: TrainConfig, processes: int, normalised: bool, stored: int = 0) -> int:
    """The rows of a piece, of which each process takes equally many; 0 where the first step has to find them out.

    `normalised`: BatchNorm takes its statistics over a piece, which makes its size a part of the experiment. `stored`
    is that of a run that goes on. Raises ConfigError with the numbers that fit.
    """
    batch, asked = train.batch_size, train.micro_batch_size
    fitting = [size for size in range(1, batch + 1) if batch % size == 0 and batch // size % processes == 0]
    if stored and asked in ("auto", "whole"):
        if stored in fitting:
            return stored
        if normalised:
            others = [str(many) for many in range(1, batch // stored + 1) if batch // stored % many == 0]
            raise ConfigError(
                f"this run's BatchNorm takes its statistics over pieces of {stored} of a batch of {batch}, which "
                f"{processes} processes can't share (WORLD_SIZE). Start {_either(others)}"
            )
    if not fitting:
        others = [str(many) for many in range(1, processes) if batch % many == 0]
        raise ConfigError(
            f"{processes} processes can't share a batch of {batch} equally (train.batch_size). Start {_either(others)}"
        )
    if asked == "auto" and normalised:
        raise ConfigError(
            "train.micro_batch_size can't be auto where BatchNorm is trained: its statistics would come of what "
            f"fits into the memory. Give a number: {_either([str(size) for size in fitting[-4:]])}"
        )
    if isinstance(asked, str):
        return fitting[-1] if asked == "whole" else 0
    if asked not in fitting:
        below = [size for size in fitting if size < asked][-1:] + [size for size in fitting if size > asked][:1]
        shared = f" that {processes} processes share equally" if processes > 1 else ""
        raise ConfigError(
            f"pieces of {asked} leave a remainder of a batch of {batch}{shared} (train.micro_batch_size). "
            f"Give {_either([str(size) for size in below])}"
        )
    return asked


def _either(choices: list[str]) -> str:
    return " or ".join([", ".join(choices[:-1]), choices[-1]] if choices[1:] else choices)


def as_cached(config: Config, auto: TrainConfig | CachedConfig | None = None) -> Config:
    """As a run is trained whose epochs are all frozen, whatever the device that it goes on on.

    Where train.cached says auto, `auto` has the number; by default train's own, which is that of a run that began so.
    """
    found = config.train if auto is None else auto
    cached = config.train.cached.model_dump()
    numbers = {name: getattr(found, name) if value == "auto" else value for name, value in cached.items()}
    return config.model_copy(update={"train": config.train.model_copy(update={**numbers, "frozen_epochs": "all"})})


def fitting(cached: CachedConfig, images: int) -> CachedConfig:
    """With numbers for auto: batches of which an epoch has eleven, and steps enough to learn in (docs/study.md)."""
    fits = max(2, min(images, 256, max(16, 2 ** (images // _STEPS).bit_length() // 2)))
    batch = fits if cached.batch_size == "auto" else cached.batch_size
    epochs = max(_EPOCHS, math.ceil(_EPOCHS * _STEPS / max(1, images // batch)))
    return cached.model_copy(update={"batch_size": batch} | ({"epochs": epochs} if cached.epochs == "auto" else {}))


def resolve_frozen_epochs(train: TrainConfig, weights: str, steps_per_epoch: int, device: str) -> tuple[int, str]:
    """Epochs with a frozen backbone, and why. `device` is its type; "" where it is not known."""
    if train.frozen_epochs == "all":
        return train.epochs, "as set"
    if train.frozen_epochs != "auto":
        return min(train.frozen_epochs, train.epochs), "as set"
    if weights == "none":
        return 0, "no pretrained weights to keep"
    if device == "cpu":
        return train.epochs, "on a CPU each image then passes the backbone once"
    enough = math.ceil(_HEAD_STEPS / steps_per_epoch)
    if enough >= train.epochs:
        return train.epochs, f"the heads need about {_HEAD_STEPS:,} steps, the run has no more"
    return enough, f"until the heads have had about {_HEAD_STEPS:,} steps"


def resolve_backbone_lr_scale(train: TrainConfig, weights: str) -> float:
    """Factor on the learning rate for the backbone: pretrained weights want small steps."""
    if train.backbone_lr_scale != "auto":
        return train.backbone_lr_scale
    return 1.0 if weights == "none" else 0.1


def derive(
    config: Config, whole_train: tuple[int, int], whole_val: tuple[int, int], counted_from: str, device: str = ""
) -> Derived:
    """From the counts of images and captions of the whole splits, before the fractions.

    Raises DataError when the images do not fill one batch, or leave no gallery; ConfigError when the warm-up
    is longer than the run.
    """
    data, weights = config.data, config.model.vision.weights
    (train_images, train_captions), (val_images, val_captions) = whole_train, whole_val
    images = subset_size(train_images, data.train_fraction)
    gallery = subset_size(val_images, data.val_fraction)
    steps_per_epoch = max(1, images // config.train.batch_size)
    frozen_epochs, frozen_reason = resolve_frozen_epochs(config.train, weights, steps_per_epoch, device)
    # A number of epochs is one of train's own.
    cached = frozen_epochs == config.train.epochs and config.train.frozen_epochs in ("auto", "all")
    train = as_cached(config, fitting(config.train.cached, images)).train if cached else config.train
    steps_per_epoch = images // train.batch_size
    if steps_per_epoch == 0:
        setting = "train.cached.batch_size" if train.batch_size != config.train.batch_size else "train.batch_size"
        raise DataError(
            f"{images:,} training images do not fill one batch of {train.batch_size:,} ({counted_from}). "
            f"Raise data.train_fraction or lower {setting}"
        )
    if gallery == 0:
        raise DataError(
            f"data.val_fraction {data.val_fraction} of {val_images:,} validation images is none "
            f"({counted_from}). Raise data.val_fraction"
        )
    total_steps = steps_per_epoch * train.epochs
    vocabulary = config.model.text.vocab_size if config.model.text.weights == "none" else MINILM.vocabulary
    parameters, (_, frozen) = count_parameters(config.model, vocabulary), _count_text(config.model, vocabulary)
    return Derived(
        train_images=images,
        train_captions=subset_size(train_captions, images / train_images),
        val_images=gallery,
        val_captions=subset_size(val_captions, gallery / val_images),
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        warmup_steps=resolve_warmup(train.warmup_steps, total_steps),
        frozen_epochs=train.epochs if cached else frozen_epochs,
        frozen_reason=frozen_reason,
        cached=cached,
        normalised=weights == "none" and frozen_epochs < config.train.epochs and not cached,
        backbone_lr_scale=resolve_backbone_lr_scale(train, weights),
        parameters=parameters,
        checkpoint_bytes=_BYTES_A_PARAMETER * (parameters - frozen) + _BYTES_A_FROZEN_ONE * frozen,
        checkpoints_kept=_CHECKPOINTS + config.checkpoint.keep,
        counted_from=counted_from,
    )
