"""Running a pipeline on a cluster: from the two files to rendered jobs, and to Slurm."""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.errors import ConfigError, ToolkitError
from toolkit.launch import slurm, with_submitit
from toolkit.launch.check import (
    hidden_warnings,
    load_for,
    mount_warnings,
    place_problems,
    refusals,
    tracking_warnings,
)
from toolkit.launch.cluster import Cluster, load_cluster
from toolkit.launch.code import Code, find_code
from toolkit.launch.difference import changes
from toolkit.launch.going_on import GOING_ON
from toolkit.launch.render import Target, render_job
from toolkit.launch.rendered import RenderedJob, whole_name
from toolkit.launch.sending import send
from toolkit.launch.sizing import memory_warnings
from toolkit.launch.spec import LaunchSpec, run_specs
from toolkit.launch.submissions import (
    Submission,
    active_jobs,
    adopted,
    begin,
    busy,
    read_submissions,
)
from toolkit.pipeline.loading import Loaded
from toolkit.pipeline.run import Run, fresh_tasks, make_folder, plan_run, write_run
from toolkit.pipeline.state import locked
from toolkit.share import share
from toolkit.tracking import PROGRESS

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What is asked for: a pipeline on a cluster."""

    file: Path
    cluster: str
    """A shipped profile's name, or a path."""
    overrides: Sequence[str] = ()
    only: Sequence[str] = ()
    run_dir: Path | None = None
    """By default the pipeline's name in the profile's ``run_root``."""


@dataclass(frozen=True)
class Prepared:
    """All that would be sent, and nothing done yet."""

    loaded: Loaded
    cluster: Cluster
    run: Run
    code: Code | None
    jobs: list[RenderedJob]
    waited_for: Mapping[str, str] = field(default_factory=dict)
    """The ids of jobs under way that some of ``jobs`` wait for, by name."""
    notes: Sequence[str] = ()
    """What may be wrong, and can't be known here."""


def load(request: Request, *, here: bool = True) -> tuple[Loaded, Cluster, Path, list[str]]:
    """The pipeline and the profile, checked against each other, the run's folder, and notes.

    Args:
        request: what is asked for.
        here: whether jobs are sent from this machine: what they need and is not here is a mistake
            then, and else a note.

    Raises:
        ConfigError: with every mistake of the two.
    """
    cluster, source = load_cluster(request.cluster)
    loaded = load_for(request.file, request.overrides, cluster, source, here=here)
    folder = request.run_dir or cluster.root() / loaded.pipeline.name
    notes = [] if here else [str(problem) for problem in place_problems(cluster, source)]
    return loaded, cluster, folder.resolve(), notes


def prepare(
    request: Request,
    *,
    fresh: bool = False,
    under_way: Mapping[str, Mapping[str, Any]] | None = None,
    here: bool = True,
) -> Prepared:
    """Render every job that the run needs; nothing is written, but for what ``fresh`` moves.

    Args:
        request: what is asked for.
        fresh: as ``toolkit.pipeline.run.plan_run`` takes it.
        under_way: jobs of earlier submissions that Slurm still has, by name: their stages are
            left to them.
        here: as ``load`` takes it.
    """
    loaded, cluster, folder, notes = load(request, here=here)
    run = plan_run(loaded, folder, only=request.only, fresh=fresh)
    code = find_code(share("toolkit").parent)
    packed = code.folder(folder) if code else None
    target = Target(cluster, request.cluster, folder.name, packed)
    last = {str(job["stage"]): whole_name(name) for name, job in (under_way or {}).items()}
    specs = run_specs(run, loaded.graph.needs, python_of(cluster), last, cluster.chain)
    ids = {name: str(job["id"]) for name, job in (under_way or {}).items()}
    notes += _notes(cluster, run, loaded)
    return Prepared(loaded, cluster, run, code, [render(s, target) for s in specs], ids, notes)


def check_on_cluster(request: Request) -> tuple[Loaded, list[str]]:
    """The pipeline, checked for a cluster and by Slurm's own test where it is; and warnings.

    Raises:
        ConfigError: with every mistake.
    """
    loaded, cluster, folder, notes = load(request, here=slurm.here())
    target = Target(cluster, request.cluster, folder.name)
    run = Run(folder, tuple(fresh_tasks(loaded, folder)))
    specs = run_specs(run, loaded.graph.needs, python_of(cluster), chain=cluster.chain)
    refused = refusals([render(spec, target) for spec in specs])
    unasked = [problem.message for problem in refused if slurm.unreachable(problem.message)]
    if len(refused) > len(unasked):
        raise ConfigError(refused)
    notes += _notes(cluster, run, loaded) + memory_warnings(loaded, cluster)
    if not slurm.here():
        notes.append("no sbatch here: Slurm itself was not asked")
    notes += [f"Slurm itself was not asked: {message}" for message in unasked]
    return loaded, notes


