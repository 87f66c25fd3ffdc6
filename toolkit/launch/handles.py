"""A pipeline sent from Python: a handle for each stage, to wait for what it makes.

    import toolkit

    stages = toolkit.submit("configs/mini.yaml", "lab")
    model = stages["base"].result()  # waits; the artifact, or StageError with the reason
    print(model.folder)

A handle is a run's folder and a stage's name, and nothing else: ``toolkit.handles("runs/mini")``
gives the same ones in another process, or on another login node. What is true is in the folder and
at Slurm, whatever sends the jobs (``submit_with``).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from toolkit.artifacts import MANIFEST, Artifact, read_artifact
from toolkit.errors import StageError, ToolkitError
from toolkit.launch import remote
from toolkit.launch.going_on import read_going_on
from toolkit.launch.rendered import whole_name
from toolkit.launch.submissions import active_jobs, sent_jobs
from toolkit.launch.watching import StageStatus, run_status
from toolkit.launch.watching import cancel as cancel_jobs
from toolkit.pipeline.run import read_run

logger = logging.getLogger(__name__)
POLL = 0.5
"""Seconds between looks for the artifact."""
ASK = (2.0, 30.0)
"""Seconds between questions to Slurm: at first, and at most."""


@dataclass(frozen=True)
class Handle:
    """One stage of a run on a cluster."""

    run: Path
    """The run's folder."""
    stage: str

    @property
    def folder(self) -> Path:
        """The stage's folder: logs, metrics, the artifact."""
        return self.run / self.stage

    @property
    def job_ids(self) -> list[str]:
        """The ids of its jobs that were sent last, in order of work; of an array the one of all."""
        return [j["id"] for j in sent_jobs(self.run).values() if j["stage"] == self.stage]

    def status(self) -> StageStatus:
        """What ``toolkit status`` shows of it."""
        return next(row for row in run_status(self.run) if row.name == self.stage)

    def done(self) -> bool:
        """Whether it has ended: its artifact is there, or no job of it waits or runs any more.

        Raises:
            ToolkitError: there is no artifact, and Slurm gives no answer.
        """
        return self._artifact() is not None or not self._active()

    def result(self, timeout: float | None = None) -> Artifact:
        """Wait for what the stage makes.

        A job that is put back into the queue is waited for, and so is a Slurm that is silent.

        Args:
            timeout: seconds to wait; None: as long as it takes.

        Raises:
            StageError: it failed, was cancelled, or has no job: the message says which, and why.
            TimeoutError: it has not ended in time.
        """
        begun, pause, gone = time.monotonic(), 0.0, 0
        while (artifact := self._artifact_within(pause)) is None:
            waited = time.monotonic() - begun
            if gone > 1:  # asked twice: between its end and its requeue a job may seem gone
                raise self._failure()
            if timeout is not None and waited >= timeout:
                raise TimeoutError(f"stage {self.stage!r} has not ended within {timeout:.0f} s")
            gone = gone + 1 if self._seems_ended() else 0
            pause = min(ASK[1], max(ASK[0], waited / 10))
            pause = pause if timeout is None else min(pause, timeout - waited)
        return artifact

    def cancel(self) -> list[str]:
        """End its jobs and those of all stages that need it; returns the jobs' names."""
        return cancel_jobs(self.run, self.stage)

    def _artifact(self) -> Artifact | None:
        found = self.folder / "artifact"
        return read_artifact(found) if (found / MANIFEST).is_file() else None

    def _artifact_within(self, seconds: float) -> Artifact | None:
        """Look for the artifact until so many seconds are over; at least once."""
        deadline = time.monotonic() + seconds
        while (artifact := self._artifact()) is None and time.monotonic() < deadline:
            time.sleep(POLL)
        return artifact

    def _active(self) -> bool:
        return any(job["stage"] == self.stage for job in active_jobs(self.run).values())

    def _seems_ended(self) -> bool:
        try:
            return not self._active()
        except ToolkitError as error:
            logger.warning("%s: waiting for it", error.message)
            return False

    def _failure(self) -> StageError:
        """Why there is no artifact and will be none."""
        row, where = self.status(), str(self.folder)
        error = row.state.error or {}
        hint = error.get("hint") or f"toolkit resubmit {self.run} sends it again"
        if not row.job:
            return StageError(f"stage {self.stage!r} has no job", where=where, hint=hint)
        job = f"stage {self.stage!r} (job {row.job})"
        ends = [note.reason for note in read_going_on(self.folder).values() if note.ended]
        if row.state.status == "failed":
            reasons = [_text(error), *ends]
        else:
            culprit = next(iter(self._failed_needs()), None)
            came = f"it waits for {culprit}" if culprit else row.advice or row.slurm.lower()
            reasons = [f"did not end: {came or 'Slurm has forgotten it'}", *ends]
        shown = "; ".join(dict.fromkeys(reason for reason in reasons if reason))
        return StageError(f"{job} {shown}", where=error.get("where") or where, hint=hint)

    def _failed_needs(self) -> Iterator[str]:
        """What failed among all that it waits for, with the reason, nearest first."""
        sent = sent_jobs(self.run)
        rows = {row.name: row for row in run_status(self.run)}
        todo = [
            n for job in sent.values() if job["stage"] == self.stage for n in job["dependencies"]
        ]
        for name in todo:
            stage = sent[name]["stage"] if name in sent else name
            if stage != self.stage and stage in rows and rows[stage].state.status == "failed":
                yield f"{stage!r}, which {_text(rows[stage].state.error or {})}"
            behind = [job["dependencies"] for n, job in sent.items() if name in (n, whole_name(n))]
            todo += [n for n in chain.from_iterable(behind) if n not in todo]


def _text(error: Mapping[str, object]) -> str:
    return f"failed: {error['message']}" if error.get("message") else "failed"


def submit(
    pipeline: str | Path,
    cluster: str | Path,
    *,
    overrides: Sequence[str] = (),
    only: Sequence[str] = (),
    run_dir: str | Path | None = None,
    fresh: bool = False,
    again: bool = False,
) -> dict[str, Handle]:
    """Check a pipeline and send it to a cluster, all of its jobs or none, as ``toolkit submit``.

    Args:
        pipeline: the pipeline file.
        cluster: a profile: the name of a shipped one, or a .yaml file.
        overrides: settings that win over the file's: ``stages.base.train_iters=20``.
        only: these stages alone.
        run_dir: the run's folder; by default the pipeline's name in the profile's ``run_root``.
        fresh: move aside what was made with other settings.
        again: where the run has jobs under way, leave their stages to them and send what is
            missing, as ``toolkit resubmit``.

    Returns:
        A handle for every stage, also for those that were complete already.

    Raises:
        ConfigError: with every mistake that can be found before anything is sent.
        ToolkitError: the run has jobs under way, or Slurm refuses one; nothing is queued.
    """
    folder = Path(run_dir) if run_dir is not None else None
    request = remote.Request(Path(pipeline), str(cluster), overrides, only, folder)
    remote.submit(request, fresh=fresh, again=again)
    found = handles(remote.load(request)[2])
    return {name: found[name] for name in only} if only else found


def handles(run: str | Path) -> dict[str, Handle]:
    """A handle for every stage of a run that was sent to a cluster, in the pipeline's order.

    Raises:
        ToolkitError: the folder is not a run's.
    """
    folder = Path(run).resolve()
    return {name: Handle(folder, name) for name in read_run(folder)}
