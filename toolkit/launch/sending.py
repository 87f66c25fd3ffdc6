"""Sending a run's jobs: all of them, or none."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from toolkit.artifacts import write_json, write_text
from toolkit.errors import ToolkitError
from toolkit.launch import slurm
from toolkit.launch.local import Interrupt
from toolkit.launch.render import render_submit
from toolkit.launch.rendered import RenderedJob
from toolkit.launch.submissions import FOLDER, RECORD, Submission, adopt, note

SUBMIT = "submit.sh"
logger = logging.getLogger(__name__)


def write_scripts(
    folder: Path, jobs: Sequence[RenderedJob], run: Path, known: Mapping[str, str] | None = None
) -> None:
    """Write every job's script into a folder, and ``submit.sh`` where sbatch alone sends them."""
    folder.mkdir(parents=True, exist_ok=True)
    for job in jobs:
        write_text(folder / job.file, job.text)
    if all(job.sender == "sbatch" for job in jobs):  # what submitit sends needs its pickles, too
        write_text(folder / SUBMIT, render_submit(jobs, run, known))
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
    write_scripts(folder, jobs, run, known)
    submission.folder = folder.name
    submission.jobs = [
        {
            "name": job.name,
            "stage": job.stage,
            "file": job.file,
            "dependencies": job.behind,
            "ranks": job.ranks,
            "id": None,
        }
        for job in jobs
    ]
    write_json(folder / RECORD, vars(submission))
    main = threading.current_thread() is threading.main_thread()  # only there are signals heard
    with Interrupt() if main else nullcontext() as stop:
        try:
            _send_all(folder, submission, jobs, dict(known), stop)
        except BaseException as error:
            told = _withdraw(folder, submission)
            if isinstance(error, ToolkitError):
                error.hint = told
            else:
                logger.warning("%s", told)
            raise
    return submission


def _send_all(
    folder: Path,
    submission: Submission,
    jobs: Sequence[RenderedJob],
    ids: dict[str, str],
    stop: Interrupt | None,
) -> None:
    """Send one job after another, and note each id; a wish to stop is heard between two of them."""
    for number, (job, record) in enumerate(zip(jobs, submission.jobs, strict=True), start=1):
        try:
            record["id"] = job.send(ids, str(folder / job.file))
        except ToolkitError as error:
            error.message = f"job {job.name!r} ({number} of {len(jobs)}): {error.message}"
            raise
        ids[job.name] = record["id"]
        note(folder, submission)
        if stop and stop.count:
            raise KeyboardInterrupt


def _withdraw(folder: Path, submission: Submission) -> str:
    """Cancel what was sent; returns what became of it."""
    adopt(
        folder.parent.parent, submission
    )  # sbatch may have been heard, and not have answered in time
    sent = [job["id"] for job in submission.jobs if job["id"] is not None]
    try:
        slurm.cancel(sent)
    except ToolkitError as error:
        write_json(folder / RECORD, vars(submission))
        again = f"toolkit cancel {folder.parent.parent}, when Slurm answers again"
        return f"{len(sent)} jobs may be queued still ({error.message}): {again}"
    submission.withdrawn = True
    write_json(folder / RECORD, vars(submission))
    return f"nothing is queued: the {len(sent)} jobs before it are cancelled"
