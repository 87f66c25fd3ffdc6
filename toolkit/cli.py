"""The command line: verbs, and nothing but verbs. Heavy imports are inside them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from toolkit.cli_cluster import cluster
from toolkit.cli_data import data
from toolkit.cli_plan import plan
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
        show_plan(console(), plan_stages(load_checked(file, overrides or ())))
        return
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
    from toolkit.pipeline.run import make_folder, plan_run, write_run
    from toolkit.pipeline.state import locked
    from toolkit.plan.stages import load_checked
    from toolkit.view import RunView

    loaded = load_checked(file, overrides or ())
    folder = make_folder(run_dir or Path("runs") / loaded.pipeline.name)
    terminal = console()
    with locked(folder, "run"):
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
) -> None:
    """Print the state of every stage of a run, here or on a cluster."""
    import time

    from rich.live import Live

    from toolkit.launch.show import run_table

    table, ended = run_table(run_dir)
    if not watch:
        console().print(table)
        return
    with Live(table, console=console(), auto_refresh=False) as live:
        while not ended:
            time.sleep(3)
            table, ended = run_table(run_dir)
            live.update(table, refresh=True)


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


@app.command(epilog="Example: toolkit schema > toolkit.schema.json")
@verb
def schema() -> None:
    """Print the JSON schema of pipeline files, for editors."""
    import json

    from toolkit.pipeline.schema import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


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
