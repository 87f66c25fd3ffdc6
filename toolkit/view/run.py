"""What the terminal shows: the plan, a run's progress, and the state of its stages."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.status import Status as Spinner
from rich.table import Table

from toolkit.artifacts import MANIFEST
from toolkit.errors import STOPPED, ExitCode
from toolkit.launch.local import Result, log_path, tail
from toolkit.pipeline.run import Task
from toolkit.pipeline.state import StageState
from toolkit.plan.stages import StagePlan

QUIET_INTERVAL = 30.0
"""Seconds between progress lines where the output is no terminal."""
MARKS = {
    "complete": "[green]✓[/]",
    "failed": "[red]✗[/]",
    "interrupted": "[yellow]■[/]",
    "running": "[cyan]▸[/]",
    "pending": "[dim]·[/]",
}


def show_plan(console: Console, plans: Sequence[StagePlan]) -> None:
    """Print the plan: what each stage takes and makes, on how many ranks, in which layout."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("stage", "kind", "takes", "makes", "ranks"):
        table.add_column(column, justify="right" if column == "ranks" else "left")
    for plan in plans:
        takes = ", ".join(map(escape, plan.takes)) or "[dim]-[/]"
        table.add_row(plan.name, plan.kind, takes, plan.makes, str(plan.ranks))
    console.print(table)
    for plan in plans:
        if plan.detail:
            console.print(f"\n[bold]{plan.name}[/]")
            for name, text in plan.detail.items():
                console.print(f"  {name:<12} {text}")


def status_table(states: Mapping[str, StageState], progress: Mapping[str, Any]) -> Table:
    """The state of a run's stages as a table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "stage", "state", "attempts", "time", "now"):
        table.add_column(column)
    for name, state in states.items():
        now = progress_text(progress[name]) if progress.get(name) else ""
        if state.status == "failed" and state.error:
            where = f"{state.error['where']}: " if state.error.get("where") else ""
            now = escape(where + str(state.error["message"]).splitlines()[0])
        elif state.status != "running":
            now = ""
        table.add_row(
            MARKS[state.status],
            name,
            state.status,
            str(len(state.attempts)) if state.attempts else "",
            duration(state.seconds) if state.seconds else "",
            now,
        )
    return table


def duration(seconds: float) -> str:
    """``4.2 s``, ``3:05``, ``1:02:03`` or ``2 d 04:00``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours:02}:{minutes:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def progress_text(record: Mapping[str, Any]) -> str:
    """``120/200 iterations  3.10/s  0:26 left  loss 4.21``; ``57.2/250.0 MB  112 MB/s ...``."""
    done, total, unit = record["done"], record["total"], record["unit"]
    megabytes = unit.startswith("MB")
    form = ",.1f" if megabytes else ",g"
    parts = [f"{done:{form}}" + (f"/{total:{form}}" if total else "") + f" {unit}".rstrip()]
    if record["rate"]:
        parts.append(f"{short(record['rate'])}{' MB' if megabytes else ''}/s")
    if record["seconds_left"] is not None and done != total:
        parts.append(f"{duration(record['seconds_left'])} left")
    for name, value in record["shown"].items():
        if name.endswith("_per_second"):
            parts.append(f"{compact(value)} {name.removesuffix('_per_second')}/s")
        elif isinstance(value, int):
            parts.append(f"{value:,} {name.replace('_', ' ')}")
        else:
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
            parts.append(f"{name.replace('_', ' ')} {text}")
    return "  ".join(parts)


def short(number: float) -> str:
    """Three digits of a number: ``0.812``, ``17.4``, ``1,740``."""
    digits = 0 if number >= 100 else 1 if number >= 10 else 3
    return f"{number:,.{digits}f}"


def compact(number: float) -> str:
    """A count in a few letters: ``950``, ``25.3 k``, ``71.5 M``, ``1.2 G``."""
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.1f} {letter}"
    return f"{number:.0f}"


SUMMED_UP = ("read", "written", "removed", "empty", "quarantined", "tokens")


def summary(folder: Path) -> str:
    """What a data stage did with its records: ``read 20,935  written 20,935  71.5 M tokens``."""
    try:
        info = json.loads((folder / "artifact" / MANIFEST).read_text(encoding="utf-8"))["info"]
    except (OSError, ValueError, KeyError):
        return ""
    counts = info.get("counts")
    if not isinstance(counts, dict) or "read" not in counts:
        return ""
    found = [(name, counts[name]) for name in SUMMED_UP if counts.get(name)]
    return "  ".join(
        f"{compact(n)} tokens" if name == "tokens" else f"{n:,} {name}" for name, n in found
    )


