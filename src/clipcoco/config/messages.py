"""What a person reads about a mistake in the configuration: one line each, with its place and a hint."""

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from clipcoco.config.schema import CACHED, SECTIONS, SETTINGS, Config
from clipcoco.config.text import one_line, shown
from clipcoco.errors import ConfigError

# What the field and other tools call our settings.
ALIASES = {
    **dict.fromkeys(("learning_rate", "base_lr", "initial_lr", "max_lr", "lr0"), "train.lr"),
    **dict.fromkeys(("batch", "bs", "global_batch_size", "train_batch_size"), "train.batch_size"),
    **dict.fromkeys(("n_epochs", "num_epochs", "max_epochs", "num_train_epochs"), "train.epochs"),
    **dict.fromkeys(("wd", "decay", "l2"), "train.weight_decay"),
    **dict.fromkeys(("warmup", "num_warmup_steps", "warmup_ratio"), "train.warmup_steps"),
    **dict.fromkeys(("clip", "clip_grad", "clip_norm", "max_grad_norm", "gradient_clipping"), "train.grad_clip"),
    **dict.fromkeys(("amp", "fp16", "bf16", "dtype", "mixed_precision", "use_amp"), "train.precision"),
    **dict.fromkeys(("patience", "early_stopping"), "train.early_stop_epochs"),
    **dict.fromkeys(("freeze_epochs", "freeze_backbone", "freeze"), "train.frozen_epochs"),
    **dict.fromkeys(("backbone_lr", "lr_backbone", "vision_lr"), "train.backbone_lr_scale"),
    **dict.fromkeys(("log_interval", "log_every", "log_freq", "print_freq"), "train.log_every_steps"),
    **dict.fromkeys(("num_workers", "n_workers", "dataloader_num_workers"), "data.workers"),
    **dict.fromkeys(("data_dir", "image_root", "data_root", "root_dir", "dataset_path"), "data.root"),
    **dict.fromkeys(("img_size", "imgsz", "resolution", "input_size"), "data.image_size"),
    **dict.fromkeys(("hflip", "horizontal_flip", "random_flip"), "data.flip"),
    **dict.fromkeys(("train_subset", "subset_fraction", "train_percent"), "data.train_fraction"),
    **dict.fromkeys(("val_subset", "val_percent"), "data.val_fraction"),
    **dict.fromkeys(("arch", "architecture", "vision_encoder", "image_encoder"), "model.vision.backbone"),
    **dict.fromkeys(("pretrained", "pretrained_weights"), "model.vision.weights"),
    **dict.fromkeys(("embed_dim", "embedding_dim", "proj_dim"), "model.projection_dim"),
    **dict.fromkeys(("tau", "temp", "logit_scale"), "model.temperature"),
    **dict.fromkeys(("learnable_temperature", "train_temperature"), "model.learn_temperature"),
    **dict.fromkeys(("num_layers", "n_layers", "depth"), "model.text.layers"),
    **dict.fromkeys(("num_heads", "n_heads", "nhead"), "model.text.heads"),
    **dict.fromkeys(("hidden_size", "hidden_dim", "d_model"), "model.text.width"),
    **dict.fromkeys(("max_length", "max_len", "seq_len", "context"), "model.text.context_length"),
    **dict.fromkeys(("n_vocab", "vocabulary_size"), "model.text.vocab_size"),
    **dict.fromkeys(("random_seed", "manual_seed"), "seed"),
    **dict.fromkeys(("save_every", "save_steps", "save_interval", "save_freq"), "checkpoint.every_steps"),
    **dict.fromkeys(("save_total_limit", "keep_last", "max_to_keep"), "checkpoint.keep"),
    **dict.fromkeys(("optimizer", "optim", "training", "trainer"), "train"),
    **dict.fromkeys(("dataset", "dataloader"), "data"),
    **dict.fromkeys(("checkpoints", "checkpointing"), "checkpoint"),
}
# A limit's key in the schema: how it is said, and pydantic's name for going beyond it.
_LIMITS = {
    "minimum": ("at least", "greater_than_equal"),
    "exclusiveMinimum": ("above", "greater_than"),
    "maximum": ("at most", "less_than_equal"),
    "exclusiveMaximum": ("below", "less_than"),
}
_KINDS = {"integer": "a whole number", "number": "a number", "string": "text", "boolean": "true or false"}


def closest(word: str, known: Iterable[str], cutoff: float) -> str | None:
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)), None)


def suggestion(name: str) -> str | None:
    """The setting or section that was probably meant by `name`, or None: a wrong hint is worse than none."""
    name = name.lower().replace("-", "_")
    leaf = name.rpartition(".")[2]
    if leaf in ALIASES:
        return ALIASES[leaf]
    # Of two of one name the upper one is meant: train.lr, not train.cached.lr.
    deepest_first = sorted((*SECTIONS, *SETTINGS), key=lambda known: -known.count("."))
    leaves = {known.rpartition(".")[2]: known for known in deepest_first}
    if leaf in leaves:
        return leaves[leaf]
    path = closest(name, (*SETTINGS, *SECTIONS), 0.8)
    # A shared section must not make two different settings look alike.
    if path and difflib.SequenceMatcher(None, leaf, path.rpartition(".")[2]).ratio() >= 0.7:
        return path
    near = closest(leaf, (*leaves, *ALIASES), 0.75)
    return {**ALIASES, **leaves}[near] if near else None


