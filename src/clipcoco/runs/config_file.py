"""config.yaml of a run: its settings with their sources, what it began with, and at the end its own sum."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

from clipcoco.config.derive import as_cached
from clipcoco.config.load import LoadedConfig, dump, flatten, load_config
from clipcoco.config.schema import Config
from clipcoco.config.text import one_line
from clipcoco.disk.files import write_atomically
from clipcoco.disk.seal import seal_text
from clipcoco.errors import ConfigError
from clipcoco.runs.directory import RunDir

INIT = "# Started with --init "
# What a run may begin with: a file of backbone weights, or all weights of another run.
BEGAN = {"weights": "model.vision.weights", "init": "--init"}


def write_settings(run: RunDir, loaded: LoadedConfig, began: Mapping[str, str], init: str) -> None:
    """`began` has the SHA-256 of a key of BEGAN; `init` is what --init named, "" for nothing."""
    sums = [f"SHA-256 of {BEGAN[what]}: {digest}" for what, digest in began.items()]
    write_atomically(run.config, seal_text((f"{INIT}{one_line(init)}\n" if init else "") + dump(loaded, sums)))


def settings_after(run: RunDir | None, config: Config, changes: Sequence[str], name: str) -> tuple[LoadedConfig, str]:
    """`config`, to which `changes` led, with the sources of the run's file where that agrees; what --init named."""
    source = dict.fromkeys(flatten(config), "the checkpoint")
    loaded, init = LoadedConfig(config, source, {}, name, ("base",), ("the checkpoint",)), ""
    with contextlib.suppress(ConfigError, OSError):
        if run is not None:
            init = init_of(run.config.read_text("utf-8", errors="replace"))
            before = load_config(file=run.config, overrides=changes)
            if before.config.train.frozen_epochs == "all":
                before = replace(before, config=as_cached(before.config))
            loaded = before if before.config == config else loaded
    return loaded, init


def init_of(text: str) -> str:
    """What --init named when the run began, by its config.yaml; "" for nothing."""
    return next((line.removeprefix(INIT) for line in text.splitlines()[:2] if line.startswith(INIT)), "")
