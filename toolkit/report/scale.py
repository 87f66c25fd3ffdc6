"""Axes: round ticks for linear and log scales, and numbers as people write them."""

from __future__ import annotations

import math
from dataclasses import dataclass

NICE = (1.0, 2.0, 2.5, 5.0, 10.0)
MINUS = "−"
SUFFIXES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Scale:
    """Maps values in [low, high] to positions in [start, end], which may run downwards."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    step: float | None = None
    """Between ticks, where it is settled."""

    def __call__(self, value: float) -> float:
        """The position of a value."""
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(value)
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int) -> list[float]:
        """About ``count`` round values within the scale."""
        if self.log and self.high / self.low >= 20:
            return _log_ticks(self.low, self.high, count)
        return _linear_ticks(self.low, self.high, self.step or _step(self.high - self.low, count))


def fit(values: list[float], start: float, end: float, *, log: bool, zero: bool = False) -> Scale:
    """A scale that holds the values, with a little room; linear ones end on round numbers.

    Args:
        values: at least one, finite; above zero for ``log``.
        start: position of the lowest value.
        end: position of the highest value.
        log: whether the scale is logarithmic.
        zero: whether a linear scale starts at zero.
    """
    low, high = min(values), max(values)
    if log:
        room = max((high / low) ** 0.04, 1.02)
        return Scale(low / room, high * room, start, end, log=True)
    if zero:
        low = min(low, 0.0)
    if low == high:
        room = abs(high) * 0.1 or 1.0
        low, high = low - (0.0 if zero else room), high + room
    step = _step(high - low, 4)
    low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    return Scale(low, high, start, end, step=step)


def _step(span: float, count: int) -> float:
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    return next(n * power for n in NICE if n * power >= rough * 0.999)


def _linear_ticks(low: float, high: float, step: float) -> list[float]:
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [n * step for n in range(first, last + 1)]


def _log_ticks(low: float, high: float, count: int) -> list[float]:
    """Powers of ten, every so many; with 2 and 5 between them where that leaves under three."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    choices = [
        [10.0**n for n in decades if n % every == 0]
        for every in range(math.ceil(len(decades) / count), 0, -1)
    ]
    choices.append([lead * 10.0**n for n in decades for lead in (1.0, 2.0, 5.0)])
    inside: list[float] = []
    for choice in choices:
        inside = [value for value in choice if low <= value <= high]
        if len(inside) >= 3:
            break
    return inside


def number(value: float, digits: int = 3) -> str:
    """A number at a glance, with ``digits`` significant: 0.000325, 4.21, 1,234, 12.4M, 3.2e-05."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "not finite"
    if value < 0:
        return MINUS + number(-value, digits)
    rounded = float(f"{value:.{digits - 1}e}")
    if rounded < 1e-4:
        return f"{value:.{digits - 1}e}"
    if rounded >= 1e5:
        factor, suffix = next(s for s in SUFFIXES if rounded >= s[0])
        return f"{_significant(rounded / factor, digits)}{suffix}"
    if rounded >= 1000:
        return f"{value:,.0f}"
    return _significant(rounded, digits)


def tick(value: float) -> str:
    """A tick's label: ``number`` without superfluous zeros, thousands as k."""
    if value < 0:
        return MINUS + tick(-value)
    size = value
    if size >= 10_000:
        factor, suffix = next(s for s in SUFFIXES if size >= s[0])
        return f"{value / factor:g}{suffix}"
    if value and size < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{round(value, 10):,g}" if size < 1000 else f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """Seconds as a person says them: ``0.8 s``, ``42 s``, ``4 min 32 s``, ``3 h 05 min``."""
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600:02d} h"


def size(count: float) -> str:
    """A number of bytes: ``412 B``, ``3.2 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("the last unit takes everything")


def _significant(value: float, digits: int) -> str:
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{places}f}"
