"""How a submitted run goes: the stages' own word beside Slurm's, their logs, and ending them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from toolkit.errors import ToolkitError
from toolkit.launch import slurm
from toolkit.launch.local import tail
from toolkit.launch.reasons import KILLED, meaning
from toolkit.launch.run import read_progress
from toolkit.launch.submissions import (
    Submission,
    active_jobs,
    known_jobs,
    read_submissions,
    sent_jobs,
)
from toolkit.pipeline.problems import unknown
from toolkit.pipeline.run import read_run
from toolkit.pipeline.state import StageState, Status, is_locked
from toolkit.worker import ERRORS

CLOCKS = 60.0
"""Seconds by which the clocks of nodes may differ."""


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
    sent = sent_jobs(run)
    known, trouble = known_jobs(sent)
    rows = []
    for name, state in states.items():
        jobs = {n: job for n, job in sent.items() if job["stage"] == name}
        rows.append(_stage_status(run / name, state, jobs, None if trouble else known))
    notes = [_cut_off(run, s) for s in read_submissions(run) if s.cut_off]
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
    """The stage by its first job that is not done, or by its last one."""
    progress = read_progress(folder)
    if not jobs:
        seconds = state.seconds or None
        return StageStatus(
            folder.name, state, elapsed=seconds, attempt=_attempt(state), progress=progress
        )
    open_jobs = [name for name in jobs if not _done((known or {}).get(name, []))]
    name = open_jobs[0] if open_jobs and state.status != "complete" else list(jobs)[-1]
    job, tasks = jobs[name], (known or {}).get(name, [])
    if state.status != "complete":
        state.status = _status(state.status, tasks)
        state.error = _error(folder, state, tasks) if state.status == "failed" else state.error
    return _of_tasks(
        StageStatus(
            folder.name,
            state,
            job=job["id"],
            elapsed=state.seconds or None,
            attempt=_attempt(state),
            progress=progress,
            lost=known is not None and not tasks and state.status in ("pending", "running"),
        ),
        tasks,
    )


def _of_tasks(status: StageStatus, tasks: Sequence[slurm.Job]) -> StageStatus:
    """With what Slurm says of its job."""
    if not tasks:
        return status
    running = [task for task in tasks if task.state == "RUNNING"]
    waiting = [task for task in tasks if task.active]
    bad = [task for task in tasks if task.state != "COMPLETED"]
    shown = running or waiting or bad or tasks
    first = shown[0]
    reason = next((task.reason for task in shown if task.reason not in ("", "None")), "")
    nodes = dict.fromkeys(t.nodes for t in shown if t.nodes and t.nodes != "None assigned")
    elapsed = max((task.elapsed or 0 for task in shown), default=0)
    over = status.state.status == "complete"
    return replace(
        status,
        slurm=_counted(tasks),
        reason="" if over else reason,
        nodes=",".join(nodes),
        elapsed=None if waiting and not running else elapsed,
        left=first.left if running else None,
        begins=first.begins if waiting and not running and first.begins[:1].isdigit() else "",
        advice="" if over or running else meaning(first.state, reason, status.job),
    )


def _attempt(state: StageState) -> int:
    """How often the phase that was begun last was begun."""
    phases = [attempt.get("phase") for attempt in state.attempts]
    return phases.count(phases[-1]) if phases else 0


def _done(tasks: Sequence[slurm.Job]) -> bool:
    return bool(tasks) and all(task.state == "COMPLETED" for task in tasks)


def _counted(tasks: Sequence[slurm.Job]) -> str:
    states = [task.state for task in tasks]
    if len(set(states)) == 1:
        return states[0] if len(states) == 1 else f"{len(states)} {states[0]}"
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def _status(own: Status, tasks: Sequence[slurm.Job]) -> Status:
    """A stage's status by its job's tasks; its own word where Slurm knows nothing of them."""
    if any(task.state == "RUNNING" for task in tasks):
        return "running"
    if any(task.active for task in tasks):
        return "pending"
    if any(task.state.startswith("CANCELLED") for task in tasks):
        return "interrupted"
    if any(task.state != "COMPLETED" for task in tasks):
        return "interrupted" if own == "interrupted" else "failed"
    return own


def _error(folder: Path, state: StageState, tasks: Sequence[slurm.Job]) -> dict[str, Any]:
    """Why a stage failed: Slurm's own doing, the rank that failed first, or the job's log."""
    bad = [task for task in tasks if task.state not in ("COMPLETED", *slurm.ACTIVE)]
    killed = next((task for task in bad if task.state in KILLED), None)
    if killed:
        return {"message": f"Slurm ended it: {killed.state} on {killed.nodes or 'no node'}"}
    found = _rank_errors(folder, state)
    if found:
        return min(found, key=lambda error: float(error["time"]))
    if state.error or not bad:
        return state.error or {"message": "it failed, and left no word"}
    log = folder / "logs" / f"slurm-{bad[0].id}.log"
    said = "".join(f": {line}" for line in tail(log, 1))
    return {"message": f"{bad[0].state} on {bad[0].nodes or 'no node'}{said}"}


def _rank_errors(folder: Path, state: StageState) -> list[dict[str, Any]]:
    """What the ranks of the last attempt left; an older attempt's word is no reason of this one."""
    since = datetime.fromisoformat(state.attempts[-1]["started"]) if state.attempts else None
    found = []
    for path in (folder / ERRORS).glob("rank-*.json"):
        try:
            error = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # being written, or cut short by the end of its node
        if since is None or error["time"] > since.timestamp() - CLOCKS:
            found.append(error)
    return found


def cancel(run: Path, stage: str | None = None) -> list[str]:
    """End the jobs of a run, or of one stage and all that needs it; returns their names.

    Raises:
        ToolkitError: no such stage, or Slurm refuses or gives no answer.
    """
    stages = read_run(run)
    if stage is not None and stage not in stages:
        raise ToolkitError(unknown("stage", stage, stages), where=str(run))
    chosen: dict[str, Mapping[str, Any]] = {}
    for name, job in active_jobs(run).items():  # in order of work
        if stage in (None, job["stage"]) or any(need in chosen for need in job["dependencies"]):
            chosen[name] = job
    slurm.cancel(job["id"] for job in chosen.values())
    return list(chosen)
