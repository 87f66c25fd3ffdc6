"""Where the records of a byte range begin, so that a file can be read in parts.

Whatever the offsets, a line begins in exactly one of the ranges that they cut a file into, and so
does a paragraph. A newline byte is never a part of another UTF-8 character.
"""

from __future__ import annotations

from typing import Protocol

WINDOW = 1 << 16
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class RawFile(Protocol):
    """An open file or object, unbuffered."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, at most ``size``; none at the end."""

    def seek(self, offset: int, /) -> int:
        """Move to a byte."""

    def tell(self) -> int:
        """The present byte."""


def line_start(file: RawFile, offset: int) -> int:
    """Where the first line that begins at ``offset`` or behind it does; the end, if none does."""
    if offset == 0:
        return 0
    position = offset - 1
    file.seek(position)
    while window := file.read(WINDOW):
        found = window.find(b"\n")
        if found >= 0:
            return position + found + 1
        position += len(window)
    return position


def paragraph_start(file: RawFile, offset: int) -> int:
    """As ``line_start``, for paragraphs: runs of lines that aren't blank."""
    if offset == 0:
        return 0
    start = position = line_start(file, offset)
    between, blank = _behind_blank(file, start), True
    file.seek(start)
    while window := file.read(WINDOW):
        for index, piece in enumerate(window.split(b"\n")):
            if index:
                between, blank, start = blank, True, position
            blank = blank and not piece.strip()
            if between and not blank:
                return start
            position += len(piece) + 1
        position -= 1
    return position


def _behind_blank(file: RawFile, position: int) -> bool:
    """Whether the line before this beginning of a line is blank, or there is none."""
    end = position - 1
    while end > 0:
        start = end - WINDOW
        start = start if start >= len(BYTE_ORDER_MARK) else 0
        file.seek(start)
        window = _read_fully(file, end - start)
        if start == 0:
            window = window.removeprefix(BYTE_ORDER_MARK)
        kept = window.rstrip(b" \t\r\x0b\x0c")
        if kept:
            return kept.endswith(b"\n")
        end = start
    return True


def newlines_before(file: RawFile, offset: int) -> int:
    """How many lines end before ``offset``."""
    file.seek(0)
    count = 0
    while offset > 0 and (window := file.read(min(1 << 20, offset))):
        count += window.count(b"\n")
        offset -= len(window)
    return count


def _read_fully(file: RawFile, size: int) -> bytes:
    content = b""
    while len(content) < size and (more := file.read(size - len(content))):
        content += more
    return content
