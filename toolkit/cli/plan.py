"""``toolkit plan``: what a pipeline's training takes on a cluster, before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from toolkit.cli.verbs import console, verb
from toolkit.errors import ExitCode, ToolkitError

if TYPE_CHECKING:
    from toolkit.launch.sizing import Question

plan = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode="rich")


@plan.command(
    name="plan",
    epilog="Examples: toolkit plan configs/llama-3-8b.yaml --cluster dgx-h100 --tokens 15T  |  "
    "toolkit plan my.yaml --cluster dgx-h100 --gpus 1024 --search  |  "
    "toolkit plan --cluster dgx-h100 --calibrate runs/small runs/large  |  "
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
        list[Path] | None,
        typer.Option(metavar="RUN_DIR...", help="Fit the constants to runs that were measured."),
    ] = None,
    scaling: Annotated[
        bool,
        typer.Option("--scaling", help="Fit a power law to finished runs: their folders follow."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Size a training: memory of each rank, speed, days, cost, energy, and better layouts."""
    if scaling:
        _scaling([file, *map(Path, overrides or ())], as_json)
        return
    if cluster is None:
        raise ToolkitError("which GPUs? plan needs a cluster", hint="--cluster dgx-h100")
    if calibrate:
        _calibrate([*calibrate, file, *map(Path, overrides or ())], cluster, as_json)
        return
    if file is None:
        raise ToolkitError("which pipeline? plan needs its file", hint="toolkit plan FILE ...")
    from toolkit.launch.sizing import Question
    from toolkit.plan.cost import parse_tokens

    budget = parse_tokens(tokens) if tokens is not None else None
    question = Question(file, overrides or [], cluster, gpus=gpus, tokens=budget, search=search)
    refused = _plan_json(question) if as_json else _plan(question)
    if refused:
        raise typer.Exit(ExitCode.USER_ERROR)


def _scaling(folders: list[Path | None], as_json: bool) -> None:
    from toolkit.plan.measured import read_measured
    from toolkit.plan.plain import plain_scaling
    from toolkit.plan.scaling import finite, fit_law
    from toolkit.view.measured import show_scaling

    given = [folder for folder in folders if folder is not None]
    if not given:
        raise ToolkitError("which runs?", hint="toolkit plan --scaling runs/a runs/b runs/c")
    found = [each.trained for folder in given for each in read_measured(folder)]
    runs = finite(found)
    for run in found:
        if run not in runs:
            _warn(f"{run.name}: left out, for its loss is {run.loss}")
    law = fit_law(runs)
    if as_json:
        _print(plain_scaling(runs, law))
        return
    show_scaling(console(), runs, law)


def _calibrate(folders: list[Path | None], cluster: str, as_json: bool) -> None:
    from toolkit.launch.sizing import cluster_hardware
    from toolkit.plan.calibration import calibrate
    from toolkit.plan.measured import read_measured
    from toolkit.plan.plain import plain_calibration
    from toolkit.view.measured import show_calibration

    hardware, profile, _ = cluster_hardware(cluster)
    runs = [each for folder in folders if folder is not None for each in read_measured(folder)]
    on_gpus = [run for run in runs if run.device != "cpu"]
    for run in runs if on_gpus else ():
        if run not in on_gpus:
            _warn(f"{run.trained.name}: left out, for it ran on CPUs")
    found = calibrate(on_gpus or runs, hardware)
    if as_json:
        _print(plain_calibration(found))
        return
    show_calibration(console(), found, profile.planning.model_dump(exclude_defaults=True))


def _plan_json(question: Question) -> bool:
    from toolkit.launch.sizing import answer

    stages = [stage.plain() for stage in answer(question)]
    _print({"file": str(question.file), "cluster": question.cluster, "stages": stages})
    return any("parameters" not in stage for stage in stages)


def _plan(question: Question) -> bool:
    """Print the tables; whether a stage has no layout that works."""
    from toolkit.launch.sizing import answer
    from toolkit.view.plan import show_search, show_sizing

    terminal: Any = console()
    refused = False
    for number, stage in enumerate(answer(question)):
        if number:
            terminal.print()
        for violation in (*stage.violations, *stage.notes):
            _warn(f"{stage.name}: {violation}")
        refused = refused or stage.sizing is None
        if stage.sizing is not None:
            show_sizing(terminal, stage.name, stage.sizing)
            if not (stage.sizing.fits or question.search):
                _warn(f"{stage.name}: does not fit; with --search, plan looks for layouts that do")
        if stage.found is not None:
            show_search(terminal, stage.found, stage.run, stage.hardware, stage.search_seconds)
    if refused and not question.search:
        _warn("with --search, plan looks for layouts that work on as many GPUs")
    return refused


def _warn(text: str) -> None:
    typer.secho(f"! {text}", err=True, fg=typer.colors.YELLOW)


def _print(found: dict[str, Any]) -> None:
    import json

    typer.echo(json.dumps(found, indent=2))
