"""A run directory: its file names, its lock, its status, and which names are allowed."""

import re
import shlex
import shutil
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from clipcoco.config.load import preset_names
from clipcoco.disk.files import read_own, write_json
from clipcoco.disk.links import refuse_links
from clipcoco.disk.locks import claim
from clipcoco.errors import CheckpointError, ConfigError, EnvironmentProblem
from clipcoco.events import Chance

Count = Annotated[int, Field(ge=0, le=10**12)]
Seconds = Annotated[float, Field(ge=0, le=10**11)]


def _or_none(value: object, handler: ValidatorFunctionWrapHandler) -> object:
    try:
        return handler(value)
    except ValidationError:
        return None


class Best(BaseModel, frozen=True, extra="allow", allow_inf_nan=False):
    r1: float = Field(ge=0, le=100)
    epoch: Count


class Status(BaseModel, frozen=True, extra="allow", allow_inf_nan=False):
    """status.json. What is missing has its default, keys of later versions stay. A wrong kind spoils all of it, but
    for what the report alone reads."""

    state: str = ""  # running, finished, stopped or failed; "" until the run has begun
    step: Count = 0
    total_steps: Count | None = None
    epochs: Count | None = None
    best: Best | None = None
    checkpoint: str | None = None  # the newest one
    val_images: Count | None = None
    device: str | None = None
    caution: str | None = None  # what stands beside its recalls
    chance: Annotated[Chance | None, WrapValidator(_or_none)] = None  # of the validation gallery
    chance_loss: Annotated[float | None, WrapValidator(_or_none)] = None
    started: Seconds | None = None  # since 1970
    seconds: Seconds | None = None  # of training, all stops left out
    exit_code: int | None = None
    reason: str | None = None


class _Inside:
    """A file or a folder of a run, by its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, run: "RunDir", kind: type["RunDir"]) -> Path:
        return run.path / self.name


@dataclass(frozen=True)
class RunDir:
    path: Path

    config = _Inside("config.yaml")
    status_file = _Inside("status.json")
    metrics = _Inside("metrics.jsonl")
    log = _Inside("log.txt")
    tensorboard = _Inside("tensorboard")
    checkpoints = _Inside("checkpoints")
    evaluation = _Inside("evaluation.json")  # what the best checkpoint was measured to be, with retrievals to show
    report = _Inside("report.html")
    shared = _Inside("search.html")  # one file that searches
    figures = _Inside("figures")

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def words(self) -> str:
        """What to type for it in a shell: its name where that is enough, else its path."""
        return shlex.quote(self.name if self.path.parent == Path("runs") else str(self.path))

    def read_status(self) -> Status | None:
        """What status.json says; None when there is none, or none that can be read."""
        try:
            return Status.model_validate_json(read_own(self.status_file, most=2**20))
        except (OSError, ValidationError):
            return None

    def status(self) -> Status:
        """The same, with defaults for None."""
        return self.read_status() or Status()

    def check(self) -> None:
        """Raise CheckpointError when anything below the run's folder is a link: a stranger may have made it."""
        refuse_links(self.path.resolve(), CheckpointError)

    def write_status(self, **changes: Any) -> None:
        """Set entries of status.json; a reader sees it before or after, never between."""
        before = self.status().model_dump(exclude_unset=True)
        if isinstance(reason := changes.get("reason"), str):  # the name of a file need not be Unicode
            changes["reason"] = reason.encode("utf-8", "backslashreplace").decode()
        write_json(self.status_file, before | changes)

    def lock(self) -> AbstractContextManager[str]:
        """One process at a time; gives a line to tell where the file system has no locks, else ""."""
        return claim(self.path / ".lock", f"run {self.name}", "is already running in")


def create(runs_dir: Path, preset: str, name: str | None) -> RunDir:
    """A new run directory, never an existing one."""
    if name is None:
        stem = re.sub(r"[^\w.+-]+", "-", preset).lstrip(".+-") or "run"  # of a file that may be called anything
        name = f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"
        if (runs_dir / name).exists():
            name = free_name(runs_dir, name)
    check_name(runs_dir, name)
    path = runs_dir / name
    try:
        (path / "checkpoints").mkdir(parents=True)
    except OSError as error:
        raise EnvironmentProblem(
            f"the run directory {path} can't be made: {error.strerror}. Give another --runs-dir"
        ) from error
    run = RunDir(path)
    try:
        run.write_status(started=time.time())
    except OSError:
        shutil.rmtree(path, ignore_errors=True)
        raise
    return run


def is_ours(run: RunDir) -> bool:
    """Whether it is a run, be it one that was killed, or lost power, before it could say so."""
    if run.status() != Status():
        return True
    if not run.path.is_dir() or run.path.is_symlink():
        return False
    ours = {path.name for path in (run.config, run.metrics, run.log, run.tensorboard, run.checkpoints)}
    found = [*run.path.iterdir(), *run.checkpoints.glob("*")]
    return all(path.name in {*ours, "status.json", ".lock"} or path.suffix == ".tmp" for path in found)


def check_name(runs_dir: Path, name: str) -> None:
    """Raise ConfigError unless a run of this name can be made."""
    check_spelling(name)
    if (runs_dir / name).exists():
        free = free_name(runs_dir, name)
        raise ConfigError(f"run {name} exists in {runs_dir} (--name). Resume it, or take --name {free}")


def check_spelling(name: str) -> None:
    """Raise ConfigError unless a run can have this name: above all for a path that leads out of the folder of runs."""
    if not re.fullmatch(r"\w[\w.+-]{0,199}", name) or name in preset_names():
        raise ConfigError(
            f"'{name}' can't name a run (--name). Use letters, digits, dashes and dots, and no preset's name"
        )


def free_name(runs_dir: Path, name: str) -> str:
    number = 2
    while (runs_dir / f"{name}-{number}").exists():
        number += 1
    return f"{name}-{number}"
