"""A run begins: all that can fail is checked first, in the order of the exit codes."""

import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from clipcoco.config.load import LoadedConfig, flatten, to_plain
from clipcoco.config.schema import Config
from clipcoco.data.readable import check_readable
from clipcoco.engine.checkpoint import weights_sha256
from clipcoco.engine.device import choose_device, make_deterministic
from clipcoco.engine.model import DualEncoder, build
from clipcoco.engine.model_file import open_model
from clipcoco.engine.state import TrainState
from clipcoco.engine.step import Stop
from clipcoco.engine.trained_on import recorded
from clipcoco.engine.weights import pretrained_backbone, read_weights
from clipcoco.errors import CheckpointError, ClipcocoError, ConfigError, DistributedError
from clipcoco.events import Report, RunEnded
from clipcoco.prepare.scenes import draw_scenes, to_be_drawn
from clipcoco.runs.config_file import write_settings
from clipcoco.runs.directory import RunDir, check_name, create
from clipcoco.runs.go import conduct
from clipcoco.runs.plan import Assembled, assemble, check_disk

# Inside it signals ask to stop, and the value says which; outside they end the process at once.
Stopping = Callable[[], AbstractContextManager[Stop]]
# Where events go: of a run that has its directory, or of the checks before there is one.
ReportTo = Callable[[RunDir | None], Report]


def start(
    loaded: LoadedConfig,
    *,
    name: str | None,
    runs_dir: Path,
    device_name: str | None,
    init: Path | None,
    report: ReportTo,
    stopping: Stopping,
) -> tuple[RunDir, RunEnded]:
    """A new run, from the first step to the last or to a stop. Nothing is written before all checks pass.

    But for the embedded data set, which is drawn where `to_be_drawn` says so.
    """
    refuse_many_processes()
    if name is not None:
        check_name(runs_dir, name)
    choose_device(device_name, loaded.config.train.precision)  # its errors come first: drawing would be in vain
    if to_be_drawn(loaded):
        draw_scenes(loaded.config.data.folder)
    loaded, parts, model = checked(loaded, name, runs_dir, device_name, init, report(None))
    parts = parts.looked_at(report(None))
    run = create(runs_dir, loaded.name, name)
    with stopping() as stop, run.lock() as unlocked:
        state = TrainState(precision=parts.device.precision, frozen_epochs=parts.derived.frozen_epochs)
        parts = replace(parts, warnings=(*parts.warnings, *filter(None, [unlocked])))
        try:
            write_settings(run, loaded, parts.began, str(init) if init else "")
            return run, conduct(run, parts, model, state, None, report(run), stop)
        except ClipcocoError:
            if not state.step and not any(run.checkpoints.iterdir()):  # nothing came of it
                shutil.rmtree(run.path)
            raise


def refuse_many_processes() -> None:
    """Raise DistributedError where a launcher such as torchrun has started several: each would train the whole run."""
    many = os.environ.get("WORLD_SIZE", "")
    if many.isdecimal() and int(many) > 1:
        raise DistributedError(
            f"{many} processes were started, and each would train the same run by itself (WORLD_SIZE). "
            f"Start one, without torchrun: training with several is not supported yet"
        )


def checked(
    loaded: LoadedConfig, name: str | None, runs_dir: Path, device_name: str | None, init: Path | None, report: Report
) -> tuple[LoadedConfig, Assembled, DualEncoder]:
    """All that can fail, in the order of the exit codes: name 2, device 5, data 3, weights 5, disk 5."""
    if name is not None:
        check_name(runs_dir, name)
    source = None
    if init is not None:
        source = open_model(init)
        loaded = _with_model_of(loaded, source.config, init)
    config = loaded.config
    parts = assemble(
        config,
        device_name,
        config.train.precision,
        source.tokenizer if source else None,
        preset=loaded.chain[-1],
        origin=str(init) if init else None,
    )
    if not parts.derived.frozen_epochs:  # else the features tell, which are computed before the first step
        check_readable(parts.val_table, report)
    weights = None if source else read_weights(config.model.vision)
    if weights and loaded.weights not in ("", weights.sha256):
        raise CheckpointError(
            f"{config.model.vision.weights} is not the file that the run began with whose configuration this is: "
            f"SHA-256 {weights.sha256[:12]}, not {loaded.weights[:12]} (model.vision.weights). "
            f"Bring that file back, or ask for this one: --set model.vision.weights={config.model.vision.weights}"
        )
    backbone = pretrained_backbone(config.model.vision, weights) if weights else None
    if weights:
        parts = parts.begun("weights", weights.sha256, f"{config.model.vision.weights}, {weights.checked}")
    elif source:
        parts = parts.begun("init", weights_sha256(source.content["model"]), str(init))
        parts = replace(parts, before=recorded(source.content))
    make_deterministic(config.seed, parts.device.device)
    model = source.model if source else build(config.model, parts.tokenizer.vocab_size)
    if backbone is not None:
        model.visual.trunk.load_state_dict(backbone)
    check_disk(runs_dir, parts.derived)
    return loaded, parts, model


def _with_model_of(loaded: LoadedConfig, other: Config, init: Path) -> LoadedConfig:
    """The architecture comes with the weights; settings that contradict it would be lost in silence."""
    asked, given = flatten(to_plain(loaded.config)), flatten(to_plain(other))
    lost = [key for key, at in loaded.source.items() if key.startswith("model.") and at == "--set"]
    for key in lost:
        if asked[key] != given[key]:
            raise ConfigError(
                f"{key} is {given[key]} with the weights of {init} (--set). Leave out this setting, or --init"
            )
    return replace(
        loaded,
        config=loaded.config.model_copy(update={"model": other.model}),
        source={key: f"--init {init}" if key.startswith("model.") else at for key, at in loaded.source.items()},
    )
