"""Submissions: what was sent to Slurm for a run, and what became of it.

``RUN/slurm/0001/`` holds the scripts of one submission, ``submit.sh``, and ``submission.json`` with
the jobs' ids, written after each job that Slurm took.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.artifacts import now, own_temporary
from toolkit.errors import ToolkitError
from toolkit.launch import slurm
from toolkit.pipeline.source import plain

FOLDER = "slurm"
RECORD = "submission.json"
logger = logging.getLogger(__name__)


@dataclass
class Submission:
    """One ``submission.json``."""

    time: str
    cluster: str
    """The profile, as it was named: a shipped one's name, or an absolute path."""
    file: str
    """The pipeline file."""
    overrides: list[str]
    only: list[str]
    cwd: str
    """The folder it was submitted in: relative paths of overrides begin there."""
    code: dict[str, Any] | None
    jobs: list[dict[str, Any]] = field(default_factory=list)
    """In order of work: name, stage, file, dependencies, ranks, id (None: not sent)."""
    folder: str = ""
    """Its folder's name: 0001."""
    changes: str = ""
    """What it has that the last one of the run had not."""
    withdrawn: bool = False
    """Whether it was taken back, because Slurm refused one of its jobs."""

    @property
    def cut_off(self) -> bool:
        """Whether it has jobs that were not sent, or whose ids were not noted."""
        return not self.withdrawn and any(job["id"] is None for job in self.jobs)


def read_submissions(run: Path) -> list[Submission]:
    """Every submission of a run, oldest first.

    Raises:
        ToolkitError: a record can't be read.
    """
    found = []
    for path in sorted((run / FOLDER).glob(f"*/{RECORD}")):
        try:
            found.append(Submission(**json.loads(path.read_text(encoding="utf-8"))))
        except (ValueError, TypeError) as error:
            raise ToolkitError(f"not a readable submission: {error}", where=str(path)) from error
    return found


def sent_jobs(run: Path) -> dict[str, dict[str, Any]]:
    """The last job of each name that Slurm took for a run."""
    return last_jobs(adopted(run))


def last_jobs(submissions: Sequence[Submission]) -> dict[str, dict[str, Any]]:
    """The last job of each name in submissions, oldest first, that Slurm took."""
    found: dict[str, dict[str, Any]] = {}
    for submission in submissions:
        if not submission.withdrawn:
            found |= {job["name"]: job for job in submission.jobs if job["id"] is not None}
    return found


def adopted(run: Path, *, keep: bool = False) -> list[Submission]:
    """Every submission of a run, with the ids of jobs that Slurm took unheard.

    Whoever sent them was killed before it could note them.

    Args:
        run: the run's folder.
        keep: note the ids; the run must be locked.
    """
    found = read_submissions(run)
    for submission in found:
        if submission.cut_off and adopt(run, submission) and keep:
            note(run / FOLDER / submission.folder, submission)
    return found


def adopt(run: Path, submission: Submission) -> bool:
    """Fill in the ids of jobs that Slurm has and nobody noted; whether there are any.

    They have the names of jobs without an id, were sent from the run's folder, and have ids that
    no submission has.
    """
    if not slurm.here():
        return False
    try:
        queued = slurm.queued_scripts()
    except ToolkitError as error:
        logger.warning("%s: jobs whose ids were not noted are not seen", error.message)
        return False
    noted = {job["id"] for s in read_submissions(run) for job in s.jobs}
    folder = run.resolve()
    ours = {
        name: number
        for number, name, script in queued
        if number not in noted and Path(script).is_relative_to(folder / FOLDER)
    }
    found = False
    for job in submission.jobs:
        number = ours.get(f"{folder.name}.{job['name']}")
        if job["id"] is None and number is not None:
            job["id"], found = number, True
    return found


def known_jobs(
    sent: Mapping[str, Mapping[str, Any]],
) -> tuple[dict[str, list[slurm.Job]], str | None]:
    """What Slurm knows of sent jobs, by name, and why squeue didn't answer, if it didn't.

    A job of another name is not ours: ids begin anew where a cluster is set up again.
    """
    known, trouble = slurm.look([job["id"] for job in sent.values()])
    return {
        name: [k for k in known[job["id"]] if not k.name or k.name.endswith(f".{name}")]
        for name, job in sent.items()
    }, trouble


def active_jobs(run: Path) -> dict[str, dict[str, Any]]:
    """The jobs of a run that Slurm still has: waiting or running; by name.

    Raises:
        ToolkitError: squeue gives no answer.
    """
    sent = sent_jobs(run)
    known, trouble = known_jobs(sent)
    if trouble:
        raise ToolkitError(trouble, hint="is the controller up? scontrol ping")
    return {name: job for name, job in sent.items() if any(k.active for k in known[name])}


def busy(folder: Path, under_way: Mapping[str, Mapping[str, Any]]) -> ToolkitError:
    """What is said of a run whose jobs Slurm still has."""
    shown = ", ".join(f"{name} ({job['id']})" for name, job in under_way.items())
    return ToolkitError(
        f"this run has jobs under way: {shown}",
        where=str(folder),
        hint=f"toolkit resubmit {folder} adds what is missing; toolkit cancel {folder} ends them",
    )


def refuse_under_way(run: Path) -> None:
    """Leave a run alone that Slurm works on; without Slurm's commands here nothing is known of it.

    Raises:
        ToolkitError: Slurm has jobs of this run.
    """
    under_way = active_jobs(run) if slurm.here() else {}
    if under_way:
        raise busy(run, under_way)


def last_scripts(run: Path) -> dict[str, str]:
    """The last text of each script that was submitted for a run, by file name."""
    found: dict[str, str] = {}
    for submission in read_submissions(run):
        folder = run / FOLDER / submission.folder
        if submission.withdrawn:
            continue
        found |= {p.name: p.read_text(encoding="utf-8") for p in folder.glob("*.sh")}
    return found


def begin(cluster: str, file: Path, overrides: Sequence[str], only: Sequence[str]) -> Submission:
    """The record of a submission that is about to be sent."""
    named = str(plain(Path(cluster))) if cluster.endswith((".yaml", ".yml")) else cluster
    return Submission(
        now(), named, str(plain(file)), list(overrides), list(only), str(Path.cwd()), None
    )


def note(folder: Path, submission: Submission) -> None:
    """Write the record by one rename, but don't wait for the disk: Slurm has the jobs, too."""
    temporary = own_temporary(folder / RECORD)
    temporary.write_text(json.dumps(vars(submission)), encoding="utf-8")
    temporary.replace(folder / RECORD)