class RunView:
    """Shows a run: one line per stage, and under them what the running stage is doing."""

    def __init__(self, console: Console, tasks: Sequence[Task]) -> None:
        self._console = console
        self._names = max((len(t.name) for t in tasks), default=0)
        self._kinds = max((len(t.config.kind) for t in tasks), default=0)
        self._spinner: Spinner | None = None
        self._since = 0.0
        self._printed = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    def skipped(self, task: Task) -> None:
        """One line for a stage that was complete already."""
        self._line("complete", task, "[dim]complete already[/]")

    def started(self, task: Task, ranks: int) -> None:
        """Begin to show a stage."""
        self._since = self._printed = time.monotonic()
        if self._console.is_terminal:
            self._spinner = self._console.status(self._label(task, None))
            self._spinner.start()
        else:
            verb = "goes on" if task.action == "resume" else "starts"
            on = f" on {ranks} ranks" if ranks > 1 else ""
            self._line("running", task, f"{verb}{on}")

    def progress(self, task: Task, record: Mapping[str, Any] | None) -> None:
        """Show what the stage last said."""
        if self._spinner is not None:
            self._spinner.update(self._label(task, record))
        elif record and time.monotonic() - self._printed >= QUIET_INTERVAL:
            self._printed = time.monotonic()
            self._line("running", task, escape(progress_text(record)))

    def ended(self, task: Task, result: Result, seconds: float) -> None:
        """One line for the stage, and where it failed the reason, the log, and its last lines."""
        self._stop()
        if result.code == ExitCode.OK:
            self._line("complete", task, f"{duration(seconds)}  {summary(task.folder)}".rstrip())
            for line in warnings_in(log_path(task.folder, 0)):
                self._console.print(f"  [yellow]![/] {escape(line)}", soft_wrap=True)
        elif result.code in STOPPED:
            saved = result.code == ExitCode.SAVED_AND_STOPPED
            what = "stopped and saved" if saved else "stopped"
            self._line("interrupted", task, f"{what}; the same command goes on from here")
        else:
            self._line("failed", task, f"failed after {duration(seconds)}")
            self._explain(task, result)

    def _explain(self, task: Task, result: Result) -> None:
        error = result.error or {}
        where = f"{error['where']}: " if error.get("where") else ""
        self._console.print(f"  {escape(where + str(error.get('message', '')))}", style="red")
        if error.get("hint"):
            self._console.print(f"  {escape(str(error['hint']))}")
        log = result.log or log_path(task.folder, 0)
        expected = error.get("traceback") is None and bool(error.get("message"))
        self._console.print(f"  log: {log}", style="dim", soft_wrap=True)
        for line in tail(log, 5 if expected else 20):
            self._console.print(f"  │ {escape(line)}", style="dim", soft_wrap=True)

    def _line(self, status: str, task: Task, text: str) -> None:
        self._console.print(f"{MARKS[status]} {self._title(task)}  {text}", soft_wrap=True)

    def _title(self, task: Task) -> str:
        return f"{task.name:<{self._names}}  [dim]{task.config.kind:<{self._kinds}}[/]"

    def _label(self, task: Task, record: Mapping[str, Any] | None) -> str:
        text = escape(progress_text(record)) if record else "starting"
        elapsed = duration(time.monotonic() - self._since)
        return f"{self._title(task)}  {text}  [dim]{elapsed}[/]"

    def _stop(self) -> None:
        if self._spinner is not None:
            self._spinner.stop()
            self._spinner = None


SHOWN_WARNINGS = 3


def warnings_in(log: Path) -> list[str]:
    """What the last attempt warned of, in a log's own words; libraries' warnings are left out."""
    attempt: list[str] = []
    for line in tail(log, 10_000):
        if line.startswith("--- "):
            attempt = []
        _, level, text = line.partition(" WARNING ")
        if level and "Warning: " not in text:
            attempt.append(text)
    more = len(attempt) - SHOWN_WARNINGS
    return attempt[:SHOWN_WARNINGS] + ([f"and {more} more, in {log}"] if more > 0 else [])


def relative(path: Path) -> str:
    """A path as short as it can be said from here."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
