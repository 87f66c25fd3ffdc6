"""What the terminal shows of jobs on a cluster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from toolkit import __version__
from toolkit.launch.named import named
from toolkit.launch.watching import RunStatus, StageStatus, look_at
from toolkit.tracking.identity import links
from toolkit.view.run import MARKS, short, status_table

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
        console.print(f"code: toolkit {__version__}, as the nodes or their image have it installed")
        return
    changed = ["uncommitted changes"] if code["changed"] else []
    if code["untracked"]:
        count = len(code["untracked"])
        files = "an untracked file" if count == 1 else f"{count} untracked files"
        changed.append(f"{files} ({named(code['untracked'])})")
    with_changes = f", with {' and '.join(changed)}" if changed else ""
    text = f"code: commit {code['commit'][:12]}{with_changes}; copied into the run"
    console.print(text, soft_wrap=True)


def run_view(run: Path) -> tuple[RenderableType, RunStatus]:
    """The state of a run's stages for the terminal, and as it is."""
    found = look_at(run)
    if found.sent:
        return ClusterView(run, found), found
    states = {row.name: row.state for row in found.stages}
    return status_table(states, {row.name: row.progress for row in found.stages}), found


HEADS = ("stage", "state", "job", "attempt", "elapsed", "left", "step", "loss")
SPARE = 2
"""How many of the last columns move to the line below where the terminal is narrow."""
INDENT = 3


class ClusterView:
    """The state of a submitted run's stages: a line each, and below it what needs more room.

    Nothing is cut off, and no word broken, from 80 columns on.
    """

    def __init__(self, run: Path, found: RunStatus) -> None:
        self._run, self._found = run, found

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines; their width is the terminal's of this moment."""
        rows = self._found.stages
        cells = [HEADS, *(_cells(row) for row in rows)]
        narrow = INDENT + len("  ".join(_padded(HEADS, _widths(cells)))) > options.max_width
        if narrow:
            cells = [line[:-SPARE] for line in cells]
        widths = _widths(cells)
        yield Text(" " * INDENT + "  ".join(_padded(cells[0], widths)).rstrip(), style="bold")
        told: set[str] = set()  # what is true of many stages is said once
        for row, line in zip(rows, cells[1:], strict=True):
            text = "  ".join(_padded(line, widths))
            first, more = _where(row, narrow), [x for x in _why(row) if x not in told]
            told.update(more)
            if first and INDENT + len(text) + 2 + len(first) <= options.max_width:
                text, first = f"{text}  {first}", ""
            yield Text.from_markup(f"{MARKS[row.state.status]}  {escape(text.rstrip())}")
            if row.state.status == "complete":
                continue  # where it was is told if there is room
            pages = links(self._run / row.name).values() if row.state.status != "pending" else ()
            for extra in filter(None, (first, *more, *pages)):
                yield Padding(Text(extra), (0, 0, 0, INDENT))
        for note in (*self._found.notes, *_next(self._run, rows)):
            last = Text.from_markup(f"[yellow]![/]  {escape(note)}")
            last.no_wrap, last.overflow = True, "ignore"  # a command is to be copied whole
            yield last


def _widths(cells: Sequence[Sequence[str]]) -> list[int]:
    """Of each column; 0 where no stage has anything to say in it."""
    columns = list(zip(*cells, strict=True))
    return [max(map(len, column)) if any(column[1:]) else 0 for column in columns]


def _padded(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True) if width]


def _cells(row: StageStatus) -> tuple[str, ...]:
    return (
        row.name,
        row.state.status,
        row.job,
        str(row.attempt or ""),
        "" if row.elapsed is None else clock(row.elapsed),
        "" if row.left is None else clock(row.left),
        _step(row),
        _loss(row),
    )


def _step(row: StageStatus) -> str:
    """``30/60``; of a stage that counts no iterations, while it runs: ``57.2/250 MB``."""
    told = row.progress
    if not told or row.state.status == "pending":
        return ""
    if told["unit"] == "iterations":
        return f"{told['done']:g}" + (f"/{told['total']:g}" if told["total"] else "")
    if row.state.status != "running":
        return ""
    total = f"/{told['total']:,.4g}" if told["total"] else ""
    return f"{told['done']:,.4g}{total} {told['unit']}".rstrip()


def _loss(row: StageStatus) -> str:
    loss = (row.progress or {}).get("shown", {}).get("loss")
    return f"{loss:.4g}" if isinstance(loss, float) and row.state.status != "pending" else ""


def _where(row: StageStatus, narrow: bool) -> str:
    """How fast a stage goes, where it is, and what it waits for."""
    step, loss = _step(row), _loss(row)
    parts = [step and f"step {step}", loss and f"loss {loss}"] if narrow else []
    told = row.progress or {}
    if row.state.status == "running" and told.get("rate"):
        parts.append(f"{short(told['rate'])}/s")
        to_go = told.get("seconds_left")
        parts.append(f"{clock(to_go)} to go" if to_go else "")
    plain = row.slurm in ("RUNNING", "COMPLETED") or row.state.status == "complete"
    if row.slurm and not plain:
        parts.append(row.slurm + (f" ({row.reason})" if row.reason else ""))
    parts.append("unknown to Slurm" if row.lost else "")
    going = row.going_on
    parts.append(f"link {going.link} of {going.links}" if going and going.links > 1 else "")
    parts.append(f"on {row.nodes}" if row.nodes else "")
    parts.append(f"begins {row.begins.replace('T', ' ')}" if row.begins else "")
    return ", ".join(filter(None, parts))


def _why(row: StageStatus) -> list[str]:
    """Why a stage failed or waits, how it went on, and what to do about it."""
    if row.state.status == "complete":
        return []
    error = row.state.error or {}
    lines = []
    if row.state.status == "failed":
        where = f"{error['where']}: " if error.get("where") else ""
        lines.append(where + str(error.get("message", "")).splitlines()[0])
        lines += [error["hint"]] if error.get("hint") else []
    if row.going_on and row.going_on.reason:
        lines.append(row.going_on.reason)
    lines += [f"unfit: {bad['node']} ({bad['reason']})" for bad in row.state.unfit_nodes]
    return [*lines, row.advice] if row.advice else lines


def _next(run: Path, rows: Sequence[StageStatus]) -> Iterator[str]:
    """The commands that help a run on."""
    failed = [row.name for row in rows if row.state.status == "failed"]
    if failed and any((run / failed[0] / "logs").glob("*.log")):
        yield f"why {failed[0]} failed: toolkit logs {run} {failed[0]}"
    lost = [row.name for row in rows if row.lost]
    if lost:
        yield f"neither squeue nor sacct knows the jobs of {named(lost)}: they ended unseen"
    if lost or any(row.job and row.state.status in ("failed", "interrupted") for row in rows):
        yield f"to go on from what was saved: toolkit resubmit {run}"


def clock(seconds: float) -> str:
    """Seconds as Slurm writes them: ``0:18``, ``1:02:03``, ``2-04:00:00``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}-{hours:02}:{minutes:02}:{rest:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
