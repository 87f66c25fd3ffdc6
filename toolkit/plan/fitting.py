"""Least squares over the logarithms of constants, and which of them the data tell apart.

Pure Python: there are a handful of constants, and a plan needs no numpy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

Constants = Mapping[str, float]
Errors = Callable[[Constants], list[float]]
"""Of each measurement, the logarithm of its estimate over it."""
Columns = dict[str, list[float]]

STEP = 0.02
FELT = 0.15
"""How much of a constant's effect no other one may explain: with this much, a measurement that is
off by 1 % makes the constant off by 7 %."""
ITERATIONS = 30


def dot(first: Sequence[float], second: Sequence[float]) -> float:
    """The sum of the products."""
    return sum(a * b for a, b in zip(first, second, strict=True))


def length(column: Sequence[float]) -> float:
    """The root of the sum of the squares."""
    return math.sqrt(dot(column, column))


def sensitivities(errors: Errors, at: Constants, names: Sequence[str]) -> Columns:
    """For each constant, how every error changes with the constant's logarithm."""
    found = {}
    for name in names:
        more = errors({**at, name: at[name] * (1 + STEP)})
        less = errors({**at, name: at[name] / (1 + STEP)})
        change = 2 * math.log1p(STEP)
        found[name] = [(m - s) / change for m, s in zip(more, less, strict=True)]
    return found


def told_apart(columns: Columns, first: str) -> tuple[list[str], dict[str, str]]:
    """The constants that the data identify together, and why the others are left.

    One by one, that which explains most of what those before it don't; ``first`` counts double.
    """
    rest, chosen = dict(columns), list[str]()
    while rest:
        name = max(rest, key=lambda n: length(rest[n]) * (2 if n == first else 1))
        column = rest.pop(name)
        size = length(column)
        if size < FELT:
            break
        chosen.append(name)
        unit = [x / size for x in column]
        for other, values in rest.items():
            shared = dot(unit, values)
            rest[other] = [v - shared * u for v, u in zip(values, unit, strict=True)]
    left = {name: _why(name, columns, chosen) for name in columns if name not in chosen}
    return chosen, left


def _why(name: str, columns: Columns, chosen: Sequence[str]) -> str:
    own = columns[name]
    if length(own) < FELT or not chosen:
        return "hardly changes the time of any of these steps"
    like = max(chosen, key=lambda c: abs(dot(own, columns[c])) / length(columns[c]))
    return f"these runs don't tell it from {like}"


def descend(
    errors: Errors,
    start: Constants,
    names: Sequence[str],
    bounds: Mapping[str, tuple[float, float]],
) -> dict[str, float]:
    """The values of ``names`` with the least squares of the errors (Levenberg and Marquardt)."""
    at, damping = dict(start), 1e-3
    now = errors(at)
    for _ in range(ITERATIONS):
        columns = sensitivities(errors, at, names)
        move = _step(columns, names, now, damping)
        tried = dict(at)
        for name, change in zip(names, move, strict=True):
            low, high = bounds[name]
            tried[name] = min(high, max(low, at[name] * math.exp(max(-1.0, min(1.0, change)))))
        new = errors(tried)
        gain = dot(now, now) - dot(new, new)
        if gain < 0:
            damping *= 8
            continue
        at, now, damping = tried, new, damping / 8
        if gain < 1e-12:
            break
    return at


def _step(
    columns: Columns, names: Sequence[str], errors: Sequence[float], damping: float
) -> list[float]:
    normal = _normal(columns, names)
    for row, name in enumerate(names):
        normal[row][row] += damping * max(dot(columns[name], columns[name]), 1e-6)
    return solve(normal, [-dot(columns[name], errors) for name in names])


def _normal(columns: Columns, names: Sequence[str]) -> list[list[float]]:
    return [[dot(columns[a], columns[b]) for b in names] for a in names]


def deviations(columns: Columns, names: Sequence[str], noise: float) -> dict[str, float]:
    """The standard deviation of each constant's logarithm, where that of an error is ``noise``."""
    normal = _normal(columns, names)
    found = {}
    for row, name in enumerate(names):
        unit = [float(row == other) for other in range(len(names))]
        found[name] = noise * math.sqrt(max(0.0, solve(normal, unit)[row]))
    return found


def solve(matrix: Sequence[Sequence[float]], right: Sequence[float]) -> list[float]:
    """The solution of a small system of linear equations (Gauss, with pivots)."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    count = len(rows)
    for column in range(count):
        pivot = max(range(column, count), key=lambda r: abs(rows[r][column]))
        rows[column], rows[pivot] = rows[pivot], rows[column]
        for row in range(count):
            if row != column:
                share = rows[row][column] / rows[column][column]
                rows[row] = [a - share * b for a, b in zip(rows[row], rows[column], strict=True)]
    return [row[-1] / row[number] for number, row in enumerate(rows)]
