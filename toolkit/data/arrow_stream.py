"""Arrow IPC files and streams, batch by batch, from any batch on.

Hugging Face ``datasets`` saves streams (``.arrow``), which have no index: one is made from the
messages' headers, whose layout is that of ``Message.fbs`` in the Arrow specification. A stream that
lacks its end-of-stream mark was cut off, which pyarrow's own reader takes for its end.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow

FILE_MAGIC = b"ARROW1"
DICTIONARY_BATCH, RECORD_BATCH = 2, 3


class ArrowFile:
    """An open arrow file.

    Args:
        raw: at its beginning, and seekable.

    Raises:
        pyarrow.ArrowException: it is no arrow file.
        EOFError: it was cut off.
    """

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._file: Any = None
        self._offsets: list[int] = []
        self._whole = False
        if raw.read(len(FILE_MAGIC)) == FILE_MAGIC:
            self._file = pyarrow.ipc.open_file(raw)
            self.schema = self._file.schema
        else:
            self._open_stream()

    @property
    def parts(self) -> int:
        """Record batches; 1 where dictionaries tie those of a stream together."""
        if self._file is not None:
            return int(self._file.num_record_batches)
        return 1 if self._whole else len(self._offsets)

    def batches(self, part: int) -> Iterator[Any]:
        """The record batches of a part: one, or all of a stream with dictionaries."""
        if self._file is not None:
            yield self._file.get_batch(part)
        elif self._whole:
            self._raw.seek(0)
            yield from pyarrow.ipc.open_stream(self._raw)
        else:
            self._raw.seek(self._offsets[part])
            message = pyarrow.ipc.read_message(pyarrow.PythonFile(self._raw, mode="r"))
            yield pyarrow.ipc.read_record_batch(message, self.schema)

    def _open_stream(self) -> None:
        self._raw.seek(0)
        self.schema = pyarrow.ipc.open_stream(self._raw).schema
        try:
            for offset, kind in _messages(self._raw):
                self._whole = self._whole or kind == DICTIONARY_BATCH
                if kind == RECORD_BATCH:
                    self._offsets.append(offset)
        except struct.error as error:
            raise EOFError(f"the header of a message is damaged ({error})") from error


def _messages(raw: BinaryIO) -> Iterator[tuple[int, int]]:
    """Offset and type of every message of a stream, up to its end-of-stream mark."""
    end = raw.seek(0, 2)
    offset = 0
    while True:
        raw.seek(offset)
        prefix = raw.read(8)
        if len(prefix) < 8 or prefix[:4] != b"\xff\xff\xff\xff":
            raise EOFError("the stream has no end-of-stream mark: it was cut off")
        (length,) = struct.unpack_from("<I", prefix, 4)
        if length == 0:
            return
        if offset + 8 + length > end:
            raise EOFError("the last message is not complete: the file was cut off")
        kind, body = _header(raw.read(length))
        yield offset, kind
        offset += 8 + length + body
        if body < 0 or offset > end:
            raise EOFError("the last record batch is not complete: the file was cut off")


def _header(metadata: bytes) -> tuple[int, int]:
    """Type and body length of a message, from its flatbuffer: fields 1 and 3 of the table."""
    (table,) = struct.unpack_from("<I", metadata, 0)
    (back,) = struct.unpack_from("<i", metadata, table)
    (slots_end,) = struct.unpack_from("<H", metadata, table - back)

    def field(index: int, form: str) -> int:
        slot = 4 + 2 * index
        (at,) = (
            struct.unpack_from("<H", metadata, table - back + slot) if slot < slots_end else (0,)
        )
        return int(struct.unpack_from(form, metadata, table + at)[0]) if at else 0

    return field(1, "<B"), field(3, "<q")
