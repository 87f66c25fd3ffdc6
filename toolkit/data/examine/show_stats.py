"""Statistics and samples on the terminal. Imports no numpy."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from toolkit.data.examine.statistics import Number, Row, Section, Statistics
from toolkit.data.examine.terminal import bar, size

MOST_ROWS = 40
HEADS = {"text_bytes": "text"}
SHORTEST_LABEL, LONGEST_LABEL = 12, 48
SHORTEST_BAR, LONGEST_BAR = 6, 48


def show_statistics(found: Statistics) -> RenderableType:
    """All sections, each a table with bars."""
    made = f"{found.type} made by {found.made_by}" if found.made_by else found.type
    title = Text.assemble((found.folder, "bold"), "\n", (made, "dim"))
    if not found.sections:
        return Group(title, Text("nothing is counted in its artifact.json", style="dim"))
    shown: list[RenderableType] = [title]
    for section in found.sections:
        shown += ["", _Table(section)]
    return Group(*shown)


@dataclass(frozen=True)
class _Table:
    """A section as a table; where the terminal is narrow, labels give way to numbers."""

    section: Section

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        section, rows = self.section, self.section.rows[:MOST_ROWS]
        heads = [HEADS.get(name, name.replace("_", " ")) for name in section.columns]
        heads.append(f"of {section.of}" if section.of else "")
        cells = [_cells(row, section) for row in rows]
        columns = zip(heads, *cells, strict=True)
        taken = sum(2 + max(map(len, column)) for column in columns) + SHORTEST_BAR
        limit = max(SHORTEST_LABEL, min(LONGEST_LABEL, options.max_width - taken))
        table = Table(box=None, pad_edge=False, header_style="")
        table.add_column(Text(section.title, style="bold"), no_wrap=True)
        for head in heads:
            table.add_column(Text(head, style="dim"), justify="right", no_wrap=True)
        table.add_column("", max_width=LONGEST_BAR)
        most = max(row.share for row in rows) or 1
        for row, values in zip(rows, cells, strict=True):
            table.add_row(Text(_short(row.label, limit)), *values, bar(row.share / most))
        yield table
        if len(section.rows) > MOST_ROWS:
            more = len(section.rows) - MOST_ROWS
            yield Text(f"and {more} more: --json has all", style="dim")


def _cells(row: Row, section: Section) -> list[str]:
    """The numbers of a row, the share behind them."""
    written = [_written(v, name) for v, name in zip(row.values, section.columns, strict=True)]
    return [*written, f"{row.share:.1%}" if section.of else ""]


def _short(label: str, limit: int) -> str:
    """The end of a long label, which is where paths differ; ``--json`` has all of it."""
    return label if len(label) <= limit else f"…{label[1 - limit :]}"


def _written(value: Number | None, column: str) -> str:
    if value is None:
        return ""
    if column.endswith("bytes"):
        return size(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
