"""Every setting, its type, its limits and its meaning: the one place where a setting is born.

A setting has no default here: the defaults stand in presets/base.yaml, so that each has a file and a line.
`auto` is resolved once the device, the data and the weights are known, and printed with its reason.
Limits keep a crafted configuration from asking for absurd amounts of memory.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from clipcoco.config.backbones import BACKBONES, CAUTION
from clipcoco.config.text import expanded

Fraction = Annotated[float, Field(gt=0, le=1)]
# One line, without what a terminal or YAML could not carry: controls, line separators, non-characters.
Text = Annotated[str, StringConstraints(min_length=1, pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029\uFFFE\uFFFF]+$")]
Backbone = Literal["resnet18", "resnet34", "resnet50", "resnet101", "mobilenet_v3_large", "efficientnet_b0"]

# Of recall in percent, [low, high].
Band = Literal["none"] | Annotated[list[Annotated[float, Field(ge=0, le=100)]], Field(min_length=2, max_length=2)]


class Section(BaseModel):
    """A validator of several settings starts its message with one of their names: its line tells where."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class DataConfig(Section):
    root: Text  # holds train2017/, val2017/, annotations/
    train_fraction: Fraction  # of train2017's images; 1 % is inside 10 %
    val_fraction: Fraction
    exclude: Literal["none", "karpathy-test"]  # images of train2017 that are left out, before a fraction is taken
    subset_seed: int = Field(ge=0)  # which images a fraction takes; apart from `seed`, so fetched data stay right
    image_size: int = Field(ge=32, le=1024)  # pixels, square
    prepared_size: Annotated[int, Field(ge=32, le=1024)] | Literal[0]  # shorter side of the copies; 0: only originals
    crop_scale: Annotated[list[Fraction], Field(min_length=2, max_length=2)]  # area of the random crop, from..to
    flip: bool  # mirror half of the training images; off where captions speak of left and right
    # random crops that a frozen backbone sees of each training image, beside the whole and its mirror image
    cached_crops: int = Field(ge=0, le=30)
    workers: Literal["auto"] | Annotated[int, Field(ge=0, le=256)]  # processes that decode images

    @model_validator(mode="after")
    def _ordered(self) -> "DataConfig":
        if self.crop_scale[0] > self.crop_scale[1]:
            raise ValueError(f"crop_scale must be [smaller, larger], not {self.crop_scale}")
        return self

    @property
    def folder(self) -> Path:
        """`root` on this machine. Raises ConfigError as `expanded`."""
        return expanded(self.root)

    @property
    def cached_views(self) -> int:
        """How often a frozen backbone sees each training image."""
        return 1 + self.flip + self.cached_crops


class VisionConfig(Section):
    backbone: Backbone
    weights: Text  # imagenet-v1 | imagenet-v2 | none | FILE
    stages: Literal[1, 3]  # 3: the means of two or three earlier stages' outputs beside the last features
    feature_dropout: float = Field(ge=0, lt=1)  # of the kept features, where all epochs are frozen

    @model_validator(mode="after")
    def _published(self) -> "VisionConfig":
        published = BACKBONES[self.backbone].published
        a_name = self.weights.startswith("imagenet-") or not set(self.weights) & set("./\\")
        if a_name and self.weights not in (*published, "none"):
            choices = ", ".join(published)
            raise ValueError(
                f"weights can be {choices}, none or a file for backbone {self.backbone}, not {self.weights:.60}"
            )
        return self

    @property
    def earlier(self) -> dict[str, int]:
        """The parts of the backbone whose outputs stand beside its own, and their channels."""
        return BACKBONES[self.backbone].stages if self.stages > 1 else {}

    @property
    def width(self) -> int:
        """F, of what is projected into the shared space."""
        return BACKBONES[self.backbone].width + sum(self.earlier.values())


class TextConfig(Section):
    # none | FILE or its FOLDER: all-MiniLM-L6-v2's model.safetensors, frozen, beside its tokenizer.json. Of the
    # settings below context_length and dropout alone then have an effect.
    weights: Text
    layers: int = Field(ge=0, le=48)  # 0: a bag of words, blind to their order
    pool: Literal["mean", "end"]  # what is read out: the end token beside the mean of all, or alone
    width: int = Field(ge=16, le=4096)
    heads: int = Field(ge=1, le=64)
    context_length: int = Field(ge=8, le=512)  # tokens, start and end included
    vocab_size: int = Field(ge=300, le=100_000)  # at most; small training sets yield fewer
    dropout: float = Field(ge=0, lt=1)

    @model_validator(mode="after")
    def _divides(self) -> "TextConfig":
        if self.width % self.heads:
            raise ValueError(f"heads must divide width: {self.width} is not a multiple of {self.heads}")
        if not self.layers and self.pool == "end":
            raise ValueError("pool must be mean where layers is 0: the end token alone knows of no word")
        if self.weights != "none" and not set(self.weights) & set("./\\"):
            meant = f"./{self.weights:.60}"
            raise ValueError(f"weights can be none, or all-MiniLM-L6-v2's file or folder. A path has a slash: {meant}")
        return self

    @property
    def tower(self) -> str:
        if self.weights != "none":
            return "frozen all-MiniLM-L6-v2 with a head"
        return f"Transformer of {self.layers} x {self.width}" if self.layers else f"bag of words, {self.width} wide"

    @property
    def caution(self) -> str:
        """What stands beside every recall of such a model; "" where the text tower is trained here."""
        return "" if self.weights == "none" else CAUTION


