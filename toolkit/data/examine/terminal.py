"""Pieces that all verbs print with: sizes, bars, tables, and text that can't act on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.bar import Bar
from rich.table import Table

SHOWN_LINES, SHOWN_CHARACTERS = 12, 1000
"""Of a document."""


def size(count: float) -> str:
    """Bytes as people say them: ``412 B``, ``3.2 MB``; by thousands, as on the progress line."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def plain_table(*columns: str, right: Sequence[str] = ()) -> Table:
    """A table without lines; the columns named in ``right`` are numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        number = column in right
        table.add_column(column, justify="right" if number else "left", no_wrap=number)
    return table


def bar(share: float) -> Bar:
    """A bar that fills ``share`` of its column."""
    return Bar(1.0, 0.0, share, color="cyan")


def shortened(text: str, *, cut: bool = False) -> str:
    """The first lines of a text, and how much there is behind them."""
    shown = "\n".join(text[:SHOWN_CHARACTERS].split("\n")[:SHOWN_LINES])
    left = len(text) - len(shown)
    if left or cut:
        shown += f" ... and {left:,} characters more" + (", and what is not read" if cut else "")
    return visible(shown)


def visible(text: str) -> str:
    """Control characters as pictures of themselves: what data holds must not act on a terminal."""
    return "".join(_picture(c) for c in text)


def _picture(character: str) -> str:
    code = ord(character)
    if character in "\n\t" or 32 <= code < 127 or code > 159:
        return character
    return chr(0x2400 + code) if code < 32 else "\ufffd"
