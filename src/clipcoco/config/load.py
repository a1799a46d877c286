"""YAML files and `--set` to a checked Config, with the source of every value; and back to a file.

A file extends another one (base.yaml when it names none); the later one wins, setting by setting.
All mistakes are told at once. YAML is read as 1.2's core schema and strictly: no key twice, no anchors, no
tags, one document, UTF-8, small and shallow.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from clipcoco.config import plain
from clipcoco.config.messages import closest, unknown
from clipcoco.config.plain import UNREADABLE, Layer, LoadedConfig, config_from_plain, flatten, to_plain
from clipcoco.config.schema import SECTIONS, SETTINGS, Config
from clipcoco.config.text import one_line, read_text, scalar, sealed_by_a_run, shown
from clipcoco.disk.seal import is_sealed
from clipcoco.errors import ConfigError

__all__ = [
    "LoadedConfig",
    "config_from_plain",
    "dump",
    "flatten",
    "load_config",
    "override",
    "preset_in",
    "preset_names",
    "presets_folder",
    "to_plain",
]

_PRESETS = ("demo", "tiny", "small", "medium", "full", "own")
_BASE = "base"
_MAX_DEPTH = 20
_MAX_NODES = 2_000  # a configuration has about 50


# ---- YAML text -> plain values


class _Document:
    """One YAML document as plain values. `mistakes` take in those after which reading can go on."""

    def __init__(self, text: str, where: str, mistakes: list[str], numbered: bool = True) -> None:
        self.lines: dict[tuple[str, ...], int] = {}  # of each key, by its path
        self.mistakes = mistakes
        self._where = where
        self._numbered = numbered
        self._text = text
        self._nodes = 0

    def read(self) -> object:
        self._events: Iterator[Any] = yaml.parse(self._text, Loader=yaml.SafeLoader)
        try:
            next(self._events)  # the stream starts
            if isinstance(next(self._events), yaml.StreamEndEvent):
                return None
            value = self._value(next(self._events), ())
            next(self._events)  # the document ends
            after: Any = next(self._events)
            if not isinstance(after, yaml.StreamEndEvent):
                raise self._fatal("a second document starts", after.start_mark.line + 1)
            return value
        except yaml.MarkedYAMLError as error:
            raise self._fatal(*_syntax(error)) from error
        except yaml.reader.ReaderError as error:
            line = self._text.count("\n", 0, error.position) + 1
            raise self._fatal("a character that text cannot have", line) from error

    def place(self, line: int, column: int | None = None) -> str:
        if not self._numbered:
            return self._where
        return f"{self._where}:{line}" + ("" if column is None else f":{column}")

    def _fatal(self, what: str, line: int, column: int | None = None, hint: str = "") -> ConfigError:
        return ConfigError(f"{what} ({self.place(line, column)}).{hint}")

    def _unreadable(self, what: str, line: int, hint: str = "") -> object:
        self.mistakes.append(f"{what} ({self.place(line)}).{hint}")
        return UNREADABLE

    def _value(self, event: Any, path: tuple[str, ...]) -> object:
        line = event.start_mark.line + 1
        self._nodes += 1
        if self._nodes > _MAX_NODES:
            raise self._fatal(f"more than {_MAX_NODES:,} values, a configuration has about 50", line)
        if len(path) > _MAX_DEPTH:
            raise self._fatal(f"more than {_MAX_DEPTH} levels deep", line)
        if isinstance(event, yaml.AliasEvent):
            return self._unreadable("aliases (*name) are not allowed", line, " Write the value out.")
        value: object
        if isinstance(event, yaml.MappingStartEvent):
            value = self._mapping(path)
        elif isinstance(event, yaml.SequenceStartEvent):
            items: list[object] = []
            while not isinstance(item := next(self._events), yaml.SequenceEndEvent):
                items.append(self._value(item, (*path, str(len(items)))))
            value = UNREADABLE if UNREADABLE in items else items
        elif not event.implicit[0]:  # quoted, or a block of text
            value = event.value
        else:
            try:
                value = scalar(event.value)
            except OverflowError:
                value = self._unreadable(f"a number of {len(event.value):,} digits is too long", line)
        if event.anchor is not None:
            return self._unreadable("anchors (&name) are not allowed", line, " Write the value out.")
        if event.tag is not None:
            return self._unreadable(f"tags ({shown(event.tag)}) are not allowed", line, " Write the plain value.")
        return value

    def _mapping(self, path: tuple[str, ...]) -> dict[str, object]:
        values: dict[str, object] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            line = event.start_mark.line + 1
            if not isinstance(event, yaml.ScalarEvent):
                raise self._fatal("a setting's name must be a word", line)
            here = (*path, event.value)
            if event.value in values:
                both = f"{self.place(self.lines[here])} and {self.place(line)}"
                self.mistakes.append(f"{shown('.'.join(here))} is there twice ({both}). Keep one.")
            self.lines[here] = line
            values[event.value] = self._value(next(self._events), here)
        return values


def _syntax(error: yaml.MarkedYAMLError) -> tuple[str, int, int, str]:
    mark = error.problem_mark or error.context_mark
    assert mark is not None
    problem, hint = str(error.problem), ""
    if r"'\t'" in problem:
        return "tabs are not allowed", mark.line + 1, mark.column + 1, " Indent by spaces."
    if "escape character" in problem:
        hint = " Put text with backslashes in single quotes."
    if error.context_mark is not None and error.context_mark.line != mark.line:
        problem += f", {error.context} that starts in line {error.context_mark.line + 1}"
    return f"not valid YAML: {problem}", mark.line + 1, mark.column + 1, hint


def _from_command_line(overrides: Sequence[str], mistakes: list[str]) -> Layer:
    layer = Layer("--set")
    for text in overrides:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name or not value:
            mistakes.append(f"--set {shown(text)} is not NAME=VALUE, as in train.lr=5e-4.")
            continue
        try:
            parsed = _Document(value, f"--set {shown(text)}", mistakes, numbered=False).read()
        except ConfigError as error:
            mistakes += error.mistakes
            continue
        if name in SECTIONS:
            mistakes.append(f"{name} is a section (--set). Name one of its settings, as in train.lr=5e-4.")
        elif name not in SETTINGS:
            mistakes.append(unknown(name, "setting", "--set"))
        elif parsed is not UNREADABLE:
            layer.values[name], layer.source[name] = parsed, "--set"
    return plain.with_cached(layer)


# ---- files


def preset_names() -> list[str]:
    """The presets to train, smallest first, and that of one's own pictures."""
    return list(_PRESETS)


