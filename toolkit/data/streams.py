"""Bytes of plain and compressed files, as blocks and lines, with flat memory."""

from __future__ import annotations

import functools
import gzip
import itertools
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, Protocol

import zstandard

from toolkit.data.ranges import BYTE_ORDER_MARK, line_start, newlines_before, paragraph_start
from toolkit.data.records import Place
from toolkit.data.shards import Part
from toolkit.data.sources import Compression, Source, check_unchanged, open_file, unreadable
from toolkit.errors import DataError

BLOCK = 1 << 20
LONGEST_LINE = 1 << 30
"""Bytes; a longer line is taken for a file that isn't made of lines."""


class Readable(Protocol):
    """What gives bytes: a file, or a decompressor over one."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, about ``size``; none at the end."""


class Stream:
    """The decompressed bytes of a source or a part of one, and how far the file itself is read.

    Args:
        file: the file, at its beginning.
        compression: of the file; only an uncompressed one has parts.
        place: names the part.
        start: where the part begins in the file.
        stop: where it ends; None: at the end.
    """

    def __init__(
        self,
        file: BinaryIO,
        compression: Compression,
        place: Place,
        start: int = 0,
        stop: int | None = None,
    ) -> None:
        self._file, self.place, self._start = file, place, start
        file.seek(start)
        self._content = _decompressed(file, compression) if stop is None else _Section(file, stop)

    @property
    def position(self) -> int:
        """Bytes of the (compressed) part read so far."""
        return self._file.tell() - self._start

    def blocks(self) -> Iterator[bytes]:
        """The content in blocks of about a megabyte, without a byte order mark at its start.

        Raises:
            DataError: the file can't be read, or its compressed content is damaged or cut off.
        """
        block = self._block()
        if self._start == 0 and block.startswith(BYTE_ORDER_MARK):
            block = block[len(BYTE_ORDER_MARK) :] or self._block()
        while block:
            yield block
            block = self._block()

    def line_lists(self) -> Iterator[list[bytes]]:
        r"""The lines, those that end in one block together, without ``\n``; ``\r`` stays.

        Raises:
            DataError: as ``blocks``, or a line is longer than ``LONGEST_LINE``.
        """
        begun: list[bytes] = []
        length = number = 0
        for block in self.blocks():
            lines = block.split(b"\n")
            begun.append(lines[0])
            length += len(lines[0])
            if length > LONGEST_LINE:
                message = f"a line of more than {LONGEST_LINE:,} bytes"
                raise DataError(message, where=self.place.where(number + 1))
            if len(lines) > 1:
                lines[0] = b"".join(begun)
                last = lines.pop()
                number += len(lines)
                yield lines
                begun, length = [last], len(last)
        if length:
            yield [b"".join(begun)]

    def lines(self) -> Iterator[bytes]:
        """As ``line_lists``, one by one."""
        return itertools.chain.from_iterable(self.line_lists())

    def read(self) -> bytes:
        """All of the content."""
        return b"".join(self.blocks())

    def _block(self) -> bytes:
        try:
            return self._content.read(BLOCK)
        except (gzip.BadGzipFile, zlib.error, EOFError, zstandard.ZstdError) as error:
            raise DataError(
                f"the compressed content is damaged or cut off: {error}",
                where=self.place.name,
                hint="the file was probably not copied whole; copy it again",
            ) from error
        except OSError as error:
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
    with open_file(source) as file:
        find = paragraph_start if paragraphs else line_start
        try:
            start = find(file, part.start)
            stop = None if part.stop is None else max(start, find(file, part.stop))
        except OSError as error:
            raise unreadable(source.name, error) from error
        before = functools.partial(_newlines_before, source, start) if start else 0
        yield Stream(file, source.compression, Place(source.name, before), start, stop)
        check_unchanged(source, file)


def _newlines_before(source: Source, offset: int) -> int:
    with open_file(source) as file:
        return newlines_before(file, offset)


class _Section:
    """A file that ends at ``stop``."""

    def __init__(self, file: BinaryIO, stop: int) -> None:
        self._file, self._stop = file, stop

    def read(self, size: int, /) -> bytes:
        return self._file.read(max(0, min(size, self._stop - self._file.tell())))


def _decompressed(file: BinaryIO, compression: Compression) -> Readable:
    if compression == "gz":
        return gzip.GzipFile(fileobj=file, mode="rb")
    if compression == "zst":
        return _Zstandard(file)
    return file


class _Zstandard:
    """Decompresses all frames of a file and, unlike ``stream_reader``, notices a cut-off one."""

    INPUT = 1 << 16

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
        self._frame = self._decompressor.decompressobj()
        self._begun = False
        """Whether the present frame has been given any bytes."""

    def read(self, size: int, /) -> bytes:
        content = b""
        while not content:
            data = self._more()
            if not data:
                break
            self._begun = True
            content = self._frame.decompress(data)
        return content

    def _more(self) -> bytes:
        """Compressed bytes for the present frame, or for the next one where it has ended."""
        data = b""
        if self._frame.eof:
            data = self._frame.unused_data
            self._frame, self._begun = self._decompressor.decompressobj(), False
        data = data or self._file.read(self.INPUT)
        if not data and self._begun:
            raise EOFError("the last zstandard frame is not complete")
        return data
