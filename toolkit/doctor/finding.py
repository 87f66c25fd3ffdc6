"""What a check reports, and how checks ask the system."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from toolkit.doctor.facts import Torch

Status = Literal["ok", "info", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis."""

    name: str
    status: Status
    """``ok``; ``info``: absent, and that may be fine; ``warn``: will hurt; ``fail``: won't run."""
    detail: str
    """What was found, with versions and sizes."""
    advice: str = ""
    """What to do about it; empty where there is nothing to do."""


Check = Callable[[Torch], Iterator[Finding]]


@dataclass(frozen=True)
class Answer:
    """What a command of the system said."""

    code: int
    """Its exit code; 124 when it did not answer in time."""
    text: str
    """Its standard output, or its standard error when it failed or wrote nothing else."""

    @property
    def ok(self) -> bool:
        """Whether it ended well."""
        return self.code == 0

    @property
    def line(self) -> str:
        """The first line of the text that says something."""
        return next((line.strip() for line in self.text.splitlines() if line.strip()), "")


def ask(command: Sequence[str], seconds: float = 5.0) -> Answer | None:
    """Run a command and wait for its answer; None where there is no such command."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return Answer(124, f"no answer within {seconds:g} s")
    except OSError as error:
        return Answer(126, str(error))
    said = done.stdout if done.returncode == 0 and done.stdout.strip() else done.stderr
    return Answer(done.returncode, said or done.stdout)
