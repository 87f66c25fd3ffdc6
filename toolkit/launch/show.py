"""What the terminal shows of jobs on a cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from toolkit.launch.run import read_progress
from toolkit.launch.watching import StageStatus, run_status
from toolkit.view import MARKS, duration, progress_text, status_table

JobRow = tuple[str, int, Sequence[str], str]
"""A job's name, its ranks, what it waits for, and its id."""


def show_jobs(console: Console, rows: Sequence[JobRow]) -> None:
    """Print jobs in order of work."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("id", "job", "ranks", "after"):
        table.add_column(column)
    for name, ranks, after, number in rows:
        table.add_row(number or "-", name, str(ranks), ", ".join(after) or "[dim]-[/]")
    console.print(table)


def show_code(console: Console, code: Mapping[str, Any] | None) -> None:
    """Print which code the jobs run, and what of it is not committed."""
    if code is None:
        return
    changed = ["uncommitted changes"] if code["changed"] else []
    if code["untracked"]:
        changed.append(f"{len(code['untracked'])} untracked files")
    with_changes = f", with {' and '.join(changed)}" if changed else ""
    console.print(f"code: commit {code['commit'][:12]}{with_changes}; copied into the run")


def run_table(run: Path) -> tuple[Table, bool]:
    """The state of a run's stages as a table, and whether nothing of it waits or runs any more."""
    rows = run_status(run)
    progress = {row.name: read_progress(run / row.name) for row in rows}
    if any(row.job for row in rows):
        going = [row for row in rows if row.job and row.state.status in ("running", "pending")]
        return cluster_table(rows, progress), not going
    states = {row.name: row.state for row in rows}
    return status_table(states, progress), all(s.status != "running" for s in states.values())


def cluster_table(rows: Sequence[StageStatus], progress: Mapping[str, Any]) -> Table:
    """The state of a submitted run's stages as a table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "stage", "state", "job", "Slurm", "nodes", "starts", "time", "left", "now"):
        table.add_column(column)
    for row in rows:
        state = row.state
        table.add_row(
            MARKS[state.status],
            row.name,
            state.status,
            row.job,
            row.slurm + (f" ({row.reason})" if row.reason else ""),
            escape(row.nodes),
            str(len(state.attempts)) if state.attempts else "",
            duration(state.seconds) if state.seconds else "",
            row.left,
            _now(row, progress.get(row.name)),
        )
    return table


def _now(row: StageStatus, progress: Mapping[str, Any] | None) -> str:
    if row.state.status == "failed" and row.state.error:
        where = f"{row.state.error['where']}: " if row.state.error.get("where") else ""
        return escape(where + str(row.state.error["message"]).splitlines()[0])
    return escape(progress_text(progress)) if progress and row.state.status == "running" else ""
