"""Bytes of plain and compressed files, as blocks and lines, with flat memory."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from contextlib import contextmanager

from toolkit.data.compression import DAMAGED, decompressed
from toolkit.data.files import Part, Source, check_unchanged, open_file
from toolkit.data.ranges import (
    BYTE_ORDER_MARK,
    RawFile,
    line_start,
    newlines_before,
    paragraph_start,
)
from toolkit.data.records import Place
from toolkit.data.remote import unreadable
from toolkit.errors import DataError

BLOCK = 1 << 20
LONGEST_LINE = 1 << 30
"""Bytes; a longer line is taken for a file that isn't made of lines."""


class Stream:
    """The decompressed bytes of a source or a part of one, and how far the file itself is read.

    Args:
        file: the file, at its beginning.
        source: what it is.
        place: names the part.
        start: where the part begins in the file; only an uncompressed one has parts.
        stop: where it ends; None: at the end.
    """

    def __init__(
        self,
        file: RawFile,
        source: Source,
        place: Place,
        start: int = 0,
        stop: int | None = None,
    ) -> None:
        self._file, self.place, self._start, self._stop = file, place, start, stop
        if start or stop is not None:
            file.seek(start)
        self._content = decompressed(file, source.compression)
        self._blocks = self._read_blocks()

    @property
    def position(self) -> int:
        """Bytes of the (compressed) part read so far."""
        return self._file.tell() - self._start

    def blocks(self) -> Iterator[bytes]:
        """The content in blocks of about a megabyte, without a byte order mark at its start.

        Raises:
            DataError: the file can't be read, or its compressed content is damaged or cut off.
        """
        return self._blocks

    def first_byte(self) -> bytes:
        """The first byte that isn't blank, or none at all; it is still to be read."""
        seen = []
        for block in self._blocks:
            seen.append(block)
            if block.strip():
                break
        self._blocks = itertools.chain(seen, self._blocks)
        return b"".join(seen[-1:]).lstrip()[:1]

    def line_lists(self) -> Iterator[list[bytes]]:
        r"""The lines, those that end in one block together, without ``\n``; ``\r`` stays.

        Raises:
            DataError: as ``blocks``, or a line is longer than ``LONGEST_LINE``.
        """
        begun, number = bytearray(), 0  # grows in place: a list of pieces would leave holes
        for block in self._blocks:
            lines = block.split(b"\n")
            if len(begun) + len(lines[0]) > LONGEST_LINE:
                message = f"a line of more than {LONGEST_LINE:,} bytes"
                raise DataError(message, where=self.place.where(number + 1))
            begun += lines[0]
            if len(lines) > 1:
                lines[0], begun = bytes(begun), bytearray(lines.pop())
                number += len(lines)
                yield lines
        if begun:
            whole = bytes(begun)
            del begun
            yield [whole]

    def lines(self) -> Iterator[bytes]:
        """As ``line_lists``, one by one."""
        return itertools.chain.from_iterable(self.line_lists())

    def read(self) -> bytearray:
        """All of the content, once in memory."""
        content = bytearray()
        for block in self._blocks:
            content += block
        return content

    def _read_blocks(self) -> Iterator[bytes]:
        block = self._block()
        if self._start == 0:
            while len(block) < len(BYTE_ORDER_MARK) and (more := self._block()):
                block += more
            block = block.removeprefix(BYTE_ORDER_MARK) or self._block()
        while block:
            yield block
            block = self._block()

    def _block(self) -> bytes:
        size = BLOCK
        if self._stop is not None:
            size = max(0, min(size, self._stop - self._file.tell()))
        try:
            return self._content.read(size)
        except DAMAGED as error:
            raise damaged(self.place.name, error) from error
        except OSError as error:
            if error.errno is None:  # bz2's way to say that the content is damaged
                raise damaged(self.place.name, error) from error
            raise unreadable(self.place.name, error) from error


@contextmanager
def open_stream(part: Part, *, paragraphs: bool = False) -> Iterator[Stream]:
    """Open a part of a source that has a path.

    Args:
        part: its ``start`` and ``stop`` are bytes.
        paragraphs: whether it owns paragraphs rather than lines.

    Raises:
        DataError: the file can't be opened, or was changed since the sources were expanded.
    """
    source = part.source
    find = paragraph_start if paragraphs else line_start
    with open_file(source) as file:
        try:
            start = find(file, part.start)
            stop = None if part.stop is None else max(start, find(file, part.stop))
        except OSError as error:
            raise unreadable(source.name, error) from error
        yield Stream(file, source, _place(source, start), start, stop)
        check_unchanged(source, file)


def damaged(name: str, error: Exception) -> DataError:
    """The error for compressed content that is not whole."""
    return DataError(
        f"the compressed content is damaged or cut off: {error}",
        where=name,
        hint="the file was probably not copied whole (copy it again), or its suffix is wrong",
    )


def _place(source: Source, start: int) -> Place:
    """Names lines by their number in the file, or in the part where counting needs a network."""
    if start == 0:
        return Place(source.name)
    if source.is_remote:
        return Place(f"{source.name}[from byte {start}]")
    return Place(source.name, functools.partial(_newlines_before, source, start))


def _newlines_before(source: Source, offset: int) -> int:
    with open_file(source) as file:
        return newlines_before(file, offset)
