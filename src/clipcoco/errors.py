"""What a user can cause, and the exit code of each.

ClipcocoError
├── ConfigError        2  usage or configuration
├── DataError          3  captions, images, annotation files
├── CheckpointError    4  a checkpoint that is missing, damaged or does not fit
├── EnvironmentProblem 5  disk, device, permission, lock, network
└── NumericError       6  loss or gradient that is not finite

The message is one line, `WHAT (WHERE). NEXT`: what is wrong, in which file and line, and what to do.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    OK = 0
    BUG = 1
    CONFIG = 2
    DATA = 3
    CHECKPOINT = 4
    ENVIRONMENT = 5
    NUMERIC = 6
    STOPPED = 75  # stopped by a signal, saved, resumable
    INTERRUPTED = 130  # Ctrl-C with nothing to save
    TERMINATED = 143  # SIGTERM with nothing to save


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