class ModelConfig(Section):
    projection_dim: int = Field(ge=2, le=4096)  # of the shared space
    temperature: float = Field(ge=0.01, le=1)  # divides cosine similarities
    learn_temperature: bool  # in log space, from `temperature`, clamped at 1/100
    start: Literal["closed-form", "random"]  # of words and projections, where all epochs are frozen
    vision: VisionConfig
    text: TextConfig

    @property
    def begins_closed(self) -> bool:
        """Whether a run whose epochs are all frozen begins with what the closed form finds: a mean of words can."""
        return self.start == "closed-form" and self.text.weights == "none" and self.text.pool == "mean"


class CachedConfig(Section):
    """Used in the place of train's own where all epochs are frozen: each then costs seconds."""

    # auto: by the number of training images
    epochs: Literal["auto"] | Annotated[int, Field(ge=1, le=100_000)]
    batch_size: Literal["auto"] | Annotated[int, Field(ge=2, le=65_536)]
    lr: float = Field(gt=0, le=10)


class TrainConfig(Section):
    epochs: int = Field(ge=1, le=100_000)
    batch_size: int = Field(ge=2, le=65_536)  # sets the negatives of each image: batch_size - 1
    # rows that pass the encoders at once: memory, and not the gradient. whole: the batch, or the share of a process;
    # auto: the most that fit
    micro_batch_size: Literal["auto", "whole"] | Annotated[int, Field(ge=1, le=65_536)]
    lr: float = Field(gt=0, le=10)
    backbone_lr_scale: Literal["auto"] | Annotated[float, Field(ge=0, le=10)]  # auto: 0.1 with weights, 1 from scratch
    frozen_epochs: Literal["auto", "all"] | Annotated[int, Field(ge=0)]  # trained from cached features of the backbone
    weight_decay: float = Field(ge=0, le=10)  # not on biases, norms, temperature
    # a number of steps, or a share of all steps when below 1
    warmup_steps: Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0, lt=1)]
    grad_clip: float = Field(gt=0)  # global norm
    loss: Literal["infonce", "sigmoid", "triplet"]  # engine/loss.py
    captions_per_image: int = Field(ge=1, le=5)  # in a step, each among one of every other image
    # captions of the same image, made false by other words, that it must be told from beside those of other images
    text_negatives: int = Field(ge=0, le=5)
    precision: Literal["auto", "float32", "bfloat16", "float16"]
    early_stop_epochs: int = Field(ge=0)  # stop after so many epochs without a better R@1; 0: never
    log_every_steps: int = Field(ge=1)
    cached: CachedConfig


class CheckpointConfig(Section):
    every_steps: int = Field(ge=1)  # and at each epoch's end
    keep: int = Field(ge=0)  # newest epoch_NNN.pt kept, beside last, previous and best


class ExpectedConfig(Section):
    """Between which mean R@1 of both directions a preset ends as it is, on its own data: it changes no run."""

    protocol: Literal["own", "1k"]  # the split as one gallery, or folds of 1,000
    cached: Band  # where all epochs are frozen
    trained: Band  # where the backbone is trained too

    @model_validator(mode="after")
    def _ordered(self) -> "ExpectedConfig":
        for name, band in (("cached", self.cached), ("trained", self.trained)):
            if band != "none" and band[0] > band[1]:
                raise ValueError(f"{name} must be [lower, upper], not {band}")
        return self


class Config(Section):
    seed: int = Field(ge=0, lt=2**32)
    data: DataConfig
    model: ModelConfig
    train: TrainConfig
    checkpoint: CheckpointConfig
    expected: ExpectedConfig

    @model_validator(mode="after")
    def _encodes_what_is_false(self) -> "Config":
        if self.train.text_negatives and self.model.text.weights != "none":
            raise ValueError(
                "train.text_negatives must be 0 with model.text.weights, whose vectors of captions are kept"
            )
        return self


def _names(section: type[Section], prefix: str = "") -> Iterator[tuple[str, bool]]:
    for name, field in section.model_fields.items():
        kind: object = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield prefix + name, True
            yield from _names(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, False


# Dotted names, in the order of the schema: "train.lr" is a setting, "train" a section.
SETTINGS = tuple(name for name, is_section in _names(Config) if not is_section)
SECTIONS = tuple(name for name, is_section in _names(Config) if is_section)


def json_schema() -> dict[str, Any]:
    """Of a configuration file, for editors: it may leave out any setting, and say what it extends."""
    schema = Config.model_json_schema()
    for section in (schema, *schema["$defs"].values()):
        section.pop("required", None)
    schema["properties"]["extends"] = {"type": "string", "description": "a preset or a file"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "clipcoco"}


def choices(name: str) -> list[str]:
    """The values of a setting that has few of them; none of any other, or of what is no setting."""
    schema = whole = json_schema()
    for part in name.split("."):
        schema = schema.get("properties", {}).get(part, {})
        schema = whole["$defs"].get(schema.get("$ref", "").rpartition("/")[2], schema)
    found = [value for one in (schema, *schema.get("anyOf", ())) for value in (*one.get("enum", ()), one.get("const"))]
    return (
        ["true", "false"] if schema.get("type") == "boolean" else [str(value) for value in found if value is not None]
    )


# The settings of `train` that have another value where all epochs are frozen, and which that is.
CACHED = {f"train.{name}": f"train.cached.{name}" for name in CachedConfig.model_fields}
