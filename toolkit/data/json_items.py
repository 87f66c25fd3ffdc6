"""The items of one large JSON array, one after another, with memory for the longest of them.

What lies before the next ``}, {`` is parsed: if that is an object, it is the item, for no object is
the beginning of another one. Else brackets, commas and quotes are counted to find the item's end,
so that an item that is no JSON loses only itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import orjson

_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_WITHIN = re.compile(rb'(?:[^"{}\[\]]++|' + _STRING + rb")*+", re.DOTALL)
"""Up to the next bracket outside of strings, or the beginning of a string that isn't all there."""
_BETWEEN = re.compile(rb'(?:[^"{}\[\],]++|' + _STRING + rb")*+", re.DOTALL)
"""The same, and commas."""
_BOUNDARY = re.compile(rb"\}[ \t\r\n]*+,[ \t\r\n]*+\{")
LONGEST_ITEM = 1 << 30
UNREAD = object()
"""The value of an item whose end was found by counting: its bytes may be no JSON."""


class BrokenArrayError(Exception):
    """The text is no whole array: what is wrong behind the last item that was given."""


def array_items(blocks: Iterator[bytes]) -> Iterator[tuple[bytes, Any]]:
    """The items' bytes, without blanks around them, and their values or ``UNREAD``.

    Args:
        blocks: the content; the first byte that isn't blank is ``[``.

    Raises:
        BrokenArrayError: brackets, commas or quotes don't make an array, or its end is missing.
    """
    scanner = _Scanner(blocks)
    count = 0
    while True:
        yield from scanner.objects()
        item, closed = scanner.item()
        if item:
            yield item, UNREAD
            count += 1
        elif count or not closed:
            raise BrokenArrayError("there is nothing between two commas, or behind the last one")
        if closed:
            return scanner.finish()


class _Scanner:
    """Where the scan is: at ``position`` in ``buffer``, in the item that began at ``start``."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._buffer = b""
        while not self._buffer.lstrip():
            self._buffer = next(blocks)
        self._start = self._position = self._buffer.index(b"[") + 1

    def objects(self) -> Iterator[tuple[bytes, Any]]:
        """The next items, as long as they are whole objects that others follow."""
        while found := _BOUNDARY.search(self._buffer, self._position):
            item = self._buffer[self._position : found.start() + 1]
            try:
                value = orjson.loads(item)
            except orjson.JSONDecodeError:
                return
            self._position = found.end() - 1
            yield item, value

    def item(self) -> tuple[bytes, bool]:
        """The next item, and whether the array ends behind it."""
        self._start = self._position
        depth = 0
        while True:
            match = (_WITHIN if depth else _BETWEEN).match(self._buffer, self._position)
            assert match is not None
            self._position = match.end()
            found = self._buffer[self._position : self._position + 1]
            if found in (b"", b'"'):
                self._more()
                continue
            self._position += 1
            if found in (b"{", b"["):
                depth += 1
            elif depth:
                depth -= 1
            elif found == b"}":
                raise BrokenArrayError("a '}' that nothing opened")
            else:
                return self._buffer[self._start : self._position - 1].strip(), found == b"]"

    def _more(self) -> None:
        """Read on; as much again as there is of the item, so that it's not scanned too often."""
        begun = self._buffer[self._start :]
        added, size = [begun], 0
        while size <= len(begun) and (block := next(self._blocks, None)) is not None:
            added.append(block)
            size += len(block)
        if not size:
            raise BrokenArrayError("the array has no end: the file was cut off, or lacks a quote")
        self._buffer = b"".join(added)
        self._start, self._position = 0, self._position - self._start
        if len(self._buffer) > LONGEST_ITEM:
            raise BrokenArrayError(f"an item of more than {LONGEST_ITEM:,} bytes")

    def finish(self) -> None:
        """Refuse anything but blanks behind the array."""
        rest = self._buffer[self._position :]
        while not rest.strip():
            block = next(self._blocks, None)
            if block is None:
                return
            rest = block
        raise BrokenArrayError(f"something stands behind the array: {rest.strip()[:20]!r}")
