"""How a submitted run goes: the stages' own word beside Slurm's, their logs, and ending them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from toolkit.errors import ToolkitError
from toolkit.launch import slurm
from toolkit.launch.going_on import GoingOn
from toolkit.launch.outcome import (
    attempts,
    counted,
    error_of,
    going_on_of,
    job_at_work,
    status_of,
)
from toolkit.launch.reasons import meaning
from toolkit.launch.rendered import whole_name
from toolkit.launch.run import read_progress
from toolkit.launch.submissions import (
    Submission,
    active_jobs,
    adopted,
    known_jobs,
    last_jobs,
)
from toolkit.pipeline.problems import unknown
from toolkit.pipeline.run import read_run
from toolkit.pipeline.state import StageState, is_locked


@dataclass(frozen=True)
class StageStatus:
    """One stage of a run."""

    name: str
    state: StageState
    """As its folder has it, set right by what Slurm says."""
    job: str = ""
    """The id of the job that is or was at it last."""
    slurm: str = ""
    """Slurm's state, for an array with counts: ``3 COMPLETED, 1 RUNNING``."""
    reason: str = ""
    """Slurm's own: ``Priority``, ``Dependency``, ``TimeLimit``."""
    nodes: str = ""
    elapsed: float | None = None
    """Seconds since the job's last start, by Slurm's clock; without it, of work."""
    left: int | None = None
    """Seconds until the job's time limit."""
    begins: str = ""
    """When Slurm expects to start it."""
    attempt: int = 0
    """How often the job's work was begun."""
    progress: dict[str, Any] | None = None
    """What the stage last said of itself (``progress.json``)."""
    going_on: GoingOn | None = None
    """What its job noted of how it goes on, and why not."""
    lost: bool = False
    """Whether Slurm answers, and knows nothing of a job that should wait or run."""
    advice: str = ""
    """What Slurm's state means, and what to do about it."""

    def record(self) -> dict[str, Any]:
        """All of it as plain data, for JSON."""
        error = self.state.error or {}
        told = self.progress or {}
        return {
            "stage": self.name,
            "state": self.state.status,
            "job": self.job or None,
            "slurm": self.slurm or None,
            "reason": self.reason or None,
            "nodes": self.nodes or None,
            "elapsed_seconds": self.elapsed,
            "seconds_left": self.left,
            "begins": self.begins or None,
            "attempt": self.attempt,
            "done": told.get("done"),
            "total": told.get("total"),
            "unit": told.get("unit"),
            "seconds_to_go": told.get("seconds_left"),
            **{name: told.get("shown", {}).get(name) for name in ("loss",)},
            "error": {k: error.get(k) for k in ("message", "where", "hint")} if error else None,
            "going_on": asdict(self.going_on) if self.going_on else None,
            "unfit_nodes": self.state.unfit_nodes,
            "lost": self.lost,
            "advice": self.advice or None,
        }


@dataclass(frozen=True)
class RunStatus:
    """A run, as its folder and Slurm have it."""

    stages: list[StageStatus]
    """In the pipeline's order."""
    sent: bool
    """Whether jobs were sent for it."""
    notes: list[str]
    """What is to be known beside the stages: that Slurm gives no answer, for one."""

    @property
    def ended(self) -> bool:
        """Whether nothing of it waits or runs any more."""
        going = ("running", "pending") if self.sent else ("running",)
        rows = [row for row in self.stages if (row.job and not row.lost) or not self.sent]
        return not any(row.state.status in going for row in rows)


def look_at(run: Path) -> RunStatus:
    """A run's stages and what else is to be known of it.

    Raises:
        ToolkitError: the folder is not a run's.
    """
    states = read_run(run)
    submissions = [s for s in adopted(run) if not s.withdrawn]
    sent = last_jobs(submissions)
    known, trouble = known_jobs(sent)
    rows = []
    for name, state in states.items():
        jobs = {n: job for n, job in sent.items() if job["stage"] == name}
        rows.append(_stage_status(run / name, state, jobs, None if trouble else known))
    notes = [_cut_off(run, s) for s in submissions[-1:] if s.cut_off]
    if trouble and not all(known.values()):
        notes.append(f"{trouble}: what stands here is the run folder's word, and may be old")
    return RunStatus(rows, bool(sent), notes)


