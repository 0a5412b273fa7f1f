"""Every error that crackvae raises on purpose, and the exit code of each.

::

    CrackvaeError               a defect of ours unless a subclass says otherwise  exit 1
    ├── UsageError              the command line asks for something impossible     exit 2
    ├── InputError              an input cannot be used                            exit 3
    │   ├── ConfigError         a TOML file or a value in it
    │   └── ArtifactError       a model artifact: foreign, newer, truncated, altered
    ├── UnavailableError        an object store gave no answer                     exit 3
    ├── RefusedError            doing it would destroy or mix results              exit 3
    ├── TooManyFailedError      results are kept, but too many files failed        exit 4
    ├── LostError               a process of the job, or the node it was on, is gone       exit 1
    ├── DetachedError           a submitted job goes on without this process       exit 130
    └── ImageError              one image; becomes a row with a status, never ends a job

The message of an error is one line that names the file or field and the cure.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crackvae.schema import Status


class ExitCode(IntEnum):
    """What the process tells its caller."""

    DONE = 0
    DEFECT = 1
    USAGE = 2
    INPUT = 3
    TOO_MANY_FAILED = 4
    DRIFT_ALARM = 5
    INTERRUPTED = 130
    TERMINATED = 143


class CrackvaeError(Exception):
    """Base of every error raised on purpose."""

    exit_code = ExitCode.DEFECT


class UsageError(CrackvaeError):
    """The command line asks for something impossible."""

    exit_code = ExitCode.USAGE


class InputError(CrackvaeError):
    """An input cannot be used."""

    exit_code = ExitCode.INPUT


class ConfigError(InputError):
    """A config file cannot be read, or a value in it is wrong."""


class ArtifactError(InputError):
    """A model artifact is missing, foreign, newer, truncated or altered."""


class UnavailableError(CrackvaeError):
    """An object store gave no answer, however often it was asked; what is finished is kept."""

    exit_code = ExitCode.INPUT


class RefusedError(CrackvaeError):
    """Going on would destroy or mix results."""

    exit_code = ExitCode.INPUT


class TooManyFailedError(CrackvaeError):
    """More files failed than the config allows; what was scored is kept."""

    exit_code = ExitCode.TOO_MANY_FAILED


class LostError(CrackvaeError):
    """A process of the job, or the node it was on, is gone, and what it was doing with it."""


class DetachedError(CrackvaeError):
    """A submitted job goes on without this process, which was told to stop."""

    exit_code = ExitCode.INTERRUPTED


class ImageError(CrackvaeError):
    """One image cannot be scored.

    Args:
        status: What its row says.
        message: Why, in one line.
    """

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(status, message)  # both, so that it survives pickling between processes
        self.status = status
        self.message = " ".join(message.split())

    def __str__(self) -> str:
        return f"{self.status}: {self.message}"
