"""Submissions: what was sent to Slurm for a run, and what became of it.

``RUN/slurm/0001/`` holds the scripts of one submission, ``submit.sh``, and ``submission.json`` with
the jobs' ids, written after each job that Slurm took.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from toolkit.artifacts import now, write_json, write_text
from toolkit.errors import ToolkitError
from toolkit.launch import slurm
from toolkit.launch.render import RenderedJob, render_submit

FOLDER = "slurm"
RECORD = "submission.json"
SUBMIT = "submit.sh"


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
    withdrawn: bool = False
    """Whether it was taken back, because Slurm refused one of its jobs."""


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
    found: dict[str, dict[str, Any]] = {}
    for submission in read_submissions(run):
        if not submission.withdrawn:
            found |= {job["name"]: job for job in submission.jobs if job["id"] is not None}
    return found


def active_jobs(run: Path) -> dict[str, dict[str, Any]]:
    """The jobs of a run that Slurm still has: waiting or running; by name."""
    sent = sent_jobs(run)
    if not sent:
        return {}
    known = slurm.jobs([job["id"] for job in sent.values()])
    return {n: job for n, job in sent.items() if any(k.active for k in known[job["id"]])}


def last_scripts(run: Path) -> dict[str, str]:
    """The last text of each script that was submitted for a run, by file name."""
    found: dict[str, str] = {}
    for submission in read_submissions(run):
        folder = run / FOLDER / submission.folder
        found |= {p.name: p.read_text(encoding="utf-8") for p in folder.glob("*.sh")}
    return found


def difference(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """What differs between two texts of the same scripts, as a unified diff."""
    lines: list[str] = []
    for name in after:
        if name in before and name != SUBMIT:
            old, new = before[name].splitlines(), after[name].splitlines()
            lines += difflib.unified_diff(old, new, f"last/{name}", name, n=2, lineterm="")
    return "\n".join(lines)


def write_scripts(folder: Path, jobs: Sequence[RenderedJob], run: str) -> None:
    """Write every job's script and ``submit.sh`` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {job.file: job.text for job in jobs} | {SUBMIT: render_submit(jobs, run)}
    for name, text in texts.items():
        write_text(folder / name, text)
    (folder / SUBMIT).chmod(0o755)


def new_folder(run: Path) -> Path:
    """A new folder for the next submission: ``slurm/0003``."""
    numbers = [int(p.name) for p in (run / FOLDER).glob("[0-9]*") if p.name.isdigit()]
    folder = run / FOLDER / f"{max(numbers, default=0) + 1:04}"
    folder.mkdir(parents=True)
    return folder


def send(
    run: Path,
    submission: Submission,
    jobs: Sequence[RenderedJob],
    known: Mapping[str, str],
) -> Submission:
    """Submit all jobs, or none: where Slurm refuses one, those before it are cancelled.

    Args:
        run: the run's folder.
        submission: without jobs.
        jobs: in order of work.
        known: the ids of jobs that were submitted earlier, and that these may wait for.

    Raises:
        ToolkitError: Slurm refused a job; nothing is queued.
    """
    folder = new_folder(run)
    write_scripts(folder, jobs, run.name)
    submission.folder = folder.name
    submission.jobs = [
        {
            "name": job.name,
            "stage": job.stage,
            "file": job.file,
            "dependencies": list(job.dependencies),
            "ranks": job.ranks,
            "id": None,
        }
        for job in jobs
    ]
    ids = dict(known)
    write_json(folder / RECORD, asdict(submission))
    for number, (job, record) in enumerate(zip(jobs, submission.jobs, strict=True), start=1):
        try:
            ids[job.name] = record["id"] = slurm.submit(job.command(ids, str(folder / job.file)))
            write_json(folder / RECORD, asdict(submission))
        except BaseException as error:
            _withdraw(folder, submission)
            if isinstance(error, ToolkitError):
                error.message = f"job {job.name!r} ({number} of {len(jobs)}): {error.message}"
                error.hint = f"nothing is queued: the {number - 1} jobs before it are cancelled"
            raise
    return submission


def _withdraw(folder: Path, submission: Submission) -> None:
    slurm.cancel(job["id"] for job in submission.jobs if job["id"] is not None)
    submission.withdrawn = True
    write_json(folder / RECORD, asdict(submission))


def begin(cluster: str, file: Path, overrides: Sequence[str], only: Sequence[str]) -> Submission:
    """The record of a submission that is about to be sent."""
    named = str(Path(cluster).resolve()) if cluster.endswith((".yaml", ".yml")) else cluster
    return Submission(
        now(), named, str(file.resolve()), list(overrides), list(only), str(Path.cwd()), None
    )