def _notes(cluster: Cluster, run: Run, loaded: Loaded) -> list[str]:
    tracked = tracking_warnings(cluster, loaded.pipeline.tracking)
    return [*mount_warnings(cluster), *hidden_warnings(cluster, run), *tracked]


def render(spec: LaunchSpec, target: Target) -> RenderedJob:
    """One job, as the profile has it sent."""
    by_submitit = target.cluster.submit_with == "submitit"
    return with_submitit.render_job(spec, target) if by_submitit else render_job(spec, target)


def python_of(cluster: Cluster) -> str:
    """The interpreter where the jobs run."""
    inside = "python3" if cluster.container.runtime != "none" else sys.executable
    return cluster.python or inside


def submit(request: Request, *, fresh: bool = False, again: bool = False) -> Submission | None:
    """Check, and send every job that the run needs to Slurm: all of them, or none.

    Args:
        request: what is asked for.
        fresh: move aside what was made with other settings.
        again: leave stages that have jobs under way to them; otherwise such a run is refused.

    Returns:
        What was sent; None where every stage is complete, or under way.

    Raises:
        ConfigError: with every mistake that can be found without Slurm.
        ToolkitError: the run has jobs under way, or Slurm refuses one of these.
    """
    folder = make_folder(load(request)[2])
    with locked(folder, "run"):
        adopted(folder, keep=True)
        under_way = active_jobs(folder)
        if under_way and not again:
            raise busy(folder, under_way)
        prepared = prepare(request, fresh=fresh, under_way=under_way)
        if not prepared.jobs:
            return None
        if not slurm.here():
            slurm.call(["sbatch", "--version"])  # says what is missing
        refused = refusals(prepared.jobs)
        if refused:
            raise ConfigError(refused)
        for note in prepared.notes:
            logger.warning("%s", note)
        _lay_out(prepared)
        submission = begin(request.cluster, request.file, request.overrides, request.only)
        submission.code = prepared.code.record() if prepared.code else None
        submission.changes = changes(folder, prepared.jobs, prepared.code)
        return send(folder, submission, prepared.jobs, prepared.waited_for)


def _lay_out(prepared: Prepared) -> None:
    """Write what the jobs find: the pipeline, the stages' files, the folders of their logs."""
    write_run(prepared.loaded, prepared.run)
    if prepared.code is not None:
        prepared.code.pack(prepared.run.folder)
    stages = {job.stage for job in prepared.jobs}
    for task in prepared.run.tasks:
        if task.name in stages:
            (task.folder / "logs").mkdir(parents=True, exist_ok=True)
            (task.folder / PROGRESS).unlink(missing_ok=True)
            shutil.rmtree(task.folder / GOING_ON, ignore_errors=True)
            task.file.write(task.folder)


def resubmit(run: Path, *, fresh: bool = False) -> Submission | None:
    """Send again what failed or is missing of all that was submitted for a run, and nothing else.

    The pipeline, the profile and the overrides are those of its last submission.

    Args:
        run: its folder.
        fresh: move aside what was made, or begun, with other settings or other inputs.

    Raises:
        ToolkitError: nothing was submitted for this run, or its overrides' paths begin in a folder
            that is not here.
    """
    found = [s for s in read_submissions(run) if not s.withdrawn]
    if not found:
        hint = "toolkit submit FILE --cluster C sends one"
        raise ToolkitError("nothing was submitted for this run", where=str(run), hint=hint)
    last = found[-1]
    folder = run.resolve()
    whole = any(not submission.only for submission in found)
    only = [] if whole else list(dict.fromkeys(name for s in found for name in s.only))
    request = Request(Path(last.file), last.cluster, last.overrides, only, folder)
    begun = Path(last.cwd)  # relative paths of overrides begin there, and so may the file's
    if not begun.is_dir() and last.overrides:
        message = f"it was submitted in {begun}, which is not here, with {' '.join(last.overrides)}"
        hint = f"toolkit submit {last.file} --cluster {last.cluster} --run-dir {folder} ..."
        raise ToolkitError(message, where=str(run), hint=hint)
    with contextlib.chdir(begun if begun.is_dir() else "."):
        return submit(request, fresh=fresh, again=True)
