"""How long documents are: percentiles, and a histogram whose bins double."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

PERCENTILES = (1, 5, 25, 50, 75, 90, 95, 99)
Lengths = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Bin:
    """Documents of ``low`` to ``high`` tokens, both included."""

    low: int
    high: int
    documents: int
    tokens: int


@dataclass(frozen=True)
class LengthSummary:
    """What there is to say of lengths at a glance."""

    documents: int
    tokens: int
    shortest: int
    longest: int
    mean: float
    percentiles: dict[int, float]
    bins: tuple[Bin, ...]
    """From the first to the last that has documents, empty ones between them included."""


def length_histogram(lengths: Lengths) -> list[int]:
    """Counts by bins that double: of length 0, 1, 2-3, 4-7, and so on; for ``info``.

    Bin ``k > 0`` has the lengths from ``2**(k-1)`` to ``2**k - 1``.
    """
    counts = np.bincount(_bins(lengths), minlength=1) if len(lengths) else np.zeros(1, np.int64)
    return [int(count) for count in counts]


def summarize(parts: Iterable[Lengths]) -> LengthSummary:
    """Sum up the lengths of documents, given in any number of arrays."""
    lengths = np.concatenate([np.zeros(0, np.int32), *parts])
    if not len(lengths):
        return LengthSummary(0, 0, 0, 0, 0.0, {}, ())
    found = np.percentile(lengths, PERCENTILES)
    return LengthSummary(
        documents=len(lengths),
        tokens=int(lengths.sum(dtype=np.int64)),
        shortest=int(lengths.min()),
        longest=int(lengths.max()),
        mean=float(lengths.mean(dtype=np.float64)),
        percentiles={p: float(v) for p, v in zip(PERCENTILES, found, strict=True)},
        bins=_table(lengths),
    )


def _table(lengths: Lengths) -> tuple[Bin, ...]:
    bins = _bins(lengths)
    documents = np.bincount(bins)
    tokens = np.bincount(bins, weights=lengths)
    first = int(np.argmax(documents > 0))
    return tuple(
        Bin(*_bounds(k), int(documents[k]), round(tokens[k])) for k in range(first, len(documents))
    )


def _bounds(number: int) -> tuple[int, int]:
    return (1 << number - 1, (1 << number) - 1) if number else (0, 0)


def _bins(lengths: Lengths) -> npt.NDArray[np.int64]:
    """The number of bits of each length."""
    return np.frexp(lengths.astype(np.float64))[1].astype(np.int64)