def check_device(name: str) -> None:
    """Raise ConfigError unless it names a kind of device; whether it is there, only torch can tell."""
    if re.fullmatch(r"auto|cpu|mps|cuda(:(0|[1-9]\d?))?", name):
        return
    like = re.fullmatch(r"(gpu|cuda|nvidia|)[: ]?(\d{0,2})", name.lower())
    number = f":{int(like[2])}" if like and like[2] else ""
    near = f"cuda{number}" if like else closest(name.lower(), ("cpu", "mps"), 0.6)
    hint = f"Did you mean {near}? " if near else ""
    raise ConfigError(f"no device '{one_line(name)}' (--device). {hint}Choose auto, cpu, cuda, cuda:N or mps")


def unknown(name: str, kind: str, where: str) -> str:
    meant = suggestion(name) if len(name) <= 100 else None
    hint = f" Did you mean {meant}?" if meant else " All of them: clipcoco inspect-config demo" * (where == "--set")
    return f"{shown(name)} is not a {kind} ({where}).{hint}"


def _limits(schema: Mapping[str, Any], keys: Iterable[str] = _LIMITS) -> str:
    return " and ".join(f"{_LIMITS[key][0]} {schema[key]:,}" for key in keys if key in schema)


def expected(name: str) -> str:
    """What the setting `name` can be: "one of auto, float32", "a whole number of at least 1"."""
    return _expected(_schema(name))


def _expected(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(map(_expected, schema["anyOf"]))
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return f"one of {', '.join(map(str, schema['enum']))}"
    if schema["type"] == "array":
        return f"a list of {schema['minItems']} numbers, each {_limits(schema['items'])}"
    # The upper limit of a count only guards against absurd amounts: no help to who wrote a word there.
    limits = _limits(schema, ["minimum"] if schema["type"] == "integer" else _LIMITS)
    joint = " of " if limits.startswith("at") else " "
    return _KINDS[schema["type"]] + (joint + limits if limits else "")


def _schema(name: str) -> Mapping[str, Any]:
    whole = Config.model_json_schema()
    node = whole
    for part in name.split("."):
        node = node["properties"][part]
        if "$ref" in node:
            node = whole["$defs"][node["$ref"].rpartition("/")[2]]
    return node


def _wrong_value(name: str, value: object, types: set[str]) -> str:
    schema = _schema(name)
    numbers = value if isinstance(value, list) else [value]
    if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
        return f"{name} must be finite, not {shown(value)}"
    if value == "":
        return f"{name} must not be empty"
    if "string_pattern_mismatch" in types or "string_unicode" in types:
        return f"{name} must be text on one line without control characters"
    broken = [key for key, (_, error_type) in _LIMITS.items() if types == {error_type} and key in schema]
    return f"{name} must be {_limits(schema, broken) or _expected(schema)}, not {shown(value)}"


def _meant(name: str, value: object) -> str:
    words = map(str, _schema(name).get("enum", ()))
    near = closest(value, words, 0.7) if isinstance(value, str) and len(value) < 100 else None
    return f" Did you mean {near}?" if near else ""


def explain(error: ValidationError, values: Mapping[str, object], source: Mapping[str, str]) -> list[str]:
    """One line a setting, however many branches of a union or items of a list pydantic complains about.

    `values` and `source` have the settings' dotted names as keys; a setting that is missing has a source too.
    """
    types: dict[str, set[str]] = {}
    lines = []
    for detail in error.errors(include_url=False):
        path = [str(part) for part in detail["loc"]]
        name = next((known for end in range(len(path), 0, -1) if (known := ".".join(path[:end])) in SETTINGS), "")
        if name:
            types.setdefault(name, set()).add(detail["type"])
        else:  # a validator of a whole section
            message = str(detail["ctx"]["error"])
            section = "".join(f"{part}." for part in path)
            named = (f"{section}{word}" for word in re.findall(r"\w[\w.]*\w", message))
            places = dict.fromkeys(source[known] for known in named if known in source)
            lines.append(f"{section}{message} ({', '.join(places)}).")
    for name, kinds in types.items():
        alike = {also: name for name, also in CACHED.items()}.get(name)
        same = alike is not None and (source[alike], values.get(alike)) == (source[name], values.get(name))
        if alike and same and alike in types and types[alike] <= kinds:
            continue  # it was said of both, and is told of one
        what = f"{name} is missing" if kinds == {"missing"} else _wrong_value(name, values[name], kinds)
        lines.append(f"{what} ({source[name]}).{_meant(name, values.get(name))}")
    return lines
