"""Statistics and samples on the terminal. Imports no numpy."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from toolkit.data.examine.statistics import Number, Section, Statistics
from toolkit.data.examine.terminal import bar, size

MOST_ROWS, LONGEST_LABEL, LONGEST_BAR = 40, 34, 48


def show_statistics(found: Statistics) -> RenderableType:
    """All sections, each a table with bars."""
    made = f"{found.type} made by {found.made_by}" if found.made_by else found.type
    title = Text.assemble((found.folder, "bold"), "\n", (made, "dim"))
    if not found.sections:
        return Group(title, Text("nothing is counted in its artifact.json", style="dim"))
    shown: list[RenderableType] = [title]
    for section in found.sections:
        shown += ["", _section(section)]
    return Group(*shown)


def _section(section: Section) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="")
    table.add_column(Text(section.title, style="bold"), no_wrap=True)
    for column in section.columns:
        name = "text" if column == "text_bytes" else column
        table.add_column(Text(name, style="dim"), justify="right", no_wrap=True)
    of = f"of {section.of}" if section.of else ""
    table.add_column(Text(of, style="dim"), justify="right", no_wrap=True)
    table.add_column("", min_width=4, max_width=LONGEST_BAR)
    most = max(row.share for row in section.rows) or 1
    for row in section.rows[:MOST_ROWS]:
        values = [
            _written(value, name) for value, name in zip(row.values, section.columns, strict=True)
        ]
        share = f"{row.share:.1%}" if section.of else ""
        table.add_row(Text(_short(row.label)), *values, share, bar(row.share / most))
    return Group(table, *_rest(section.rows))


def _short(label: str) -> str:
    """The end of a long label, which is where paths differ; ``--json`` has all of it."""
    return label if len(label) <= LONGEST_LABEL else f"…{label[1 - LONGEST_LABEL :]}"


def _rest(rows: Sequence[object]) -> list[Text]:
    more = len(rows) - MOST_ROWS
    return [Text(f"and {more} more: --json has all", style="dim")] if more > 0 else []


def _written(value: Number | None, column: str) -> str:
    if value is None:
        return ""
    if column.endswith("bytes"):
        return size(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
