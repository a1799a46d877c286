"""A Config as nested plain values, as dotted names, and as the text of a file; and back from plain values."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from pydantic import ValidationError

from clipcoco.config.messages import explain, unknown
from clipcoco.config.schema import CACHED, SECTIONS, SETTINGS, Config
from clipcoco.config.text import one_line, shown, written
from clipcoco.errors import ConfigError

# Settings born after format 1, with the value that an older checkpoint, or an older run's file, means by its silence.
LATER = {
    "data.exclude": "none",
    "data.prepared_size": 0,
    "data.cached_crops": 0,
    "model.start": "random",
    "model.vision.stages": 1,
    "model.vision.feature_dropout": 0.0,
    "model.text.weights": "none",
    "model.text.pool": "end",
    "train.micro_batch_size": "whole",
    "train.loss": "infonce",
    "train.captions_per_image": 1,
    "train.text_negatives": 0,
    "expected.protocol": "own",
    "expected.cached": "none",
    "expected.trained": "none",
}
UNREADABLE = object()  # stands for a value whose mistake has been noted already


@dataclass(frozen=True)
class LoadedConfig:
    config: Config
    source: dict[str, str]  # "train.lr" -> "presets/small.yaml:6", "my.yaml:7" or "--set"
    replaced: dict[str, str]  # of what --set changed: "train.lr" -> "presets/small.yaml:6 says 0.0005"
    name: str  # the preset's name or the file's stem
    chain: tuple[str, ...]  # the presets that it came through, base first
    layers: tuple[str, ...]  # all files, base first, then "--set" where used
    notes: tuple[str, ...] = ()  # what a person should know about these files
    weights: str = ""  # SHA-256 of model.vision.weights, of the run that wrote the file


@dataclass(frozen=True)
class Layer:
    """What one file, all --set together, or a checkpoint say, by dotted name."""

    where: str
    values: dict[str, object] = field(default_factory=dict)
    source: dict[str, str] = field(default_factory=dict)
    note: str = ""
    weights: str = ""


def layer_of(
    tree: Mapping[Any, object], where: str, place: Callable[[tuple[str, ...]], str], mistakes: list[str]
) -> Layer:
    """The settings in nested `tree`; a name that is not a setting goes to `mistakes`, a whole section as one line."""
    layer = Layer(where)

    def walk(section: Mapping[Any, object], path: tuple[str, ...]) -> None:
        for key, value in section.items():
            here = (*path, str(key))
            name, source = ".".join(here), place(here)
            dotted = "." in here[-1]
            if value is UNREADABLE:
                continue
            if dotted and name in SETTINGS:
                above, _, leaf = name.rpartition(".")
                mistakes.append(f"{name} has a dot in its key ({source}). Write {leaf} below {above}.")
            elif name in SETTINGS:
                layer.values[name], layer.source[name] = value, source
            elif dotted or name not in SECTIONS:
                mistakes.append(unknown(name, "section" if isinstance(value, dict) else "setting", source))
            elif isinstance(value, dict):
                walk(value, here)
            elif value is None:
                mistakes.append(f"{name} is empty ({source}). Indent its settings below it, or remove the line.")
            else:
                mistakes.append(f"{name} must be a section with settings, not {shown(value)} ({source}).")

    walk(tree, ())
    return with_cached(layer)


def with_cached(layer: Layer) -> Layer:
    """What it says of `train` it says of `train.cached`, unless it says something else there: who asks for 3 epochs
    gets 3, frozen or not. So a preset states both, and a configuration from before means one by the other."""
    for name, also in CACHED.items():
        if name in layer.values and also not in layer.values:
            layer.values[also], layer.source[also] = layer.values[name], layer.source[name]
    return layer


def validated(layers: Sequence[Layer], mistakes: Sequence[str]) -> Config:
    """The later layer wins. Raises ConfigError with `mistakes` and all that the schema refuses."""
    values: dict[str, object] = {}
    source = dict.fromkeys(SETTINGS, layers[0].where)
    for layer in layers:
        values |= layer.values
        source |= layer.source
    try:
        config = Config.model_validate(_nested(values))
    except ValidationError as error:
        raise ConfigError(*mistakes, *explain(error, values, source)) from error
    if mistakes:
        raise ConfigError(*mistakes)
    return config


def _nested(values: Mapping[str, object]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in [*((section, {}) for section in SECTIONS), *values.items()]:
        *above, leaf = name.split(".")
        node = tree
        for section in above:
            node = node[section]
        node[leaf] = value
    return tree


def config_from_plain(values: object, where: str) -> Config:
    """Check what a checkpoint holds as its configuration; raises ConfigError with every mistake."""
    if not isinstance(values, dict):
        raise ConfigError(f"the configuration is not a mapping ({where}).")
    mistakes: list[str] = []
    return validated([Layer(where, dict(LATER)), layer_of(values, where, lambda _: where, mistakes)], mistakes)


def to_plain(config: Config) -> dict[str, Any]:
    return config.model_dump()


def flatten(config: Config) -> dict[str, object]:
    """Dotted names to values, in the order of the schema."""
    return {name: attrgetter(name)(config) for name in SETTINGS}


def dump(loaded: LoadedConfig, derived: Sequence[str], others: Sequence[Config]) -> str:
    """A file that gives an equal Config again, each value with its source as a comment, `derived` below.

    With `others` only what differs from any of them; the preset that the file extends must be one.
    """
    values = flatten(loaded.config)
    if others:
        usual = [flatten(other) for other in others]
        differing = {name for name, value in values.items() if any(value != other[name] for other in usual)}
        for name, also in CACHED.items():  # read again, the one says the other
            if name in differing:
                differing = differing - {also} if values[also] == values[name] else differing | {also}
        values = {name: value for name, value in values.items() if name in differing}
    rows: list[tuple[str, str]] = []
    above: list[str] = []
    for name, value in values.items():
        *sections, leaf = name.split(".")
        for depth, section in enumerate(sections):
            if above[: depth + 1] != sections[: depth + 1]:
                rows.append((f"{'  ' * depth}{section}:", ""))
        above = sections
        comment = _short(loaded.source[name])
        if name in loaded.replaced:
            comment += f" ({_short(loaded.replaced[name])})"
        rows.append((f"{'  ' * len(sections)}{leaf}: {written(value)}", comment))
    column = min(40, max((len(text) for text, comment in rows if comment), default=0))
    lines = [f"# {', then '.join(map(_short, loaded.layers))}"]
    if others or loaded.chain[-1] != "base":
        lines.append(f"extends: {loaded.chain[-1]}")
    lines += [f"{text:<{column}}  # {comment}" if comment else text for text, comment in rows]
    lines += [f"# {line}" for line in derived]
    return "\n".join(lines) + "\n"


def _short(source: str) -> str:
    return one_line(source.removeprefix("presets/"))  # a file may be called anything
