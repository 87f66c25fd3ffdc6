"""Working through a run's stages on this machine, one after another."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from toolkit.artifacts import MANIFEST
from toolkit.errors import STOPPED, ExitCode
from toolkit.launch.local import Interrupt, Result, run_local
from toolkit.launch.spec import launch_specs
from toolkit.pipeline.run import Run, Task
from toolkit.tracking import PROGRESS


class View(Protocol):
    """Whoever shows how a run goes."""

    def skipped(self, task: Task) -> None:
        """A stage was complete already."""

    def started(self, task: Task, ranks: int) -> None:
        """A stage's processes start."""

    def progress(self, task: Task, record: Mapping[str, Any] | None) -> None:
        """What the stage last said of itself (see ``tracking.Progress``)."""

    def ended(self, task: Task, result: Result, seconds: float) -> None:
        """A stage's processes have ended."""


def execute(run: Run, view: View) -> ExitCode:
    """Work through the stages; stops at the first that fails or is interrupted."""
    with Interrupt() as interrupt:
        for task in run.tasks:
            if interrupt.count:
                return ExitCode.INTERRUPTED
            if task.action == "skip":
                view.skipped(task)
                continue
            code = _work(task, interrupt, view)
            if code != ExitCode.OK:
                return ExitCode.INTERRUPTED if code in STOPPED else code
    return ExitCode.OK


def _work(task: Task, interrupt: Interrupt, view: View) -> ExitCode:
    task.folder.mkdir(parents=True, exist_ok=True)
    task.file.write(task.folder)
    (task.folder / PROGRESS).unlink(missing_ok=True)
    specs = launch_specs(task, sys.executable)
    view.started(task, specs[0].world_size)
    started = time.monotonic()
    for spec in specs:
        result = run_local(spec, interrupt, lambda: view.progress(task, read_progress(task.folder)))
        if result.code != ExitCode.OK:
            break
    if result.code == ExitCode.OK and not (task.folder / "artifact" / MANIFEST).is_file():
        message = "the stage ended without its artifact: this is a bug of the stage"
        result = Result(ExitCode.STAGE_FAILED, {"message": message})
    view.ended(task, result, time.monotonic() - started)
    return result.code


def read_progress(folder: Path) -> dict[str, Any] | None:
    """What a stage last said of its progress."""
    try:
        found: dict[str, Any] = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found
