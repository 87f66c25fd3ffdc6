"""Running a pipeline on a cluster: from the two files to rendered jobs, and to Slurm."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.errors import ConfigError, ToolkitError
from toolkit.launch import slurm
from toolkit.launch.check import load_for, mount_warnings, refusals
from toolkit.launch.cluster import Cluster, load_cluster
from toolkit.launch.code import Code, find_code
from toolkit.launch.render import RenderedJob, Target, render_job
from toolkit.launch.sizing import memory_warnings
from toolkit.launch.spec import run_specs
from toolkit.launch.submissions import Submission, active_jobs, begin, read_submissions, send
from toolkit.pipeline.loading import Loaded
from toolkit.pipeline.run import Run, fresh_tasks, make_folder, plan_run, write_run
from toolkit.pipeline.state import locked
from toolkit.share import share
from toolkit.tracking import PROGRESS


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


def load(request: Request) -> tuple[Loaded, Cluster, Path]:
    """The pipeline and the profile, checked against each other, and the run's folder.

    Raises:
        ConfigError: with every mistake of the two.
    """
    cluster, source = load_cluster(request.cluster)
    loaded = load_for(request.file, request.overrides, cluster, source)
    folder = request.run_dir or cluster.root() / loaded.pipeline.name
    return loaded, cluster, folder.resolve()


def prepare(
    request: Request,
    *,
    fresh: bool = False,
    under_way: Mapping[str, Mapping[str, Any]] | None = None,
) -> Prepared:
    """Render every job that the run needs; nothing is written, but for what ``fresh`` moves.

    Args:
        request: what is asked for.
        fresh: as ``toolkit.pipeline.run.plan_run`` takes it.
        under_way: jobs of earlier submissions that Slurm still has, by name: their stages are
            left to them.
    """
    loaded, cluster, folder = load(request)
    run = plan_run(loaded, folder, only=request.only, fresh=fresh)
    code = find_code(share("toolkit").parent)
    packed = code.folder(folder) if code else None
    target = Target(cluster, request.cluster, folder.name, packed)
    last = {str(job["stage"]): name for name, job in (under_way or {}).items()}
    specs = run_specs(run, loaded.graph.needs, python_of(cluster), last)
    ids = {name: str(job["id"]) for name, job in (under_way or {}).items()}
    return Prepared(loaded, cluster, run, code, [render_job(s, target) for s in specs], ids)


def check_on_cluster(request: Request) -> tuple[Loaded, list[str]]:
    """The pipeline, checked for a cluster and by Slurm's own test where it is; and warnings.

    Raises:
        ConfigError: with every mistake.
    """
    loaded, cluster, folder = load(request)
    target = Target(cluster, request.cluster, folder.name)
    run = Run(folder, tuple(fresh_tasks(loaded, folder)))
    specs = run_specs(run, loaded.graph.needs, python_of(cluster))
    refused = refusals([render_job(spec, target) for spec in specs])
    if refused:
        raise ConfigError(refused)
    notes = mount_warnings(cluster) + memory_warnings(loaded, cluster)
    if not slurm.here():
        notes.append("no sbatch here: Slurm itself was not asked")
    return loaded, notes


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
        under_way = active_jobs(folder)
        if under_way and not again:
            raise _busy(folder, under_way)
        prepared = prepare(request, fresh=fresh, under_way=under_way)
        if not prepared.jobs:
            return None
        if not slurm.here():
            slurm.call(["sbatch", "--version"])  # says what is missing
        refused = refusals(prepared.jobs)
        if refused:
            raise ConfigError(refused)
        _lay_out(prepared)
        submission = begin(request.cluster, request.file, request.overrides, request.only)
        submission.code = prepared.code.record() if prepared.code else None
        return send(folder, submission, prepared.jobs, prepared.waited_for)


def _busy(folder: Path, under_way: Mapping[str, Mapping[str, Any]]) -> ToolkitError:
    shown = ", ".join(f"{name} ({job['id']})" for name, job in under_way.items())
    return ToolkitError(
        f"this run has jobs under way: {shown}",
        where=str(folder),
        hint=f"toolkit resubmit {folder} adds what is missing; toolkit cancel {folder} ends them",
    )


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
            task.file.write(task.folder)


def resubmit(run: Path) -> Submission | None:
    """Send again what failed or is missing of a run's last submission, and nothing else.

    Raises:
        ToolkitError: nothing was submitted for this run.
    """
    found = [s for s in read_submissions(run) if not s.withdrawn]
    if not found:
        hint = "toolkit submit FILE --cluster C sends one"
        raise ToolkitError("nothing was submitted for this run", where=str(run), hint=hint)
    last = found[-1]
    folder = run.resolve()
    request = Request(Path(last.file), last.cluster, last.overrides, last.only, folder)
    with contextlib.chdir(last.cwd):  # relative paths of overrides begin there
        return submit(request, again=True)
