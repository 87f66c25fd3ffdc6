"""The verbs of pipeline files: check one, run it here; and the schema of what is written."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from toolkit.cli.verbs import console, verb
from toolkit.errors import ExitCode

pipelines = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode="rich")

EXIT_CODES = (
    "Exit codes: 0 done, 1 a stage failed, 2 a mistake in the file or the command, 130 interrupted."
)


PipelineFile = Annotated[Path, typer.Argument(metavar="FILE", help="The pipeline file (YAML).")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Settings that win over the file's: stages.base.train_iters=50",
    ),
]


class SchemaOf(StrEnum):
    """The files that have a schema."""

    PIPELINE = "pipeline"
    CLUSTER = "cluster"


@pipelines.command(
    epilog="Examples: toolkit check configs/mini.yaml stages.base.train_iters=50  |  "
    "toolkit check configs/mini.yaml --cluster dgx-h100"
)
@verb
def check(
    file: PipelineFile,
    overrides: Overrides = None,
    cluster: Annotated[
        str | None,
        typer.Option(metavar="C", help="What the cluster of this profile can't do is found, too."),
    ] = None,
) -> None:
    """Find every mistake in a pipeline file, and print what it would do. Nothing is started."""
    from toolkit.plan.stages import load_checked, plan_stages
    from toolkit.view.run import show_plan

    if cluster is None:
        from toolkit.tracking.config import lacking

        loaded = load_checked(file, overrides or ())
        notes = [lacking(sink) for sink in loaded.pipeline.tracking.missing()]
    else:
        from toolkit.launch.remote import Request, check_on_cluster

        loaded, notes = check_on_cluster(Request(file, cluster, overrides or ()))
    show_plan(console(), plan_stages(loaded))
    for note in notes:
        typer.secho(f"! {note}", err=True, fg=typer.colors.YELLOW)


@pipelines.command(
    epilog="Examples: toolkit run configs/mini.yaml  |  "
    "toolkit run configs/mini.yaml --only base stages.base.lr=1e-3 --fresh\n\n" + EXIT_CODES
)
@verb
def run(
    file: PipelineFile,
    overrides: Overrides = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="STAGE", help="Work on this stage alone; may be given again."),
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="The run's folder; by default runs/NAME.")
    ] = None,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Move aside what was made with other settings, or --only."),
    ] = False,
) -> None:
    """Run a pipeline on this machine; run it again to go on where it stopped."""
    from toolkit.launch.run import execute
    from toolkit.launch.submissions import refuse_under_way
    from toolkit.pipeline.run import make_folder, plan_run, write_run
    from toolkit.pipeline.state import locked
    from toolkit.pipeline.track import refuse_missing
    from toolkit.plan.stages import load_checked
    from toolkit.view.run import RunView

    loaded = load_checked(file, overrides or ())
    refuse_missing(loaded)
    folder = make_folder(run_dir or Path("runs") / loaded.pipeline.name)
    terminal = console()
    with locked(folder, "run"):
        refuse_under_way(folder)
        work = plan_run(loaded, folder, only=only or (), fresh=fresh)
        write_run(loaded, work)
        with RunView(terminal, work.tasks) as view:
            code = execute(work, view)
        _show_results(terminal, folder)
    if code != ExitCode.OK:
        raise typer.Exit(code)


def _show_results(terminal: Any, folder: Path) -> None:
    """The evaluation tables there are, and the report's path."""
    from toolkit.evaluate.table import scores_tables
    from toolkit.report.build import build_report
    from toolkit.view.run import relative

    for table in scores_tables(folder):
        terminal.print()
        terminal.print(table)
    terminal.print(f"\nreport: {relative(build_report(folder))}", soft_wrap=True)


@pipelines.command(
    epilog="Examples: toolkit schema > toolkit.schema.json  |  "
    "toolkit schema cluster > cluster.schema.json"
)
@verb
def schema(
    of: Annotated[
        SchemaOf, typer.Argument(metavar="[pipeline|cluster]", help="What the files describe.")
    ] = SchemaOf.PIPELINE,
) -> None:
    """Print the JSON schema of pipeline files, or of clusters' profiles, for editors."""
    import json

    if of is SchemaOf.PIPELINE:
        from toolkit.pipeline.schema import json_schema as found
    else:
        from toolkit.launch.profile_schema import profile_schema as found
    typer.echo(json.dumps(found(), indent=2))
