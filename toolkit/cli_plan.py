"""``toolkit plan``: what a pipeline's training takes on a cluster, before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from toolkit.errors import ExitCode, ToolkitError
from toolkit.verbs import console, verb

plan = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode="rich")


@plan.command(
    name="plan",
    epilog="Examples: toolkit plan configs/llama-3-8b.yaml --cluster dgx-h100 --tokens 15T  |  "
    "toolkit plan my.yaml --cluster dgx-h100 --gpus 1024 --search  |  "
    "toolkit plan --cluster dgx-h100 --calibrate runs/base  |  "
    "toolkit plan --scaling runs/small runs/middle runs/large",
)
@verb
def plan_command(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="The pipeline file (YAML).")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings that win over the file's."),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(metavar="C", help="A profile: a name of configs/clusters, or a .yaml file."),
    ] = None,
    search: Annotated[
        bool, typer.Option("--search", help="Rank all layouts that are valid and fit.")
    ] = False,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="On so many GPUs; by default what the file asks.")
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(metavar="T", help="For so many tokens: 15T, 300B, 1e12.")
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(metavar="RUN_DIR", help="Fit the constants to a run that was measured."),
    ] = None,
    scaling: Annotated[
        bool,
        typer.Option("--scaling", help="Fit a power law to finished runs: their folders follow."),
    ] = False,
) -> None:
    """Size a training: memory of each rank, speed, days, cost, energy, and better layouts."""
    if scaling:
        _scaling([file, *map(Path, overrides or ())])
        return
    if cluster is None:
        raise ToolkitError("which GPUs? plan needs a cluster", hint="--cluster dgx-h100")
    if calibrate is not None:
        _calibrate(calibrate, cluster)
        return
    if file is None:
        raise ToolkitError("which pipeline? plan needs its file", hint="toolkit plan FILE ...")
    _plan(file, overrides or [], cluster, search=search, gpus=gpus, tokens=tokens)


def _scaling(folders: list[Path | None]) -> None:
    from toolkit.plan.measured import read_measured
    from toolkit.plan.scaling import fit_law
    from toolkit.view_runs import show_scaling

    given = [folder for folder in folders if folder is not None]
    if not given:
        raise ToolkitError("which runs?", hint="toolkit plan --scaling runs/a runs/b runs/c")
    runs = [each.trained for folder in given for each in read_measured(folder)]
    show_scaling(console(), runs, fit_law(runs))


def _calibrate(folder: Path, cluster: str) -> None:
    from toolkit.launch.sizing import cluster_hardware
    from toolkit.plan.measured import calibrate, read_measured
    from toolkit.view_runs import show_calibration

    hardware = cluster_hardware(cluster)[0]
    show_calibration(console(), [calibrate(each, hardware) for each in read_measured(folder)])


def _plan(
    file: Path,
    overrides: list[str],
    cluster: str,
    *,
    search: bool,
    gpus: int | None,
    tokens: str | None,
) -> None:
    from toolkit.launch.sizing import Question, answer
    from toolkit.plan.cost import parse_tokens
    from toolkit.view_plan import show_search, show_sizing

    budget = parse_tokens(tokens) if tokens is not None else None
    question = Question(file, overrides, cluster, gpus=gpus, tokens=budget, search=search)
    terminal: Any = console()
    refused = False
    for number, stage in enumerate(answer(question)):
        if number:
            terminal.print()
        for violation in stage.violations:
            typer.secho(f"! {stage.name}: {violation}", err=True, fg=typer.colors.YELLOW)
        refused = refused or stage.sizing is None
        if stage.sizing is not None:
            show_sizing(terminal, stage.name, stage.sizing)
        if stage.found is not None:
            show_search(terminal, stage.found, stage.hardware, stage.search_seconds)
    if refused:
        raise typer.Exit(ExitCode.USER_ERROR)
