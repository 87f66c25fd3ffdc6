"""The errors a user can act on. Everything else is a bug and keeps its traceback."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""What a disk says that can't be written: full, over quota, or read-only."""


class ExitCode(IntEnum):
    """What the command line, and every worker, returns to its caller."""

    OK = 0
    STAGE_FAILED = 1
    USER_ERROR = 2
    SAVED_AND_STOPPED = 85
    """A worker saved its progress on a signal and wants to be started again."""
    NODE_UNFIT = 86
    """The preflight named a node that is not fit: the job is to go on without it."""
    INTERRUPTED = 130


STOPPED = (ExitCode.SAVED_AND_STOPPED, ExitCode.INTERRUPTED)
"""How a worker ends that was asked to stop."""


class ToolkitError(Exception):
    """Something the user can act on: the message says what, where, and what would be right.

    Args:
        message: what was wrong.
        where: the place, such as ``corpus.jsonl:17`` or ``mini.yaml:12``.
        hint: what would be right, or what to do next.
    """

    exit_code = ExitCode.USER_ERROR

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message, self.where, self.hint = message, where, hint

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        advice = f"\n  {self.hint}" if self.hint else ""
        return f"{place}{self.message}{advice}"


class DataError(ToolkitError):
    """Input data that can't be read as configured, with the file and the line or row."""


class StageError(ToolkitError):
    """A stage started and could not finish."""

    exit_code = ExitCode.STAGE_FAILED


class BusyError(ToolkitError):
    """Another process is using the same run or stage folder."""


class StageInterrupted(ToolkitError):
    """The user, or the scheduler, asked a stage to stop; its progress is kept.

    Args:
        saved: whether a checkpoint of this very moment was written, so that a restart goes on
            from here and not from the last periodic checkpoint.
    """

    exit_code = ExitCode.INTERRUPTED

    def __init__(self, message: str, *, saved: bool = False) -> None:
        super().__init__(message)
        self.saved = saved


@dataclass(frozen=True)
class Problem:
    """One mistake in a configuration file."""

    key: str
    """Dotted, as an override would name it: ``stages.base.train_iters``."""
    message: str
    """What is wrong and what would be right, in one sentence."""
    file: Path | None = None
    line: int | None = None
    hint: str | None = None

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.file and self.line else ""
        place = place or (f"{self.file}: " if self.file else "")
        advice = f"\n    {self.hint}" if self.hint else ""
        return f"{place}{self.key}: {self.message}{advice}"


class ConfigError(ToolkitError):
    """All the mistakes of one configuration, found in one pass."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        lines = "\n".join(f"  {p}" for p in self.problems)
        super().__init__(f"{count} mistake{'s' if count > 1 else ''}:\n{lines}")
