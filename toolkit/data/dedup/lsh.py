"""Bands and rows of locality-sensitive hashing for a wished threshold. Light: no numpy.

Two documents of Jaccard similarity s agree in one value of a MinHash signature with probability
s, in all ``rows`` values of a band with s**rows, and in at least one of ``bands`` bands with
1 - (1 - s**rows)**bands: the S-curve (Leskovec, Rajaraman, Ullman: Mining of Massive Datasets,
section 3.4).
"""

from __future__ import annotations

import functools

STEPS = 64
"""Intervals of Simpson's rule on either side of the threshold."""


def probability(similarity: float, bands: int, rows: int) -> float:
    """That two documents of this Jaccard similarity share a band, and so become candidates."""
    return 1.0 - (1.0 - similarity**rows) ** bands


@functools.lru_cache(maxsize=64)
def choose_bands(threshold: float, num_perm: int, false_negative_weight: float) -> tuple[int, int]:
    """The ``(bands, rows)``, with bands x rows <= num_perm, of the least weighted error.

    The error is what datasketch's ``MinHashLSH`` minimises: the area under the S-curve below the
    threshold, times ``1 - false_negative_weight``, and the area over it above the threshold,
    times ``false_negative_weight``.
    """
    below = _Grid(0.0, threshold)
    above = _Grid(threshold, 1.0)
    best, least = (1, 1), float("inf")
    for rows in range(1, num_perm + 1):
        misses_below, misses_above = below.misses(rows), above.misses(rows)
        for bands in range(1, num_perm // rows + 1):
            false_positives = threshold - below.integral(misses_below, bands)
            false_negatives = above.integral(misses_above, bands)
            error = (1.0 - false_negative_weight) * false_positives
            error += false_negative_weight * false_negatives
            if error < least:
                best, least = (bands, rows), error
    return best


class _Grid:
    """Points and weights of Simpson's rule on an interval of similarities."""

    def __init__(self, start: float, stop: float) -> None:
        width = (stop - start) / STEPS
        self.points = [start + width * i for i in range(STEPS + 1)]
        inner = [4.0 if i % 2 else 2.0 for i in range(1, STEPS)]
        self.weights = [w * width / 3.0 for w in (1.0, *inner, 1.0)]

    def misses(self, rows: int) -> list[float]:
        """At each point, the probability that one band does not agree."""
        return [1.0 - point**rows for point in self.points]

    def integral(self, misses: list[float], bands: int) -> float:
        """Of the probability that no band agrees."""
        return sum(w * miss**bands for w, miss in zip(self.weights, misses, strict=True))
