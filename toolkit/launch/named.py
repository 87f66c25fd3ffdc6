"""Lists of names in one line."""

from __future__ import annotations

from collections.abc import Sequence

NAMED = 5
"""How many names stand in one line; the others are counted."""


def named(names: Sequence[str]) -> str:
    """``a, b, c, d, e and 4 more``."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