def presets_folder() -> Path:
    """In the package (a wheel), else at the repository's root."""
    here = Path(__file__).resolve()
    packaged = here.parents[1] / "presets"
    return packaged if packaged.is_dir() else here.parents[3] / "presets"


def _preset_path(name: str) -> Path:
    if name in (_BASE, *_PRESETS):
        return presets_folder() / f"{name}.yaml"
    if "/" in name or name.endswith((".yaml", ".yml")):
        meant = None if os.path.exists(name) else preset_in(Path(name).stem)
        hint = f"Did you mean --preset {meant}?" if meant else "A file goes with --config."
        raise ConfigError(f"no preset {shown(name)}. {hint}")
    raise ConfigError(f"no preset '{one_line(name)}'{_meant(name)} ({', '.join(_PRESETS)})")


def preset_in(name: str) -> str | None:
    """The preset that `name` speaks of, as clip_coco_tiny does."""
    words = re.split(r"[^a-z]+", name.lower())  # own is in unknown, too
    return next((one for one in _PRESETS if one in (words if one == "own" else name.lower())), None)


def _meant(name: str) -> str:
    return f". Did you mean {meant}?" if (meant := preset_in(name) or closest(name.lower(), _PRESETS, 0.6)) else ""


def _read_layer(path: Path, where: str, mistakes: list[str]) -> tuple[Layer, object, str]:
    """The settings of one file, what it extends, and where it says so."""
    if not os.path.exists(path) and (meant := preset_in(path.stem)):
        raise ConfigError(f"no configuration file at {where}. For the preset: --preset {meant}")
    note, weights = sealed_by_a_run(text := read_text(path, where), where)
    document = _Document(text, where, mistakes)
    tree = document.read()
    if tree is None:
        raise ConfigError(f"the configuration is empty ({where}).")
    if not isinstance(tree, dict):
        kind = "a list" if isinstance(tree, list) else "one value"  # not shown: a stranger's file may extend any other
        raise ConfigError(f"the configuration must be sections with settings, not {kind} ({where}).")
    place = document.place(document.lines.get(("extends",), 1))
    extends = tree.pop("extends", _BASE)
    layer = plain.layer_of(tree, where, lambda key: document.place(document.lines[key]), mistakes)
    if is_sealed(text):  # a run's file was complete: nothing else speaks for what it leaves out
        silent = dict.fromkeys(plain.LATER, where)
        layer = replace(layer, values={**plain.LATER, **layer.values}, source={**silent, **layer.source})
    return replace(layer, note=note, weights=weights), extends, place


