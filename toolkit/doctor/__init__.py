"""``toolkit doctor``: what this machine can do, what is wrong with it, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from toolkit.doctor import accelerator, clusters, machine, software
from toolkit.doctor.facts import Torch, torch_facts
from toolkit.doctor.finding import Check, Finding

CHECKS: tuple[Check, ...] = (
    software.check_python,
    software.check_toolkit,
    software.check_torch,
    software.check_megatron_core,
    software.check_training_stack,
    accelerator.check_gpus,
    accelerator.check_transformer_engine,
    accelerator.check_apex,
    accelerator.check_kernels,
    machine.check_cores,
    machine.check_memory,
    machine.check_shared_memory,
    machine.check_disk,
    machine.check_limits,
    clusters.check_slurm,
    clusters.check_kubernetes,
    clusters.check_containers,
    software.check_extras,
)
"""Every check, in the order of the table. Each yields one finding or more."""

STYLES = {"ok": "green", "info": "dim", "warn": "yellow", "fail": "bold red"}


def diagnose() -> list[Finding]:
    """Run every check: some seconds where torch is installed. No check's failure ends it."""
    torch = torch_facts()
    return [finding for check in CHECKS for finding in examine(check, torch)]


def examine(check: Check, torch: Torch) -> list[Finding]:
    """One check's findings; if the check itself breaks, that is the finding."""
    try:
        return list(check(torch))
    except Exception as error:  # noqa: BLE001 - the other checks matter more than this one's bug
        name = check.__name__.removeprefix("check_").replace("_", " ")
        detail = f"the check broke: {type(error).__name__}: {error}"
        return [Finding(name, "fail", detail, "this is a bug of the toolkit: please report it")]


def render(findings: Sequence[Finding]) -> RenderableType:
    """A table for the terminal, with the advice under what it is about."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        style = STYLES[finding.status]
        detail = Text(finding.detail, style="dim" if finding.status == "info" else "")
        if finding.advice:
            detail.append(f"\n-> {finding.advice}", style="cyan")
        table.add_row(Text(finding.status, style=style), Text(finding.name), detail)
    return Group(table, Text(f"\n{summary(findings)}"))


def summary(findings: Sequence[Finding]) -> str:
    """``18 ok, 6 for information, 1 warning, no failure``."""
    counts = {s: sum(f.status == s for f in findings) for s in STYLES}
    warnings = f"{counts['warn']} warning{'' if counts['warn'] == 1 else 's'}"
    failures = f"{counts['fail'] or 'no'} failure{'s' if counts['fail'] > 1 else ''}"
    return f"{counts['ok']} ok, {counts['info']} for information, {warnings}, {failures}"
