"""How a submitted run goes: the stages' own word beside Slurm's, their logs, and ending them."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.errors import ToolkitError
from toolkit.launch import slurm
from toolkit.launch.submissions import active_jobs, sent_jobs
from toolkit.pipeline.problems import unknown
from toolkit.pipeline.run import read_run
from toolkit.pipeline.state import StageState, Status
from toolkit.worker import ERRORS

logger = logging.getLogger(__name__)


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
    nodes: str = ""
    left: str = ""
    """Time until the limit."""


def run_status(run: Path) -> list[StageStatus]:
    """Every stage of a run, in the pipeline's order.

    By the run's folder alone where nothing was sent, or Slurm doesn't answer here.

    Raises:
        ToolkitError: the folder is not a run's.
    """
    states = read_run(run)
    sent = sent_jobs(run)
    known: dict[str, list[slurm.Job]] = {}
    try:
        known = slurm.jobs([job["id"] for job in sent.values()])
    except ToolkitError as error:
        logger.warning("%s: what follows is the run folder's word alone", error.message)
    rows = []
    for name, state in states.items():
        jobs = [job for job in sent.values() if job["stage"] == name]
        rows.append(_stage_status(run / name, state, jobs, known))
    return rows


def _stage_status(
    folder: Path,
    state: StageState,
    jobs: Sequence[Mapping[str, Any]],
    known: Mapping[str, list[slurm.Job]],
) -> StageStatus:
    """The stage by its first job that is not done, or by its last one."""
    name = folder.name
    if not jobs:
        return StageStatus(name, state)
    open_jobs = [job for job in jobs if not _done(known.get(job["id"], []))]
    job = open_jobs[0] if open_jobs and state.status != "complete" else jobs[-1]
    tasks = known.get(job["id"], [])
    running = [task for task in tasks if task.state == "RUNNING"]
    shown = running or [task for task in tasks if task.active] or tasks
    if state.status != "complete":
        state.status = _status(state.status, tasks)
        state.error = _error(folder, state, tasks) if state.status == "failed" else state.error
    reason = next((task.reason for task in shown if task.reason not in ("", "None")), "")
    return StageStatus(
        name,
        state,
        job=job["id"],
        slurm=_counted(tasks),
        reason=reason,
        nodes=",".join(
            dict.fromkeys(t.nodes for t in shown if t.nodes and t.nodes != "None assigned")
        ),
        left=shown[0].left if running else "",
    )


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
    """Why a stage failed: the reason of the rank that failed first, or Slurm's."""
    found = []
    for path in (folder / ERRORS).glob("rank-*.json"):
        try:
            found.append(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            continue  # being written, or cut short by the end of its node
    if found:
        first: dict[str, Any] = min(found, key=lambda error: error["time"])
        return first
    bad = next(task for task in tasks if task.state != "COMPLETED")
    return state.error or {"message": f"Slurm says {bad.state} of {bad.id} on {bad.nodes or '-'}"}


def cancel(run: Path, stage: str | None = None) -> list[str]:
    """End the jobs of a run, or of one stage, that wait or run; returns their names.

    Jobs that wait for a cancelled one are cancelled by Slurm (``--kill-on-invalid-dep``).

    Raises:
        ToolkitError: no such stage, or Slurm refuses.
    """
    stages = read_run(run)
    if stage is not None and stage not in stages:
        raise ToolkitError(unknown("stage", stage, stages), where=str(run))
    chosen = {n: j for n, j in active_jobs(run).items() if stage in (None, j["stage"])}
    slurm.cancel(job["id"] for job in chosen.values())
    return list(chosen)


def log_of(run: Path, stage: str, rank: int) -> Path:
    """The log of a stage's rank; where there is none, the newest of its jobs' own.

    Raises:
        ToolkitError: no such stage, or it has written nothing yet.
    """
    stages = read_run(run)
    if stage not in stages:
        raise ToolkitError(unknown("stage", stage, stages), where=str(run))
    logs = run / stage / "logs"
    for path in (logs / f"rank-{rank}.log", logs / f"node-{rank}.log"):
        if path.is_file():
            return path
    ranks = sorted(int(m[1]) for p in logs.glob("*.log") if (m := re.match(r"rank-(\d+)", p.name)))
    if ranks:
        raise ToolkitError(f"no log of rank {rank}; there are {ranks[0]} to {ranks[-1]}")
    jobs = sorted(logs.glob("slurm-*.log"), key=lambda path: path.stat().st_mtime)
    if not jobs:
        hint = f"toolkit status {run} says what it waits for"
        raise ToolkitError(f"stage {stage!r} has written nothing yet", where=str(logs), hint=hint)
    return jobs[-1]


def follow(path: Path, ended: Callable[[], bool], poll: float = 0.5) -> Iterator[str]:
    """What a log holds and gets, until ``ended`` says so, a piece at a time."""
    with path.open(encoding="utf-8", errors="replace") as stream:
        last = False
        looked = time.monotonic()
        while True:
            text = stream.read()
            if text:
                yield text
            elif last:
                return
            if time.monotonic() - looked > 5 * poll:
                last, looked = ended(), time.monotonic()
            time.sleep(0 if text else poll)