def run_status(run: Path) -> list[StageStatus]:
    """Every stage of a run, in the pipeline's order.

    By the run's folder alone where nothing was sent, or Slurm doesn't answer here.

    Raises:
        ToolkitError: the folder is not a run's.
    """
    return look_at(run).stages


def _cut_off(run: Path, submission: Submission) -> str:
    sent = sum(job["id"] is not None for job in submission.jobs)
    counts = f"{sent} of {len(submission.jobs)} jobs"
    if is_locked(run):
        return f"submission {submission.folder} is being sent: {counts}"
    return (
        f"submission {submission.folder} was cut off after {counts}:"
        f" toolkit resubmit {run} sends the others, toolkit cancel {run} ends these"
    )


def _stage_status(
    folder: Path,
    state: StageState,
    jobs: Mapping[str, Mapping[str, Any]],
    known: Mapping[str, list[slurm.Job]] | None,
) -> StageStatus:
    """A stage by the job that is at it, or was last.

    Args:
        folder: the stage's.
        state: as the folder has it; set right by what Slurm says.
        jobs: those that were sent for it, by name, in order of work.
        known: what Slurm knows of them; None: it gives no answer.
    """
    own = StageStatus(
        folder.name,
        state,
        elapsed=state.seconds or None,
        attempt=attempts(state),
        progress=read_progress(folder),
    )
    if not jobs:
        return own
    name = job_at_work(folder, jobs, known or {}, state.status == "complete")
    tasks = (known or {}).get(name, [])
    if state.status != "complete":
        state.status = status_of(state.status, tasks)
        state.error = error_of(folder, state, tasks) if state.status == "failed" else state.error
    return replace(
        own,
        job=jobs[name]["id"],
        lost=known is not None and not tasks and state.status in ("pending", "running"),
        going_on=going_on_of(folder, name),
        **(_of_tasks(tasks, jobs[name]["id"], state.status == "complete") if tasks else {}),
    )


def _of_tasks(tasks: Sequence[slurm.Job], job: str, over: bool) -> dict[str, Any]:
    """What Slurm says of a job's tasks; once the stage is complete, its reasons are none."""
    running = [task for task in tasks if task.state == "RUNNING"]
    waiting = [task for task in tasks if task.active and not running]
    shown = running or waiting or [t for t in tasks if t.state != "COMPLETED"] or tasks
    first = shown[0]
    reason = next((task.reason for task in shown if task.reason not in ("", "None")), "")
    nodes = dict.fromkeys(t.nodes for t in shown if t.nodes and t.nodes != "None assigned")
    return {
        "slurm": counted(tasks),
        "reason": "" if over else reason,
        "nodes": ",".join(nodes),
        "elapsed": None if waiting else max(task.elapsed or 0 for task in shown),
        "left": first.left if running and not over else None,
        "begins": first.begins if waiting and first.begins[:1].isdigit() else "",
        "advice": "" if over or running else meaning(first.state, reason, job),
    }


def cancel(run: Path, stage: str | None = None) -> list[str]:
    """End the jobs of a run, or of one stage and all that needs it; returns their names.

    Raises:
        ToolkitError: no such stage, or Slurm refuses or gives no answer.
    """
    stages = read_run(run)
    if stage is not None and stage not in stages:
        raise ToolkitError(unknown("stage", stage, stages), where=str(run))
    chosen: dict[str, Mapping[str, Any]] = {}
    ended: set[str] = set()
    for name, job in active_jobs(run).items():  # in order of work
        if stage in (None, job["stage"]) or ended.intersection(job["dependencies"]):
            chosen[name] = job
            ended |= {name, whole_name(name)}
    slurm.cancel(job["id"] for job in chosen.values())
    return list(chosen)