def _extended(path: Path, mistakes: list[str]) -> tuple[list[Layer], tuple[str, ...]]:
    """The file at `path` and all that it extends, base first; and which of them are presets."""
    layers: list[Layer] = []
    chain: list[str] = []
    folder = presets_folder().resolve()
    seen: dict[str, str] = {}
    while True:
        real = path.resolve()
        preset = real.stem if real.parent == folder and real.stem in (_BASE, *_PRESETS) else None
        where = f"presets/{preset}.yaml" if preset else one_line(str(path))
        if str(real) in seen:
            raise ConfigError(f"files extend each other in a circle: {' -> '.join([*seen.values(), where])}.")
        seen[str(real)] = where
        layer, extends, place = _read_layer(path, where, mistakes)
        layers.insert(0, layer)
        if preset:
            chain.insert(0, preset)
        if preset == _BASE:
            return layers, tuple(chain)
        if not isinstance(extends, str) or not extends:
            raise ConfigError(f"extends must be a preset's name or a file, not {shown(extends)} ({place}).")
        if extends in (_BASE, *_PRESETS):
            path = _preset_path(extends)
        else:
            path = path.parent / extends
            if not path.is_file():  # a pipe would be waited for
                raise ConfigError(f"no preset and no file {shown(extends)} to extend ({place}){_meant(extends)}")


def load_config(preset: str | None = None, file: Path | None = None, overrides: Sequence[str] = ()) -> LoadedConfig:
    """A preset or a file, what it extends, then `overrides` ("train.lr=5e-4"). Raises ConfigError: every mistake."""
    if preset is not None and file is not None:
        raise ConfigError("a preset and a file are both given. Keep --preset or --config.")
    if file is not None:
        path = Path(file)
    elif preset is not None:
        path = _preset_path(preset)
    else:
        raise ConfigError(f"no configuration given. Name a preset ({', '.join(_PRESETS)}) or a file.")
    mistakes: list[str] = []
    try:
        layers, chain = _extended(path, mistakes)
    except ConfigError as error:
        raise ConfigError(*mistakes, *error.mistakes) from error
    changes = _from_command_line(overrides, mistakes)
    config = plain.validated([*layers, changes], mistakes)
    source = {name: place for layer in layers for name, place in layer.source.items()}
    before = {name: value for layer in layers for name, value in layer.values.items()}
    return LoadedConfig(
        config=config,
        source=source | changes.source,
        replaced={name: f"{source[name]} says {shown(before[name])}" for name in changes.values},
        name=preset or path.stem,
        chain=chain,
        layers=(*(layer.where for layer in layers), *(["--set"] if changes.values else [])),
        notes=tuple(layer.note for layer in layers if layer.note),
        weights="" if "model.vision.weights" in changes.values else layers[-1].weights,
    )


def override(config: Config, overrides: Sequence[str]) -> Config:
    """A Config that came from a checkpoint, with `overrides` applied; raises ConfigError."""
    mistakes: list[str] = []
    stored = Layer("the checkpoint", flatten(config))
    return plain.validated([stored, _from_command_line(overrides, mistakes)], mistakes)


def dump(loaded: LoadedConfig, derived: Sequence[str] = (), *, diff: bool = False) -> str:
    """A valid file with every value and its source as a comment; `derived` lines follow as comments.

    With `diff` only what differs from base, or from the preset behind it.
    """
    return plain.dump(loaded, derived, [load_config(name).config for name in (_BASE, loaded.chain[-1])] if diff else ())
