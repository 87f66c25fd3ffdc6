"""What a stage's folder and Slurm's word of its jobs come to together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from toolkit.attempt import ERRORS
from toolkit.launch import slurm
from toolkit.launch.going_on import GoingOn, read_going_on
from toolkit.launch.local import tail
from toolkit.launch.reasons import KILLED
from toolkit.launch.rendered import whole_name
from toolkit.pipeline.state import StageState, Status

CLOCKS = 60.0
"""Seconds by which the clocks of nodes may differ."""


def job_at_work(
    folder: Path,
    jobs: Mapping[str, Mapping[str, Any]],
    known: Mapping[str, Sequence[slurm.Job]],
    complete: bool,
) -> str:
    """The name of the job that is at a stage now, or was last.

    Of a stage's jobs, one after another, it is the first that is not done; of a chain's links the
    one that runs or waits first, or the one that noted last how it went on.

    Args:
        folder: the stage's.
        jobs: by name, in order of work; at least one.
        known: what Slurm knows of them, by name.
        complete: whether the stage is: then it was its last job's.
    """
    whole: dict[str, list[str]] = {}
    for name in jobs:
        whole.setdefault(whole_name(name), []).append(name)
    open_jobs = [w for w, links in whole.items() if not any(_done(known.get(n)) for n in links)]
    chosen = open_jobs[0] if open_jobs and not complete else list(whole)[-1]
    links = whole[chosen]
    at_it = [n for n in links if any(task.active for task in known.get(n, ()))]
    record = going_on_of(folder, chosen)
    noted = [n for n in links if record and jobs[n]["id"] == record.job.partition("_")[0]]
    return next(iter(at_it or noted or [n for n in links if known.get(n)][-1:] or links))


def going_on_of(folder: Path, job: str) -> GoingOn | None:
    """What a job noted of how it goes on; of an array, the task that ended for a reason first."""
    name = whole_name(job)
    found = [
        record
        for stem, record in read_going_on(folder).items()
        if stem == name or (stem.startswith(f"{name}-") and stem[len(name) + 1 :].isdigit())
    ]
    return min(found, key=lambda r: (not (r.ended and r.reason), r.time), default=None)


def attempts(state: StageState) -> int:
    """How often the phase that was begun last was begun."""
    phases = [attempt.get("phase") for attempt in state.attempts]
    return phases.count(phases[-1]) if phases else 0


def _done(tasks: Sequence[slurm.Job] | None) -> bool:
    return bool(tasks) and all(task.state == "COMPLETED" for task in tasks or ())


def counted(tasks: Sequence[slurm.Job]) -> str:
    """The state of a job's tasks, with counts where it has several: ``3 COMPLETED, 1 RUNNING``."""
    states = [task.state for task in tasks]
    if len(set(states)) == 1:
        return states[0] if len(states) == 1 else f"{len(states)} {states[0]}"
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def status_of(own: Status, tasks: Sequence[slurm.Job]) -> Status:
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


def error_of(folder: Path, state: StageState, tasks: Sequence[slurm.Job]) -> dict[str, Any]:
    """Why a stage failed: Slurm's own doing, the rank that failed first, or the job's log.

    Returns:
        ``message``, and where they are known ``where`` and ``hint``.
    """
    bad = [task for task in tasks if task.state not in ("COMPLETED", *slurm.ACTIVE)]
    killed = next((task for task in bad if task.state in KILLED), None)
    if killed:
        return {"message": f"Slurm ended it: {killed.state} on {killed.nodes or 'no node'}"}
    found = _rank_errors(folder, state)
    if found:
        return min(found, key=lambda error: float(error["time"]))
    if state.error or not bad:
        return state.error or {"message": "it failed, and left no word"}
    said = "".join(f": {line}" for line in tail(folder / "logs" / f"slurm-{bad[0].id}.log", 1))
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
