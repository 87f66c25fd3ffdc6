"""The command line: verbs, and nothing but verbs. Heavy imports are inside them."""

from __future__ import annotations

from typing import Annotated

import typer

from toolkit.cli.cluster import cluster
from toolkit.cli.data import data
from toolkit.cli.machine import machine
from toolkit.cli.pipelines import pipelines
from toolkit.cli.plan import plan
from toolkit.cli.runs import runs

app = typer.Typer(
    name="toolkit",
    help="From raw text to an aligned language model, from one YAML file.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group in (pipelines, plan, cluster, runs, machine):
    app.add_typer(group)
app.add_typer(data, name="data")


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
