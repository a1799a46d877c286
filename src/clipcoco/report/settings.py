"""config.yaml of a run, for the report: what differs from its preset, the whole file, and the command."""

import shlex
from dataclasses import dataclass

from clipcoco.config.derive import as_cached
from clipcoco.config.load import flatten, load_config
from clipcoco.config.schema import Config
from clipcoco.config.text import written
from clipcoco.disk.files import read_own
from clipcoco.errors import ConfigError
from clipcoco.runs.config_file import init_of
from clipcoco.runs.directory import RunDir


@dataclass(frozen=True)
class Setting:
    name: str
    value: str
    preset: str  # what the preset says
    source: str  # as config.yaml notes it: "--set (demo.yaml:24 says 6)"


@dataclass(frozen=True)
class Settings:
    text: str  # of config.yaml
    config: Config | None  # None: `problem` says why
    problem: str  # "" for none
    preset: str  # the nearest one, or "base"
    differing: tuple[Setting, ...]  # from the preset
    init: str  # where the weights came from, when not from the preset
    own_band: bool = False  # the recall expected of it was set for this run


def read_settings(run: RunDir) -> Settings:
    """Never fails: the text alone is worth showing."""
    try:
        text = read_own(run.config).decode("utf-8", "replace")
    except OSError as error:
        return Settings("", None, f"config.yaml can't be read: {error.strerror}", "", (), "")
    init = init_of(text)
    try:
        loaded = load_config(file=run.config)
        preset = loaded.chain[-1]
        whole = load_config(preset).config
    except ConfigError as error:
        return Settings(
            text, None, f"This version of clipcoco can't use config.yaml: {error.mistakes[0]}", "", (), init
        )
    theirs = flatten(whole)
    frozen = whole.train.frozen_epochs
    if frozen in ("auto", "all") and loaded.config.train.frozen_epochs == "all":  # what auto came to, mostly
        theirs = flatten(as_cached(whole, loaded.config.train)) | {"train.frozen_epochs": frozen}
    lines = text.splitlines()
    differing = tuple(
        Setting(name, written(value), written(theirs[name]), _comment(lines, loaded.source[name]))
        for name, value in flatten(loaded.config).items()
        if value != theirs[name] and not name.startswith("expected.")
    )
    own_band = any(
        name.startswith("expected.")
        and value != theirs[name]
        and not _comment(lines, loaded.source[name]).startswith((f"{preset}.yaml:", "base.yaml:"))
        for name, value in flatten(loaded.config).items()
    )
    return Settings(text, loaded.config, ". ".join(loaded.notes), preset, differing, init, own_band)


def _comment(lines: list[str], place: str) -> str:
    """What stands behind the value, on the line that `place` ("runs/a/config.yaml:7") names."""
    number = place.rpartition(":")[2]
    line = lines[int(number) - 1] if number.isdigit() and 0 < int(number) <= len(lines) else ""
    return line.partition("  # ")[2].strip() or place


def commands(run: RunDir, settings: Settings) -> tuple[str, ...]:
    """What trains this run again: from its own file, and from its preset."""
    lines = [again(run, settings)]
    if settings.config and settings.preset != "base":
        changes = [word for at in settings.differing for word in ("--set", f"{at.name}={at.value}")]
        lines.append(shlex.join(["clipcoco", "train", "--preset", settings.preset, *_start(settings), *changes]))
    return tuple(lines)


def again(run: RunDir, settings: Settings, *changes: str) -> str:
    """The command that trains it again from its own file, with `changes`, each KEY=VALUE."""
    file = f"{run.path.absolute().parent.name}/{run.name}/config.yaml"
    return shlex.join(["clipcoco", "train", "--config", file, *_start(settings), *changes])


def _start(settings: Settings) -> list[str]:
    return ["--init", settings.init] if settings.init else []


def command(run: RunDir, name: str) -> str:
    """`clipcoco NAME RUN`, to be typed in the folder that holds the folder of runs."""
    return shlex.join(["clipcoco", name, run.name, *placed(run)])


def placed(run: RunDir) -> list[str]:
    """The words that tell in which folder the run is, but of the usual one."""
    folder = run.path.absolute().parent.name
    return [] if folder == "runs" else ["--runs-dir", folder]
