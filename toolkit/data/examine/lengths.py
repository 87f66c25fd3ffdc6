"""How long documents are: percentiles, and a histogram whose bins double."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

PERCENTILES = (1, 5, 25, 50, 75, 90, 95, 99)
CHUNK = 1 << 20
"""Documents at a time."""
BITS = 64
Lengths = npt.NDArray[np.integer[Any]]
Counts = npt.NDArray[np.int64]


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
    documents, _ = _count(lengths)
    return [int(count) for count in documents]


def summarize(parts: Iterable[Lengths]) -> LengthSummary:
    """Sum up the lengths of documents, given in any number of arrays."""
    lengths = np.concatenate([np.zeros(0, np.int32), *parts])
    if not len(lengths):
        return LengthSummary(0, 0, 0, 0, 0.0, {}, ())
    bins, tokens = _table(lengths), int(lengths.sum(dtype=np.int64))
    shortest, longest = int(lengths.min()), int(lengths.max())
    found = np.percentile(lengths, PERCENTILES, overwrite_input=True)
    return LengthSummary(
        documents=len(lengths),
        tokens=tokens,
        shortest=shortest,
        longest=longest,
        mean=tokens / len(lengths),
        percentiles={p: float(v) for p, v in zip(PERCENTILES, found, strict=True)},
        bins=bins,
    )


def _table(lengths: Lengths) -> tuple[Bin, ...]:
    documents, tokens = _count(lengths)
    first = int(np.argmax(documents > 0))
    return tuple(
        Bin(*_bounds(k), int(documents[k]), int(tokens[k])) for k in range(first, len(documents))
    )


def _bounds(number: int) -> tuple[int, int]:
    return (1 << number - 1, (1 << number) - 1) if number else (0, 0)


def _count(lengths: Lengths) -> tuple[Counts, Counts]:
    """Documents and tokens by the number of bits of a length, up to the last bin that is used."""
    documents, tokens = np.zeros(BITS, np.int64), np.zeros(BITS, np.int64)
    for start in range(0, len(lengths), CHUNK):
        part = lengths[start : start + CHUNK]
        bits = np.frexp(part.astype(np.float64))[1]
        documents += np.bincount(bits, minlength=BITS)
        np.add.at(tokens, bits, part)
    used = int(np.flatnonzero(documents).max(initial=0)) + 1
    return documents[:used], tokens[:used]
