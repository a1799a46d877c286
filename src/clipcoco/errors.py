"""What a user can cause, and the exit code of each.

ClipcocoError
├── ConfigError        2  usage or configuration
├── DataError          3  captions, images, annotation files
├── CheckpointError    4  a checkpoint that is missing, damaged or does not fit
├── EnvironmentProblem 5  disk, device, permission, lock, network
├── NumericError       6  loss or gradient that is not finite
└── DistributedError   7  several processes of one run
    └── Unheard           the first of them is gone, which speaks for all

The message is one line, `WHAT (WHERE). NEXT`: what is wrong, in which file and line, and what to do.
"""

import dis
import errno
from enum import IntEnum
from pathlib import Path


class ExitCode(IntEnum):
    OK = 0
    BUG = 1
    CONFIG = 2
    DATA = 3
    CHECKPOINT = 4
    ENVIRONMENT = 5
    NUMERIC = 6
    DISTRIBUTED = 7
    STOPPED = 75  # stopped by a signal, saved, resumable
    INTERRUPTED = 130  # Ctrl-C with nothing to save
    TERMINATED = 143  # SIGTERM, SIGUSR1 or SIGHUP with nothing to save


class ClipcocoError(Exception):
    exit_code = ExitCode.BUG


class ConfigError(ClipcocoError):
    """One or several mistakes in the configuration; `mistakes` has one line each."""

    exit_code = ExitCode.CONFIG

    def __init__(self, *mistakes: str) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


class DataError(ClipcocoError):
    exit_code = ExitCode.DATA


class CheckpointError(ClipcocoError):
    exit_code = ExitCode.CHECKPOINT


class EnvironmentProblem(ClipcocoError):
    exit_code = ExitCode.ENVIRONMENT


class NumericError(ClipcocoError):
    exit_code = ExitCode.NUMERIC


class DistributedError(ClipcocoError):
    exit_code = ExitCode.DISTRIBUTED


class Unheard(DistributedError):
    """The first process is gone, which speaks for all: it falls to this one to say so."""


_PAIR = "torch torchvision"  # each is built for one version of the other
_ON_PYPI = {"torch": _PAIR, "torchvision": _PAIR, "PIL": "pillow", "yaml": "pyyaml", "google": "protobuf"}


def broken_package(error: Exception) -> EnvironmentProblem | None:
    """What to say of `error` when an import of someone else's package raised it; None of any other error.

    A package that is missing raises ImportError; one that does not fit another, or its libraries, raises anything.
    """
    imported = None  # by the deepest line of ours that was at work
    at = error.__traceback__
    while at is not None:
        code = at.tb_frame.f_code
        if Path(code.co_filename).is_relative_to(Path(__file__).parent):
            steps = {step.offset: step for step in dis.get_instructions(code) if step.opname == "IMPORT_NAME"}
            imported = steps[at.tb_lasti].argval if at.tb_lasti in steps else None
        at = at.tb_next
    package = str(imported or (isinstance(error, ImportError) and error.name) or "clipcoco").partition(".")[0]
    if package == "clipcoco":
        return None
    what = " ".join(str(error).split()) or type(error).__name__
    return EnvironmentProblem(
        f"{package} can't be imported: {what:.200} (clipcoco env shows the versions). "
        f"Install it again: pip install --force-reinstall {_ON_PYPI.get(package, package)}"
    )


# What torch's back ends and allocators, their libraries and the system say, in lower case.
_NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "unable to allocate",
    "alloc_failed",
    "allocation_failed",
    "bad_alloc",
    "bad allocation",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, the device's or the machine's: mostly a RuntimeError that says so by its text alone."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = str(error).lower() if isinstance(error, RuntimeError) else ""
    return isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY)
