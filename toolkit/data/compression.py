"""Decompressed content of files, whole or an error: cut off, damaged, appended to is noticed.

All members of ``.gz`` files, all frames of ``.zst`` files and all streams of ``.bz2`` and ``.xz``
files are read. Python's own ``bz2`` and ``lzma`` files pass over garbage behind the first stream,
and zstandard's reader over a frame that is not complete.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable
from typing import Protocol

import zstandard

from toolkit.data.files import Compression
from toolkit.data.ranges import RawFile

LEAST, INPUT = 1 << 10, 1 << 16
"""Compressed bytes that a decompressor is given at first, and at most."""
DAMAGED = (
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    zstandard.ZstdError,
    lzma.LZMAError,
)
"""What is raised where the content is not whole; ``bz2`` raises an OSError without a number."""


class Readable(Protocol):
    """What gives bytes: a file, or a decompressor over one."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, about ``size``; none at the end."""


class Frame(Protocol):
    """One frame, or stream, of a compressed file."""

    @property
    def eof(self) -> bool:
        """Whether its end has been read."""

    @property
    def unused_data(self) -> bytes:
        """What was given behind its end."""

    def decompress(self, data: bytes, /) -> bytes:
        """The content of more of the file's bytes."""


def decompressed(file: RawFile, compression: Compression) -> Readable:
    """The content of a file, to be read from its beginning."""
    if compression == "gz":
        return gzip.GzipFile(fileobj=file, mode="rb")
    if compression == "zst":
        return _Frames(file, zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj)
    if compression == "bz2":
        return _Frames(file, bz2.BZ2Decompressor)
    if compression == "xz":
        return _Frames(file, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ), padding=b"\0")
    return file


class _Frames:
    """Decompresses all frames of a file, and notices one that is cut off.

    A decompressor is given little at a time where little becomes much, so that memory stays flat.

    Args:
        file: at its beginning.
        begin: makes a decompressor for one frame.
        padding: a byte that may stand between frames.
    """

    def __init__(self, file: RawFile, begin: Callable[[], Frame], padding: bytes = b"") -> None:
        self._file, self._begin, self._padding = file, begin, padding
        self._frame = begin()
        self._begun = False
        """Whether the present frame has been given any bytes."""
        self._rest = b""
        self._portion = LEAST

    def read(self, size: int, /) -> bytes:
        """The content of the next bytes of the file, however much that is."""
        content = b""
        while not content and (data := self._more()):
            self._begun = True
            content = self._frame.decompress(data)
            if len(content) > size:
                self._portion = max(1, self._portion // 2)
            elif len(content) < size // 2:
                self._portion = min(INPUT, self._portion * 2)
        return content

    def _more(self) -> bytes:
        """Compressed bytes for the present frame, or for the next one where it has ended."""
        if self._frame.eof:
            self._rest = self._frame.unused_data + self._rest
            self._frame, self._begun = self._begin(), False
        self._rest = self._rest or self._file.read(INPUT)
        while self._padding and not self._begun and self._rest.startswith(self._padding):
            self._rest = self._rest.lstrip(self._padding) or self._file.read(INPUT)
        if not self._rest and self._begun:
            raise EOFError("the last frame is not complete")
        data, self._rest = self._rest[: self._portion], self._rest[self._portion :]
        return data
