"""The command line: verbs, and nothing but verbs. Heavy imports are inside them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from toolkit.cli_cluster import cluster
from toolkit.cli_data import data
from toolkit.cli_plan import plan
from toolkit.cli_preflight import preflight
from toolkit.errors import ExitCode, ToolkitError
from toolkit.verbs import console, verb

app = typer.Typer(
    name="toolkit",
    help="From raw text to an aligned language model, from one YAML file.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data, name="data")
app.add_typer(cluster)
app.add_typer(preflight)
app.add_typer(plan)

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
RunFolder = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run's folder: runs/mini")]


class SchemaOf(StrEnum):
    """The files that have a schema."""

    PIPELINE = "pipeline"
    CLUSTER = "cluster"


@app.command(
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
    from toolkit.view import show_plan

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


@app.command(
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
    from toolkit.view import RunView

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
    from toolkit.view import relative

    for table in scores_tables(folder):
        terminal.print()
        terminal.print(table)
    terminal.print(f"\nreport: {relative(build_report(folder))}", soft_wrap=True)


@app.command(epilog="Examples: toolkit status runs/mini  |  toolkit status runs/mini --watch")
@verb
def status(
    run_dir: RunFolder,
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again every few seconds, until all has ended.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Print the state of every stage of a run, here or on a cluster."""
    import json
    import time

    from rich.live import Live

    from toolkit.launch.show import run_view

    view, found = run_view(run_dir)
    if as_json:
        stages = [row.record() for row in found.stages]
        typer.echo(json.dumps({"stages": stages, "notes": found.notes}, indent=2))
    elif not watch:
        console().print(view, crop=False)
    else:
        with Live(view, console=console(), auto_refresh=False) as live:
            while not found.ended:
                time.sleep(5)
                view, found = run_view(run_dir)
                live.update(view, refresh=True)


@app.command(epilog="Examples: toolkit track runs/mini  |  toolkit track runs/mini base --online")
@verb
def track(
    run_dir: RunFolder,
    stage: Annotated[str | None, typer.Argument(help="This stage alone.")] = None,
    online: Annotated[
        bool, typer.Option("--online", help="To W&B's server what was kept offline, too.")
    ] = False,
) -> None:
    """Send what the trackers lack of a run: after an outage, or from nodes without a network."""
    from toolkit.pipeline.track import PATIENCE, send_again

    most = f"at most {PATIENCE / 60:.0f} minutes a stage; Ctrl-C ends it, and what was sent stays"
    typer.echo(f"sending what is missing ({most})", err=True)
    whole, any_sent = True, False
    for sent in send_again(run_dir, stage, online):
        any_sent = True
        typer.echo(f"{sent.stage}  {sent.sink}  {sent.where}" + ("" if sent.whole else "  FAILED"))
        whole = whole and sent.whole
    if not any_sent:
        typer.echo("nothing to send: no stage with a tracker has ended", err=True)
    if not whole:
        raise typer.Exit(1)


@app.command(epilog="Example: toolkit report runs/mini")
@verb
def report(run_dir: RunFolder) -> None:
    """Write a run's report, one HTML page that needs nothing else, and print its path."""
    from toolkit.pipeline.run import read_run
    from toolkit.report.build import build_report

    read_run(run_dir)
    typer.echo(build_report(run_dir))


@app.command(
    epilog='Example: toolkit generate runs/mini/chat/artifact --chat --prompt "What is a list?"'
)
@verb
def generate(
    model_dir: Annotated[Path, typer.Argument(help="A model or adapter: an artifact's folder.")],
    prompt: Annotated[list[str], typer.Option(help="What to go on from; may be given again.")],
    chat: Annotated[
        bool, typer.Option("--chat/--text", help="Ask as a user would, by the chat template.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 128,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0 always takes the likeliest token.")
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Sample from this share of probability.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Seeds the sampling.")] = 1234,
) -> None:
    """Let a model go on from a prompt."""
    import warnings

    from toolkit.artifacts import MANIFEST, read_artifact

    if not (model_dir / MANIFEST).is_file() and (model_dir / "artifact" / MANIFEST).is_file():
        model_dir = model_dir / "artifact"  # a stage's folder stands for what it made
    made = read_artifact(model_dir).type
    if made not in ("model", "adapter"):
        hint = "an export stage makes a model of it" if made == "checkpoint" else None
        message = f"a {made}, where a model or an adapter was expected"
        raise ToolkitError(message, where=str(model_dir), hint=hint)
    warnings.simplefilter("ignore", FutureWarning)
    from toolkit.evaluate.generate import generate as run_model

    for text in run_model(
        model_dir,
        prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        chat=chat,
    ):
        typer.echo(text)


@app.command(
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


@app.command(epilog="Example: toolkit doctor --json")
@verb
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Look at this machine: what is installed, what will be used, and what to do about the rest."""
    import json
    from dataclasses import asdict

    from toolkit.doctor import diagnose, render

    findings = diagnose()
    if as_json:
        typer.echo(json.dumps([asdict(f) for f in findings], indent=2))
    else:
        console().print(render(findings))
    if any(f.status == "fail" for f in findings):
        raise typer.Exit(1)


def _version(asked: bool) -> None:
    if asked:
        from toolkit import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """From raw text to an aligned language model, from one YAML file."""


def main() -> None:
    """The console command."""
    app()
