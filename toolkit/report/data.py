"""What a data stage counted, as bars: sources, reasons, languages; and how long documents are.

As in ``charts.py``, nothing here writes markup.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.data.examine.statistics import Number, Section, sections
from toolkit.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Tick
from toolkit.report.read import mapping
from toolkit.report.scale import Scale, fit, number, size, tick

MOST_ROWS = 8
"""Rows of a section that are shown at once; further ones are folded."""
MOST_SOURCES = 3
GAP = 2.0
"""Between the bars of a histogram."""
SHOWN_ABOVE = frozenset({"Documents"})
"""Sections that the page shows as one bar of parts."""


@dataclass(frozen=True)
class BarRow:
    """A row of a table of bars."""

    label: str
    values: tuple[str, ...]
    share: str
    width: float
    """Of the longest bar, in percent."""


@dataclass(frozen=True)
class Bars:
    """A section as a table, each row with its bar."""

    title: str
    columns: tuple[str, ...]
    of: str
    shown: tuple[BarRow, ...]
    folded: tuple[BarRow, ...]


@dataclass(frozen=True)
class Column:
    """One bar of a histogram, on the drawing."""

    x: float
    y: float
    width: float
    height: float
    told: str
    """``128 - 255 tokens: 1,204 documents, 12.4 %``."""


@dataclass(frozen=True)
class Histogram:
    """A section whose rows are bins, drawn upright."""

    title: str
    of: str
    summary: str
    """What a screen reader says instead."""
    columns: tuple[Column, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: float = LEFT
    right: float = WIDTH - RIGHT
    bottom: float = HEIGHT - BOTTOM


@dataclass(frozen=True)
class DataCharts:
    """What is drawn of one stage."""

    bars: tuple[Bars, ...]
    histograms: tuple[Histogram, ...]


def data_charts(info: Mapping[str, Any]) -> DataCharts:
    """The charts that an ``info`` has anything for."""
    found = [s for s in sections(info) if s.title not in SHOWN_ABOVE]
    return DataCharts(
        bars=tuple(_bars(s) for s in found if s.form == "bars"),
        histograms=tuple(_histogram(s) for s in found if s.form == "histogram"),
    )


def source_names(info: Mapping[str, Any]) -> str:
    """The sources of a data stage in a few words: ``a.jsonl, b.jsonl and 7 more``."""
    listed = info.get("per_source") or info.get("sources") or []
    if not isinstance(listed, Sequence) or isinstance(listed, str):
        return str(listed)
    names = list(dict.fromkeys(str(mapping(one).get("name", one)) for one in listed))
    more = len(names) - MOST_SOURCES
    return ", ".join(names[:MOST_SOURCES]) + (f" and {more} more" if more > 0 else "")


def _bars(section: Section) -> Bars:
    most = max((row.share for row in section.rows), default=0) or 1
    rows = tuple(
        BarRow(
            row.label,
            tuple(map(_written, row.values, section.columns)),
            f"{row.share:.1%}".replace("%", " %") if section.of else "",
            round(100 * row.share / most, 2),
        )
        for row in section.rows
    )
    names = tuple("text" if c == "text_bytes" else c.replace("_", " ") for c in section.columns)
    return Bars(section.title, names, section.of, rows[:MOST_ROWS], rows[MOST_ROWS:])


def _written(value: Number | None, column: str) -> str:
    if value is None:
        return ""
    if column.endswith("bytes"):
        return size(value)
    return f"{value:,}" if isinstance(value, int) else number(value)


def _histogram(section: Section) -> Histogram:
    """Bins side by side, a label under where each begins."""
    counts = [float(row.values[0] or 0) for row in section.rows]
    y = fit([0.0, *counts], HEIGHT - BOTTOM, TOP, log=False, zero=True)
    step = (WIDTH - RIGHT - LEFT) / len(counts)
    columns = []
    for place, (row, count) in enumerate(zip(section.rows, counts, strict=True)):
        told = f"{row.label} tokens: {count:,.0f} {section.of}, {row.share:.1%}"
        x = LEFT + place * step
        columns.append(_column(x, step, count, y, told))
    labelled = max(1, -(-len(counts) // 6))
    begins = [int(row.label.partition(" ")[0].replace(",", "")) for row in section.rows]
    return Histogram(
        title=section.title,
        of=section.of,
        summary=f"{section.title}. " + ". ".join(column.told for column in columns),
        columns=tuple(columns),
        x_ticks=tuple(
            Tick(LEFT + n * step, _bin_tick(begin))
            for n, begin in enumerate(begins)
            if not n % labelled
        ),
        y_ticks=tuple(Tick(y(t), tick(t)) for t in y.ticks(4)),
    )


def _bin_tick(begin: int) -> str:
    """Where a bin begins: ``512``, ``2k``, ``16k``, each k of 1024."""
    return f"{begin >> 10}k" if begin >= 1024 else str(begin)


def _column(x: float, step: float, count: float, y: Scale, told: str) -> Column:
    top = y(count)
    width = max(1.0, step - GAP)
    return Column(
        round(x + GAP / 2, 1), round(top, 1), round(width, 1), round(HEIGHT - BOTTOM - top, 1), told
    )
