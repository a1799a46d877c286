"""A run begins: planned and checked first, then given its directory."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from clipcoco.config.load import LoadedConfig, flatten, to_plain
from clipcoco.config.schema import CACHED, Config, ModelConfig
from clipcoco.data.readable import check_readable
from clipcoco.engine import checkpoint
from clipcoco.engine.device import choose_device, make_deterministic
from clipcoco.engine.distributed import ALONE, Group
from clipcoco.engine.model import DualEncoder, build
from clipcoco.engine.model_file import open_model
from clipcoco.engine.sentence import SentenceEncoder, read_bert
from clipcoco.engine.state import TrainState
from clipcoco.engine.trained_on import known_words, recorded
from clipcoco.engine.weights import pretrained_backbone, read_weights
from clipcoco.errors import CheckpointError, ClipcocoError, ConfigError
from clipcoco.events import Report
from clipcoco.prepare.scenes import draw_scenes, to_be_drawn
from clipcoco.runs.config_file import write_settings
from clipcoco.runs.directory import RunDir, check_name, create
from clipcoco.runs.plan import Plan, check_disk, read_parts


def draw_missing_scenes(
    loaded: LoadedConfig, device_name: str | None, tell: Callable[[str], object] = lambda line: None
) -> None:
    """Draw the embedded data set where `to_be_drawn` says so, unless the run can't begin on this device anyway."""
    choose_device(device_name, loaded.config.train.precision)
    if to_be_drawn(loaded):
        tell(f"Drawing 6,500 scenes into {loaded.config.data.root}, once.")
        draw_scenes(loaded.config.data.folder)


def plan_run(
    loaded: LoadedConfig,
    *,
    name: str | None,
    runs_dir: Path,
    device_name: str | None,
    init: Path | None,
    report: Report,
    group: Group = ALONE,
    keep: bool = True,
) -> Plan:
    """A new run, checked in the order of the exit codes; writes nothing but, with `keep`, what its captions come to.

    Raises ConfigError, DataError, CheckpointError or EnvironmentProblem.
    """
    if name is not None:
        check_name(runs_dir, name)
    # ---- settings: with --init the architecture comes with the weights
    source, origin = (open_model(init), str(init)) if init is not None else (None, "")
    loaded = _with_model_of(loaded, source.config, source.path) if source else loaded
    # ---- device and data
    precision, preset, tokenizer = loaded.config.train.precision, loaded.chain[-1], source.tokenizer if source else None
    parts = read_parts(
        loaded.config, device_name, precision, tokenizer, preset=preset, origin=origin, group=group, keep=keep
    )
    loaded, config = _as_trained(loaded, parts.config), parts.config
    if not parts.derived.frozen_epochs:  # else the features tell, which are computed before the first step
        check_readable(parts.val_table, report)
    # ---- the weights that it begins with
    weights, backbone, began = None if source else read_weights(config.model.vision), None, {}
    if weights:
        if loaded.weights not in ("", weights.sha256):
            raise CheckpointError(
                f"{config.model.vision.weights} is not the file that the run began with whose configuration this is: "
                f"SHA-256 {weights.sha256[:12]}, not {loaded.weights[:12]} (model.vision.weights). "
                f"Bring that file back, or ask for this one: --set model.vision.weights={config.model.vision.weights}"
            )
        backbone = pretrained_backbone(config.model.vision, weights)
        began, said = {"weights": weights.sha256}, f"{config.model.vision.weights}, {weights.checked}"
    elif source:
        began, said = {"init": checkpoint.weights_sha256(source.content["model"])}, origin
    make_deterministic(config.seed, parts.device.device)
    model = source.model if source else _begun(config.model, parts.tokenizer.vocab_size, backbone)
    model.learn_bias(parts.loss.bias and parts.loss.bias(config.train.batch_size))
    check_disk(runs_dir, parts.derived)
    return Plan(
        loaded=loaded,
        parts=parts,
        model=model,
        state=TrainState(
            precision=parts.device.precision,
            frozen_epochs=parts.derived.frozen_epochs,
            micro_batch_size=parts.micro_batch,
        ),
        header=(*parts.header, *(("weights", f"{said}, SHA-256 {digest[:12]}") for digest in began.values())),
        began=began,
        init=origin,
        before=recorded(source.content) if source else None,
        words=known_words(source.content) if source else set(),
    )


