"""The verbs of a run's folder, and of what it made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli.verbs import console, verb
from toolkit.errors import ToolkitError

runs = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode="rich")

RunFolder = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run's folder: runs/mini")]


@runs.command(epilog="Examples: toolkit status runs/mini  |  toolkit status runs/mini --watch")
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


@runs.command(epilog="Examples: toolkit track runs/mini  |  toolkit track runs/mini base --online")
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


@runs.command(epilog="Example: toolkit report runs/mini")
@verb
def report(run_dir: RunFolder) -> None:
    """Write a run's report, one HTML page that needs nothing else, and print its path."""
    from toolkit.pipeline.run import read_run
    from toolkit.report.build import build_report

    read_run(run_dir)
    typer.echo(build_report(run_dir))


@runs.command(
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
