"""Line charts as plain numbers for the template to draw: paths, ticks, and what the cursor reads.

Nothing here writes markup, so everything that comes from data is escaped in one place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from toolkit.report.scale import Scale, fit, number, tick

WIDTH, HEIGHT = 360, 196
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 8, 24
BUCKETS = 160
"""A longer series is drawn by the lowest and highest point of each of so many stretches."""
LOG_FROM = 50.0
"""Highest over lowest value from which an axis that may be logarithmic is."""
FEW, DENSE = 24, 120
"""Points up to which each gets a dot, and above which a line is drawn thin."""

Point = tuple[float, float | None]


@dataclass(frozen=True)
class Chart:
    """What to draw: keys of the metrics, each with its name in the legend."""

    title: str
    series: tuple[tuple[str, str], ...]
    unit: str = ""
    log: bool = False
    """Whether the axis may be logarithmic, where the values ask for it."""
    zero: bool = False
    """Whether the axis starts at zero."""


@dataclass(frozen=True)
class Tick:
    """A place on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Line:
    """One series, drawn."""

    label: str
    path: str
    dots: tuple[tuple[float, float], ...]
    last: str
    """Its last value, for the legend."""
    points: tuple[tuple[float, float, str, str], ...]
    """x and y on the drawing, and step and value as text: what the cursor reads."""
    dense: bool
    """Whether it has so many points that it is drawn thin."""
    missing: tuple[float, ...]
    """Where values were not finite, on the drawing."""


@dataclass(frozen=True)
class Drawing:
    """One chart, drawn on a WIDTH x HEIGHT canvas."""

    title: str
    unit: str
    summary: str
    """What a screen reader says instead."""
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    log: bool
    width: int = WIDTH
    height: int = HEIGHT
    left: float = LEFT
    right: float = WIDTH - RIGHT
    top: float = TOP
    bottom: float = HEIGHT - BOTTOM


def draw(chart: Chart, rows: Sequence[Mapping[str, Any]]) -> Drawing | None:
    """Draw a chart from rows of metrics; None where no series of it has two points or more."""
    found = [(label, points) for key, label in chart.series if len(points := series(rows, key)) > 1]
    values = [y for _, points in found for _, y in points if y is not None]
    if not values:
        return None
    log = chart.log and min(values) > 0 and max(values) / min(values) >= LOG_FROM
    steps = [x for _, points in found for x, _ in points]
    x = Scale(min(steps), max(max(steps), min(steps) + 1), LEFT, WIDTH - RIGHT)
    y = fit(values, HEIGHT - BOTTOM, TOP, log=log, zero=chart.zero)
    return Drawing(
        title=chart.title,
        unit=chart.unit,
        summary=_summary(chart, found),
        lines=tuple(_line(label, points, x, y) for label, points in found),
        x_ticks=tuple(Tick(x(t), tick(t)) for t in x.ticks(5)),
        y_ticks=tuple(Tick(y(t), tick(t)) for t in y.ticks(4)),
        log=log,
    )


def series(rows: Iterable[Mapping[str, Any]], key: str) -> list[Point]:
    """One metric over the steps; None where it was logged and was not finite.

    A step that was logged twice (a run that went on from a checkpoint) counts once, as logged last.
    """
    found: dict[float, float | None] = {}
    for row in rows:
        value = row.get(key, False)
        step = row.get("step")
        if isinstance(value, bool) or not isinstance(step, (int, float)):
            continue
        if value is None or isinstance(value, (int, float)):
            found[float(step)] = None if value is None else float(value)
    return sorted(found.items())


def downsample(points: Sequence[Point], buckets: int = BUCKETS) -> list[Point]:
    """The first and last points, and the lowest and highest of each stretch: spikes stay."""
    if len(points) <= 2 * buckets:
        return list(points)
    kept: list[Point] = [points[0]]
    edges = [1 + round(i * (len(points) - 2) / buckets) for i in range(buckets + 1)]
    for start, end in pairwise(edges):
        kept += _extremes(points[start:end])
    return [*kept, points[-1]]


def _extremes(stretch: Sequence[Point]) -> Iterator[Point]:
    finite = [(y, x) for x, y in stretch if y is not None]
    chosen = {min(finite), max(finite)} if finite else set()
    gaps = [(x, None) for x, y in stretch if y is None][:1]
    yield from sorted([*((x, y) for y, x in chosen), *gaps], key=lambda point: point[0])


def _line(label: str, points: Sequence[Point], x: Scale, y: Scale) -> Line:
    few = len(points) <= FEW
    drawn = [(x(s), None if v is None else y(v), s, v) for s, v in downsample(points)]
    finite = [(px, py, s, v) for px, py, s, v in drawn if py is not None and v is not None]
    return Line(
        label=label,
        path=_path([(px, py) for px, py, _, _ in drawn]),
        dots=tuple((round(px, 1), round(py, 1)) for px, py, _, _ in finite) if few else (),
        last=number(finite[-1][3]) if finite else "not finite",
        points=tuple((round(px, 1), round(py, 1), f"{s:,g}", number(v)) for px, py, s, v in finite),
        dense=len(points) > DENSE,
        missing=tuple(round(px, 1) for px, py, _, _ in drawn if py is None),
    )


def _path(points: Iterable[tuple[float, float | None]]) -> str:
    """An SVG path that breaks where a value is missing."""
    parts, pen = [], "M"
    for px, py in points:
        if py is None:
            pen = "M"
            continue
        parts.append(f"{pen}{px:.1f} {py:.1f}")
        pen = "L"
    return "".join(parts)


def _summary(chart: Chart, found: Sequence[tuple[str, Sequence[Point]]]) -> str:
    parts = [_told(label, points) for label, points in found]
    unit = f", {chart.unit}" if chart.unit else ""
    return f"{chart.title}{unit}. " + " ".join(parts)


def _told(label: str, points: Sequence[Point]) -> str:
    finite = [(x, y) for x, y in points if y is not None]
    if not finite:
        return f"{label}: never finite."
    (first_x, first), (last_x, last) = finite[0], finite[-1]
    lost = len(points) - len(finite)
    text = f"{label}: {number(first)} at step {first_x:,g}, {number(last)} at step {last_x:,g}"
    return text + (f", {lost} values not finite." if lost else ".")
