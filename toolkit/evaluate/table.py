"""The comparison of models as a table for the terminal: rows are measures, columns are models."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from toolkit.evaluate.scores import SCORES, Row, Scores, Value, read_scores


def scores_tables(run_dir: Path) -> Iterator[Table]:
    """A table for each finished ``evaluate`` stage of a run, in the order of their names.

    Raises:
        ToolkitError: a stage's scores are there and can't be read.
    """
    for path in sorted(run_dir.glob(f"*/artifact/{SCORES}")):
        yield scores_table(read_scores(path.parent), title=path.parent.parent.name)


def scores_table(scores: Scores, title: str = "scores") -> Table:
    """The headline figures of every measure and source; the best of each row in bold green."""
    table = Table(
        title=title,
        caption="± standard error; ↓ lower is better, ↑ higher is better",
        title_justify="left",
        caption_justify="left",
        header_style="bold",
        box=None,
        pad_edge=False,
    )
    table.add_column("measure")
    for model in scores.models:
        table.add_column(escape(model.name), justify="right")
    shown = [row for row in scores.rows if row.headline]
    names = {row.source for row in shown}
    last = None
    for row in shown:
        best = row.best()
        cells = [_cell(row, value, index in best) for index, value in enumerate(row.values)]
        label = f"{escape(row.label)}{arrow(row)}"
        if (row.measure, row.source) != last:
            table.add_row(f"[dim]{escape(short_source(row.source, names))}[/]")
        table.add_row(f"  {label}", *cells)
        last = (row.measure, row.source)
    return table


def arrow(row: Row) -> str:
    """Which way is better, as a sign behind the label."""
    return {"lower": " ↓", "higher": " ↑", None: ""}[row.better]


def written(row: Row, value: Value) -> tuple[str, str]:
    """A value and its standard error as text; the error is empty where there is none.

    Shares are percentages. The error has two significant digits, and the value as many places as
    it; a value without an error has four significant digits.
    """
    factor, sign = (100.0, " %") if row.percent else (1.0, "")
    number = value.value * factor
    error = None if value.standard_error is None else value.standard_error * factor
    places = _places(error, 2) if error else _places(number, 4)
    shown = "" if error is None else f"{error:,.{places}f}"
    return f"{number:,.{places}f}{sign}", shown


def short_source(source: str, among: set[str]) -> str:
    """The last part of a path that tells it from the others; sample names stay whole."""
    if "/" not in source or source.startswith("sample:"):
        return source
    parts = source.split("/")
    for count in range(1, len(parts)):
        tail = "/".join(parts[-count:])
        if sum(other == tail or other.endswith("/" + tail) for other in among) <= 1:
            return tail
    return source


def _cell(row: Row, value: Value | None, best: bool) -> str:
    if value is None:
        return "[dim]–[/]"
    number, error = written(row, value)
    shown = f"[bold green]{number}[/]" if best else number
    return f"{shown} [dim]± {error}[/]" if error else shown


def _places(number: float, digits: int) -> int:
    """Places after the point for so many significant digits; at most 5."""
    if number == 0 or not math.isfinite(number):
        return 2
    return min(5, max(0, digits - 1 - math.floor(math.log10(abs(number)))))
