"""The verbs for clusters: see what would run there, send it, watch it, end it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from toolkit.cli.verbs import console, verb

cluster = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode="rich")

PipelineFile = Annotated[Path, typer.Argument(metavar="FILE", help="The pipeline file (YAML).")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings that win over the file's."),
]
ClusterName = Annotated[
    str,
    typer.Option(
        "--cluster", metavar="C", help="A profile: a name of configs/clusters, or a .yaml file."
    ),
]
Only = Annotated[
    list[str] | None,
    typer.Option(metavar="STAGE", help="This stage alone; may be given again."),
]
RunDir = Annotated[
    Path | None, typer.Option(help="The run's folder; by default NAME in the profile's run_root.")
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run's folder: runs/mini")]


@cluster.command(
    epilog="Examples: toolkit render configs/mini.yaml --cluster dgx-h100 -o scripts  |  "
    "toolkit render configs/mini.yaml --cluster lab --only base"
)
@verb
def render(
    file: PipelineFile,
    cluster: ClusterName,
    overrides: Overrides = None,
    only: Only = None,
    run_dir: RunDir = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write them here; else they are printed.")
    ] = None,
) -> None:
    """Write the batch scripts and the commands that submit them. Nothing is sent."""
    from toolkit.launch.remote import Request, prepare
    from toolkit.launch.render import render_submit
    from toolkit.launch.sending import write_scripts

    found = prepare(Request(file, cluster, overrides or (), only or (), run_dir), here=False)
    for note in found.notes:
        typer.secho(f"! {note}", err=True, fg=typer.colors.YELLOW)
    by_submitit = any(job.sender == "submitit" for job in found.jobs)
    if output is not None:
        write_scripts(output, found.jobs, found.run.folder)
        more = "; submitit sends them" if by_submitit else " and submit.sh"
        typer.echo(f"{len(found.jobs)} scripts{more}: {output}")
        return
    for job in found.jobs:
        typer.echo(f"{'#' * 20} {job.file}\n{job.text}")
    if not by_submitit:
        typer.echo(f"{'#' * 20} submit.sh\n{render_submit(found.jobs, found.run.folder)}")


@cluster.command(
    epilog="Examples: toolkit submit configs/mini.yaml --cluster lab  |  "
    "toolkit submit configs/mini.yaml --cluster lab --dry-run"
)
@verb
def submit(
    file: PipelineFile,
    cluster: ClusterName,
    overrides: Overrides = None,
    only: Only = None,
    run_dir: RunDir = None,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Move aside what was made with other settings, or --only."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be sent, and send nothing.")
    ] = False,
) -> None:
    """Send a pipeline to Slurm: check it first, then all of its jobs or none."""
    from toolkit.errors import ToolkitError
    from toolkit.launch import remote, slurm

    request = remote.Request(file, cluster, overrides or (), only or (), run_dir)
    if dry_run and fresh:
        raise ToolkitError("--fresh moves folders, and --dry-run changes nothing: give one of them")
    if dry_run:
        _show_dry_run(remote.prepare(request, here=slurm.here()))
        return
    _show_sent(remote.submit(request, fresh=fresh))


def _show_dry_run(prepared: Any) -> None:
    from toolkit.errors import ConfigError
    from toolkit.launch.check import refusals
    from toolkit.launch.difference import changes
    from toolkit.launch.show import show_code, show_jobs

    terminal = console()
    refused = refusals(prepared.jobs)
    if refused:
        raise ConfigError(refused)
    show_jobs(terminal, [(job.name, job.ranks, job.behind, "") for job in prepared.jobs])
    show_code(terminal, prepared.code.record() if prepared.code else None)
    for note in prepared.notes:
        typer.secho(f"! {note}", err=True, fg=typer.colors.YELLOW)
    _show_changes(changes(prepared.run.folder, prepared.jobs, prepared.code))
    typer.echo("\nnothing was sent")


def _show_sent(submission: Any) -> None:
    from toolkit.launch.show import show_code, show_jobs

    if submission is None:
        typer.echo("nothing to send: every stage is complete, or under way")
        return
    rows = [(j["name"], j["ranks"], j["dependencies"], j["id"]) for j in submission.jobs]
    terminal = console()
    show_jobs(terminal, rows)
    show_code(terminal, submission.code)
    _show_changes(submission.changes)


def _show_changes(changes: str) -> None:
    if changes:
        typer.echo(f"\nchanged since the last submission:\n{changes}")


@cluster.command(epilog="Example: toolkit resubmit runs/mini")
@verb
def resubmit(
    run_dir: RunFolder,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Move aside what was begun with other inputs.")
    ] = False,
) -> None:
    """Send again what failed or is missing of a run, and nothing else."""
    from toolkit.launch import remote

    _show_sent(remote.resubmit(run_dir, fresh=fresh))


@cluster.command(
    epilog="Examples: toolkit logs runs/mini base -f  |  toolkit logs runs/mini base --rank 3"
)
@verb
def logs(
    run_dir: RunFolder,
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="A stage of it.")],
    rank: Annotated[int, typer.Option(min=0, help="Whose log.")] = 0,
    job: Annotated[
        bool, typer.Option("--job", help="The job's own log: how it began, and why it ended.")
    ] = False,
    lines: Annotated[int, typer.Option("-n", min=1, help="How many of the last lines.")] = 100,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Wait for it, and go on until the stage ends.")
    ] = False,
) -> None:
    """Print what a rank of a stage has to say."""
    from toolkit.errors import ToolkitError
    from toolkit.launch import logs as found
    from toolkit.launch.local import tail

    ended = found.stage_ended(run_dir, stage)

    def find() -> Path:
        return found.log_of(run_dir, stage, None if job else rank)

    try:
        path = found.appears(find, ended) if follow else find()
    except FileNotFoundError:
        path = None
    if path is None:
        hint = f"toolkit status {run_dir} says what it waits for"
        message = f"stage {stage!r} has written nothing yet"
        raise ToolkitError(message, where=str(run_dir / stage / "logs"), hint=hint)
    if not follow:
        typer.echo("\n".join(tail(path, lines)))
        return
    for text in found.follow(path, ended, lines):
        typer.echo(text, nl=False)


@cluster.command(epilog="Examples: toolkit cancel runs/mini  |  toolkit cancel runs/mini base")
@verb
def cancel(
    run_dir: RunFolder,
    stage: Annotated[
        str | None, typer.Argument(metavar="[STAGE]", help="This stage alone, and what needs it.")
    ] = None,
) -> None:
    """End the jobs of a run that wait or run. What is saved stays, and resubmit goes on from it."""
    from toolkit.launch.watching import cancel as cancel_jobs

    names = cancel_jobs(run_dir, stage)
    typer.echo(f"cancelled: {', '.join(names)}" if names else "nothing waits or runs")