def _begun(config: ModelConfig, vocab_size: int, backbone: dict[str, Tensor] | None) -> DualEncoder:
    """A new model with what its towers begin with."""
    model = build(config, vocab_size)
    if backbone is not None:
        model.visual.trunk.load_state_dict(backbone)
    if isinstance(model.text, SentenceEncoder):
        model.text.encoder.load_state_dict(read_bert(config.text))
    return model


def _as_trained(loaded: LoadedConfig, config: Config) -> LoadedConfig:
    """With train.cached in the place of train's own where that holds: a resume and a repetition need no device."""
    if config == loaded.config:
        return loaded
    pieces = "train.micro_batch_size"
    if config.train.micro_batch_size != loaded.config.train.micro_batch_size:  # never where train.cached holds
        of_several = f"{loaded.source[pieces]}, where whole is the share of a process"
        return replace(loaded, config=config, source=loaded.source | {pieces: of_several})
    source = loaded.source | {name: loaded.source[cached] for name, cached in CACHED.items()}
    if loaded.config.train.frozen_epochs == "auto":
        source["train.frozen_epochs"] += ", where auto is all"
    replaced = {name: text for name, text in loaded.replaced.items() if name not in CACHED}
    replaced |= {name: loaded.replaced[cached] for name, cached in CACHED.items() if cached in loaded.replaced}
    return replace(loaded, config=config, source=source, replaced=replaced)


@contextmanager
def new_run(plan: Plan, runs_dir: Path, name: str | None) -> Iterator[tuple[RunDir, str]]:
    """The directory of a planned run, locked, with its settings and with the checkpoint that it goes on from, if any.

    With it a line to tell where the file system has no locks, else "". It is removed again when an error leaves
    nothing in it to go on from.
    """
    run = create(runs_dir, plan.loaded.name, name)
    with run.lock() as unlocked:
        try:
            write_settings(run, plan.loaded, plan.began, plan.init)
            if plan.content is not None:
                _take_checkpoint(run, plan, plan.content)
            yield run, unlocked
        except ClipcocoError:
            if (plan.content is not None or not plan.state.step) and not any(run.checkpoints.iterdir()):
                shutil.rmtree(run.path)
            raise


def _take_checkpoint(run: RunDir, plan: Plan, content: dict[str, object]) -> None:
    """As the run's last one, and as its best where it was."""
    config, state = plan.parts.config, plan.state
    evaluated = state.step == state.evaluated_epochs * plan.parts.derived.steps_per_epoch
    best = evaluated and state.best_epoch == state.evaluated_epochs
    held = {**content, "config": to_plain(config)}
    checkpoint.save(run.checkpoints, held, best=best, epoch=None, keep=config.checkpoint.keep)


def _with_model_of(loaded: LoadedConfig, other: Config, init: Path) -> LoadedConfig:
    """The architecture comes with the weights; settings that contradict it would be lost in silence."""
    model = other.model.model_copy(update={"start": "random"})  # nothing begins anew
    asked, given = flatten(loaded.config), flatten(other.model_copy(update={"model": model}))
    lost = [key for key, at in loaded.source.items() if key.startswith("model.") and at == "--set"]
    for key in lost:
        if asked[key] != given[key]:
            raise ConfigError(
                f"{key} is {given[key]} with the weights of {init} (--set). Leave out this setting, or --init"
            )
    return replace(
        loaded,
        config=loaded.config.model_copy(update={"model": model}),
        source={key: f"--init {init}" if key.startswith("model.") else at for key, at in loaded.source.items()},
    )
