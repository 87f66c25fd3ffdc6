"""The verbs that look at machines: at nodes, as jobs do before they work, and at this one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli.verbs import console, verb

machine = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode="rich")


@machine.command(
    name="preflight",
    epilog="Examples: toolkit preflight --run-root /scratch/runs  |  "
    "toolkit preflight --cluster dgx-h100 --nodes 4  |  "
    "in an allocation: srun toolkit preflight --run-root /scratch/runs\n\n"
    "Exit codes: 0 fit, 2 a mistake or what no node is to blame for, 86 a node is not fit.",
)
@verb
def look(
    run_root: Annotated[
        Path | None,
        typer.Option(help="A folder on the file system of the runs; by default the current one."),
    ] = None,
    ranks: Annotated[
        int | None, typer.Option(min=1, help="On this machine; by default one for each GPU, or 2.")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(metavar="C", help="Send it to the cluster of this profile.")
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="How many nodes of the cluster.")] = 2,
    min_busbw_within: Annotated[
        float | None, typer.Option(min=0.0, help="GB/s of an all-reduce within a node.")
    ] = None,
    min_busbw_across: Annotated[
        float | None, typer.Option(min=0.0, help="GB/s of an all-reduce across nodes.")
    ] = None,
) -> None:
    """Look at nodes before work: GPUs, versions, disk, clocks, and the way between them."""
    import os

    from toolkit.launch import preflight_by_hand
    from toolkit.launch.preflight_table import preflight_table
    from toolkit.preflight.config import Preflight

    wanted = {"min_busbw_within": min_busbw_within, "min_busbw_across": min_busbw_across}
    floors = {name: value for name, value in wanted.items() if value is not None}
    if cluster is not None:
        found = preflight_by_hand.on_cluster(cluster, nodes, run_root, floors, _sent)
    else:
        settings = Preflight.model_validate(floors)
        root = run_root or Path.cwd()
        in_srun = int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_STEP_ID" in os.environ
        if in_srun and ranks is None:
            outcome = preflight_by_hand.under_srun(root, settings)
            if outcome is None:
                return
            found = outcome
        else:
            found = preflight_by_hand.here(root, ranks, settings)
    console().print(preflight_table(found.summary))
    if found.code:
        raise typer.Exit(found.code)


def _sent(number: str, log: Path) -> None:
    typer.echo(f"job {number} waits or runs; its log: {log}", err=True)


@machine.command(epilog="Example: toolkit doctor --json")
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
