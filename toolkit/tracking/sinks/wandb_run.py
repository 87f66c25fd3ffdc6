"""Weights & Biases: one run under one id, resumed by every attempt of the stage."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb

from toolkit.tracking.config import WandbSettings
from toolkit.tracking.identity import FOLDER, remember
from toolkit.tracking.job import Ending, Job
from toolkit.tracking.tail import Step

EXIT_CODES: dict[Ending, int] = {"complete": 0, "failed": 1, "interrupted": 85, "lost": 1}


class WandbRun:
    """A run of ``wandb``, at the stage's own steps.

    W&B drops a step that comes a second time (``run.log(step=...)`` must not go backwards), so only
    later ones are sent: after a restart the server says which it has. Offline there is nobody to
    ask, and what wandb-core had buffered is lost with it: there each attempt writes the whole
    curve, in place of the last attempt's folder.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._run: Any = None

    def begin(self) -> int:
        """Start or resume the run.

        Raises:
            wandb.Error: no server, no key, no right to write there.
        """
        with contextlib.suppress(Exception):  # of a wandb-core that died: it can't be asked to end
            wandb.teardown()
        job, settings = self._job, WandbSettings.model_validate(self._job.settings)
        folder = job.folder / FOLDER
        old = list((folder / "wandb").glob(f"offline-run-*-{job.run_id}*"))
        if settings.base_url is not None:
            os.environ["WANDB_BASE_URL"] = settings.base_url
        self._run = run = wandb.init(
            id=job.run_id,
            resume="allow",
            project=settings.project,
            entity=settings.entity,
            group=settings.group or job.run,
            name=job.stage,
            job_type=job.kind,
            tags=settings.tags,
            mode=settings.mode,
            dir=str(folder),
            settings=_quiet(),
        )
        run.config.update(job.config, allow_val_change=True)
        if run.offline:
            for path in old:
                shutil.rmtree(path)
            place = Path(run.dir).parent.relative_to(job.folder.resolve())
            remember(job.folder, job.sink, offline=str(place))
            return -1
        remember(job.folder, job.sink, url=run.url)
        return int(run.starting_step) - 1  # not run.step, which is 0 until something is logged

    def rewound(self, last: int, sent: int) -> int:
        """What it has, it keeps: the steps up to ``sent``."""
        return sent

    def log(self, steps: list[Step]) -> None:
        """Hand the steps to wandb-core, which sends them; it does not wait for the server."""
        for step in steps:
            self._run.log({**step.values, "_timestamp": step.time}, step=step.step)

    def finish(self, end: Ending, results: Mapping[str, float | str]) -> None:
        """Send what is left, and end the run; preempted where the stage was stopped."""
        self._run.summary.update(dict(results))
        if end == "interrupted":
            self._run.mark_preempting()
        self._run.finish(exit_code=EXIT_CODES[end])
        wandb.teardown()  # waits until wandb-core has written the last of it


def _quiet() -> wandb.Settings:
    """Without what wandb does for notebooks and scripts: capture of the output, code, git."""
    return wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        x_stats_pid=os.getppid(),  # the rank's figures, not the sender's
    )
