"""A run on several processes: the first one leads, with records and words; the others take the same steps silently."""

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipcoco.config.load import config_from_plain, to_plain
from clipcoco.cores import processes
from clipcoco.data.tokenizer import Tokenizer
from clipcoco.engine.device import make_deterministic, training_in_memory
from clipcoco.engine.distributed import Group, join
from clipcoco.engine.model import build
from clipcoco.engine.state import TrainState
from clipcoco.engine.step import Stop
from clipcoco.engine.train import train
from clipcoco.errors import ConfigError, DistributedError
from clipcoco.events import Event, Progress
from clipcoco.runs.directory import RunDir
from clipcoco.runs.metrics import LogFile
from clipcoco.runs.plan import Parts, Plan, read_parts
from clipcoco.runs.training import make_ready
from clipcoco.version import __version__

Asked = Mapping[str, object]  # what a command line asks for, by the names of the settings


@dataclass(frozen=True)
class _Told:
    """What the first process says of its plan: all that the data and the command line do not tell."""

    folder: Path
    config: dict[str, Any]
    state: dict[str, Any]
    tokenizer: dict[str, Any]
    device: str
    source: str
    frozen_epochs: int


@contextmanager
def together() -> Iterator[Group]:
    """The processes of this run; what ends this one inside is told to the others, which then end too."""
    group = join()
    try:
        yield group
    except Exception as error:
        group.fail(error)
        raise


def refuse_many_processes(what: str) -> None:
    """Raise DistributedError where a launcher such as torchrun has started several: each would do the whole."""
    if (many := processes()[1]) > 1:
        raise DistributedError(
            f"{many} processes were started, and {what} is for one (WORLD_SIZE). Start it without torchrun; several "
            f"train together by torchrun -m clipcoco train"
        )


def lead(plan: Plan, run: RunDir, asked: Asked) -> None:
    """Tell the other processes what they take part in, and see that they were asked for the same."""
    parts, content = plan.parts, plan.content or {}
    if parts.group.size == 1:
        return
    parts.group.said(
        _Told(
            folder=run.path.absolute(),
            config=to_plain(parts.config),
            state=plan.state.to_plain(),
            tokenizer=parts.tokenizer.to_plain(),
            device=parts.device.device.type,
            source=parts.source.name,
            frozen_epochs=parts.derived.frozen_epochs,
        )
    )
    _check_alike(parts, asked)
    held = {name: content[name] for name in ("optimizer", "scaler", "rng") if name in content}
    parts.group.spread({"model": plan.model.state_dict(), **held})


def hear(group: Group) -> _Told | None:
    """The first process's plan, whenever it has one; None where there is nothing to do."""
    none: _Told | None = None
    return group.said(none)


def follow(group: Group, told: _Told, asked: Asked, stop: Stop) -> None:
    """Take part in the run to its end. What there is to say goes into a log of this process's own."""
    log = LogFile(RunDir(told.folder).log.with_name(f"log.{group.rank}.txt"))

    def note(event: Event) -> None:
        if not isinstance(event, Progress):
            with suppress(OSError):  # of another machine, which has no such folder
                log(str(event))

    # ---- data and settings, which must be those of the first one
    config, state = config_from_plain(told.config, "of process 0"), TrainState.from_plain(told.state)
    parts = read_parts(
        config,
        told.device,
        state.precision,
        Tokenizer.from_plain(told.tokenizer),
        source_like=told.source,
        frozen_epochs=told.frozen_epochs,
        micro_batch_size=state.micro_batch_size,
        group=group,
    )
    _check_alike(parts, asked)
    try:
        # ---- its weights, and where the run goes on what came of them
        make_deterministic(config.seed, parts.device.device)
        nothing: dict[str, Any] = {}
        model, held = build(config.model, parts.tokenizer.vocab_size), group.spread(nothing)
        if parts.loss.bias:
            model.learn_bias(0.0)
        model.load_state_dict(held.pop("model"))
        with parts.device.made_current(), training_in_memory(config.train.batch_size, parts.device):
            train(make_ready(parts, model, state, held, note, stop), note, stop)
    except Exception:
        with suppress(OSError):
            log(traceback.format_exc())
        raise


def _check_alike(parts: Parts, asked: Asked) -> None:
    """Raise ConfigError where a process has another version, other data, or was asked for something else."""
    mine = {
        "version": __version__,
        "training images": parts.fingerprint["train"],
        "validation images": parts.fingerprint["val"],
        "copies": parts.source.sha256,
        "precision": parts.device.precision,
        **asked,
    }
    first, *others = parts.group.collected(mine)
    for rank, other in enumerate(others, 1):
        differing = [name for name in {**first, **other} if first.get(name) != other.get(name)]
        if differing:
            raise ConfigError(
                f"process {rank} has another {differing[0]} than process 0: {other.get(differing[0])!s:.60}, not "
                f"{first.get(differing[0])!s:.60} (RANK). Start all with the same command, code and data"
            )
