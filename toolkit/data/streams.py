"""Bytes of plain and compressed files, as blocks and lines, with flat memory."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, Protocol

import zstandard

from toolkit.data.sources import Compression, Source
from toolkit.errors import DataError

BLOCK = 1 << 20
LONGEST_LINE = 1 << 30
"""Bytes; a longer line is taken for a file that isn't made of lines."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Readable(Protocol):
    """What gives bytes: a file, or a decompressor over one."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, about ``size``; none at the end."""


class Stream:
    """The decompressed bytes of a source, and how far the file itself is read."""

    def __init__(self, file: BinaryIO, compression: Compression, name: str) -> None:
        self._file, self.name = file, name
        self._content = _decompressed(file, compression)

    @property
    def position(self) -> int:
        """Bytes of the (compressed) file read so far."""
        return self._file.tell()

    def blocks(self) -> Iterator[bytes]:
        """The content in blocks of about a megabyte, without a byte order mark at its start.

        Raises:
            DataError: the file can't be read, or its compressed content is damaged or cut off.
        """
        block = self._block()
        if block.startswith(BYTE_ORDER_MARK):
            block = block[len(BYTE_ORDER_MARK) :] or self._block()
        while block:
            yield block
            block = self._block()

    def lines(self) -> Iterator[bytes]:
        r"""The lines, without ``\n``; a last line needs none. ``\r`` stays at a line's end.

        Raises:
            DataError: as ``blocks``, or a line is longer than ``LONGEST_LINE``.
        """
        begun: list[bytes] = []
        length = number = 0
        for block in self.blocks():
            first, *rest = block.split(b"\n")
            begun.append(first)
            length += len(first)
            if length > LONGEST_LINE:
                raise DataError(
                    f"a line of more than {LONGEST_LINE:,} bytes", where=f"{self.name}:{number + 1}"
                )
            if rest:
                yield b"".join(begun)
                yield from rest[:-1]
                begun, length, number = [rest[-1]], len(rest[-1]), number + len(rest)
        if length:
            yield b"".join(begun)

    def read(self) -> bytes:
        """All of the content."""
        return b"".join(self.blocks())

    def _block(self) -> bytes:
        try:
            return self._content.read(BLOCK)
        except (gzip.BadGzipFile, zlib.error, EOFError, zstandard.ZstdError) as error:
            raise DataError(
                f"the compressed content is damaged or cut off: {error}",
                where=self.name,
                hint="the file was probably not copied whole; copy it again",
            ) from error
        except OSError as error:
            raise unreadable(self.name, error) from error


@contextmanager
def open_stream(source: Source) -> Iterator[Stream]:
    """Open a source that has a path.

    Raises:
        DataError: the file can't be opened.
    """
    assert source.path is not None
    try:
        file = source.path.open("rb", buffering=0)
    except OSError as error:
        raise unreadable(source.name, error) from error
    with file:
        yield Stream(file, source.compression, source.name)


def unreadable(name: str, error: OSError) -> DataError:
    """The error for a file that the system refuses to open or read."""
    return DataError(f"can't be read: {error.strerror or error}", where=name)


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
