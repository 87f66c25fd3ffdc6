"""Megatron's indexed dataset: ``PREFIX.bin`` has the tokens, ``PREFIX.idx`` says where they are.

The files are byte for byte those of ``megatron.core.datasets.indexed_dataset``, whose import takes
ten seconds; here numpy does. Layout of the index, little-endian: ``MMIDIDX\\0\\0``, u64 version 1,
u8 dtype code, u64 S sequences, u64 D = documents + 1, i32[S] lengths in tokens, i64[S] byte
offsets, i64[D] document boundaries, and i8[S] modes in multimodal data.

A document is one sequence, or several: the sentences of a text, the examples of a packed row.
Files appear by a rename when they are whole, the index last.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from toolkit.artifacts import sync
from toolkit.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
DTYPES: dict[int, type[np.number[Any]]] = {
    1: np.uint8,
    2: np.int8,
    3: np.int16,
    4: np.int32,
    5: np.int64,
    6: np.float64,
    7: np.float32,
    8: np.uint16,
}
"""By the code in the header, as in Megatron's ``DType``."""
CODES = {dtype: code for code, dtype in DTYPES.items()}
UINT16_VOCABULARY = 65500
"""Megatron's bound; between it and 65536 its readers differ, so nothing is written as u16 there."""

Tokens = npt.NDArray[np.integer[Any]]


def token_dtype(vocab_size: int) -> type[np.number[Any]]:
    """Megatron's rule (``DType.optimal_dtype``): u16 for a vocabulary below 65500, else i32."""
    return np.uint16 if vocab_size < UINT16_VOCABULARY else np.int32


def bin_path(prefix: Path) -> Path:
    """``data/text_document`` to ``data/text_document.bin``; a dot in the name is no suffix."""
    return prefix.with_name(f"{prefix.name}.bin")


def idx_path(prefix: Path) -> Path:
    """``data/text_document`` to ``data/text_document.idx``."""
    return prefix.with_name(f"{prefix.name}.idx")


class IndexedWriter:
    """Writes documents as they come; the index is kept in memory, 8 bytes a document.

    Use as a context manager: leaving it puts both files in place, leaving it by an exception
    removes what was written.

    Args:
        prefix: path without ``.bin``.
        vocab_size: decides the dtype, and bounds the token ids.
        dtype: another one than the vocabulary's, such as u8 for a loss mask.
    """

    def __init__(
        self, prefix: Path, vocab_size: int, dtype: type[np.number[Any]] | None = None
    ) -> None:
        self.prefix, self.vocab_size = prefix, vocab_size
        self.dtype = dtype or token_dtype(vocab_size)
        self.documents = self.tokens = 0
        self._lengths: list[npt.NDArray[np.int32]] = []
        self._sequences: list[npt.NDArray[np.int32]] = []

    def __enter__(self) -> Self:
        self._bin = temporary(bin_path(self.prefix)).open("wb", buffering=0)
        return self

    def write(
        self,
        tokens: Tokens,
        lengths: npt.NDArray[np.int64],
        name: Callable[[int], str] | None = None,
        *,
        sequences: npt.NDArray[np.int64] | None = None,
    ) -> None:
        """Append documents.

        Args:
            tokens: of all the documents, one after another.
            lengths: tokens of each sequence; they add up to ``len(tokens)``.
            name: what an error calls the document of an index into ``lengths``.
            sequences: of each document, adding up to ``len(lengths)``; by default one.

        Raises:
            DataError: a token id outside the vocabulary; nothing of this call is written.
        """
        assert lengths.sum() == len(tokens), "lengths don't add up to the number of tokens"
        self._refuse_outside(tokens, lengths, name)
        counts = np.ones(len(lengths), np.int32) if sequences is None else sequences
        assert counts.sum() == len(lengths), "the documents don't have all the sequences"
        self._lengths.append(_as_int32(lengths, self.prefix))
        self._sequences.append(counts.astype(np.int32))
        self._append(tokens.astype(self.dtype).data.cast("B"))
        self.documents += len(counts)
        self.tokens += len(tokens)

    def _append(self, data: memoryview) -> None:
        while data:  # one call writes 2 GiB at most
            data = data[self._bin.write(data) :]

    def _refuse_outside(
        self, tokens: Tokens, lengths: npt.NDArray[np.int64], name: Callable[[int], str] | None
    ) -> None:
        if not len(tokens) or (tokens.min() >= 0 and tokens.max() < self.vocab_size):
            return
        at = int(np.argmax((tokens < 0) | (tokens >= self.vocab_size)))
        document = int(np.searchsorted(np.cumsum(lengths), at, side="right"))
        raise DataError(
            f"token id {int(tokens[at])} is outside the vocabulary of {self.vocab_size} "
            f"(0 to {self.vocab_size - 1})",
            where=name(document) if name else f"document {self.documents + document}",
            hint="the tokens come from another tokenizer, or vocab_size is not this tokenizer's",
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._finish()
        finally:
            self._bin.close()
            temporary(bin_path(self.prefix)).unlink(missing_ok=True)

    def _finish(self) -> None:
        os.fsync(self._bin.fileno())
        lengths = np.concatenate([np.zeros(0, np.int32), *self._lengths])
        counts = np.concatenate([np.zeros(1, np.int32), *self._sequences])
        write_index(self.prefix, self.dtype, lengths, np.cumsum(counts, dtype=np.int64))


def write_index(
    prefix: Path,
    dtype: type[np.number[Any]],
    lengths: npt.NDArray[np.int32],
    boundaries: npt.NDArray[np.int64],
) -> None:
    """Put an index, and the tokens that wait under a temporary name, in their places.

    Args:
        prefix: path without ``.bin``; the tokens are at ``temporary(bin_path(prefix))``, flushed.
        dtype: of the tokens.
        lengths: tokens of each sequence.
        boundaries: the sequence at which each document begins, and at last how many there are.
    """
    offsets = np.zeros(len(lengths), np.int64)
    np.cumsum(lengths[:-1], dtype=np.int64, out=offsets[1:])
    offsets *= np.dtype(dtype).itemsize
    header = HEADER.pack(MAGIC, VERSION, CODES[dtype], len(lengths), len(boundaries))
    index, data = idx_path(prefix), bin_path(prefix)
    try:
        with temporary(index).open("wb") as stream:
            for part in (header, lengths.data, offsets.data, boundaries.data):
                stream.write(part)
            stream.flush()
            os.fsync(stream.fileno())
        index.unlink(missing_ok=True)  # an old index must never stand beside new tokens
        temporary(data).replace(data)
        temporary(index).replace(index)
    finally:
        temporary(index).unlink(missing_ok=True)
    sync(index.parent)


@dataclass(frozen=True)
class IndexHeader:
    """What the first 34 bytes of an index say."""

    dtype: type[np.number[Any]]
    sequences: int
    documents: int
    """Documents themselves; the file counts their boundaries, one more."""

    @property
    def size(self) -> int:
        """Bytes of the index, without the modes of multimodal data."""
        return HEADER.size + 12 * self.sequences + 8 * (self.documents + 1)


class IndexedReader:
    """Reads an indexed dataset through memory maps; ``reader[i]`` is the i-th sequence's tokens.

    Raises:
        DataError: as ``check_indexed``, on opening.
    """

    def __init__(self, prefix: Path) -> None:
        self.header = check_indexed(prefix)
        count = self.header.sequences
        index = np.memmap(idx_path(prefix), mode="r")
        body = index.data[HEADER.size :]
        self.lengths = np.frombuffer(body, np.int32, count)
        self.offsets = np.frombuffer(body, np.int64, count, 4 * count)
        self.document_indices = np.frombuffer(body, np.int64, self.header.documents + 1, 12 * count)
        self._path, self._itemsize = idx_path(prefix), np.dtype(self.header.dtype).itemsize
        data = bin_path(prefix)
        self._bin = np.memmap(data, mode="r") if data.stat().st_size else np.zeros(0, np.uint8)

    def __len__(self) -> int:
        return self.header.sequences

    def __getitem__(self, index: int) -> npt.NDArray[np.number[Any]]:
        """The tokens of a sequence, shape (length,), a read-only view of the file.

        Raises:
            DataError: the index is damaged: it says that they lie outside the ``.bin``.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        length, offset = int(self.lengths[index]), int(self.offsets[index])
        end, itemsize = offset + length * self._itemsize, self._itemsize
        if length < 0 or offset < 0 or end > self._bin.size or offset % itemsize:
            raise DataError(
                f"sequence {index} has {length} tokens from byte {offset}, the .bin has "
                f"{self._bin.size:,} bytes",
                where=str(self._path),
                hint="the index is damaged: `toolkit data doctor` says where",
            )
        return np.frombuffer(self._bin.data, self.header.dtype, length, offset)


def check_indexed(prefix: Path) -> IndexHeader:
    """Whether both files are there and whole; reads 34 bytes and a few ends, whatever their size.

    megatron-core opens a truncated ``.bin`` without an error and reads garbage. A ``.bin`` that is
    a link to another dataset's may be longer than the index says: see ``whole_of``.

    Raises:
        DataError: a file is missing, is no index of version 1, or has another size than the
            index says, with both numbers.
    """
    index, data = idx_path(prefix), bin_path(prefix)
    for path, other in ((index, data), (data, index)):
        if not path.is_file():
            beside = f"{other.name} is there without it" if other.is_file() else None
            raise DataError("no such file", where=str(path), hint=beside)
    header = read_header(index)
    size = index.stat().st_size
    if size not in (header.size, header.size + header.sequences):
        raise _wrong_size(index, size, header.size)
    boundaries = HEADER.size + 12 * header.sequences
    first, last = _int64(index, boundaries), _int64(index, header.size - 8)
    if (first, last) != (0, header.sequences):
        raise DataError(
            f"the documents span sequences {first} to {last}, there are {header.sequences}",
            where=str(index),
        )
    needed, size = _end_of_tokens(index, header), data.stat().st_size
    if size < needed or (size > needed and whole_of(prefix) is None):
        raise _wrong_size(data, size, needed)
    return header


def whole_of(prefix: Path) -> Path | None:
    """The dataset whose ``.bin`` this one's is a link to: its index may name parts of it alone."""
    data = bin_path(prefix)
    target = data.resolve()
    whole = target.with_name(target.name.removesuffix(".bin"))
    return whole if data.is_symlink() and idx_path(whole).is_file() else None


def read_header(index: Path) -> IndexHeader:
    """Decode the beginning of an ``.idx`` file.

    Raises:
        DataError: it is not an index, or of a version or dtype that doesn't exist.
    """
    with index.open("rb") as stream:
        raw = stream.read(HEADER.size)
    if raw[: len(MAGIC)] != MAGIC or len(raw) < HEADER.size:
        raise DataError(f"not an index: it should begin with {MAGIC!r}", where=str(index))
    _, version, code, sequences, boundaries = HEADER.unpack(raw)
    if version != VERSION:
        raise DataError(f"index version {version}; only {VERSION} is known", where=str(index))
    if code not in DTYPES:
        raise DataError(f"dtype code {code}; there are {sorted(DTYPES)}", where=str(index))
    if not boundaries:
        raise DataError("no document boundary, not even the first one's", where=str(index))
    return IndexHeader(DTYPES[code], sequences, boundaries - 1)


def _end_of_tokens(index: Path, header: IndexHeader) -> int:
    """Bytes that the ``.bin`` must have: the last sequence's offset and length."""
    if not header.sequences:
        return 0
    lengths_end = HEADER.size + 4 * header.sequences
    length = _int64(index, lengths_end - 4) & 0xFFFFFFFF
    offset = _int64(index, lengths_end + 8 * (header.sequences - 1))
    return offset + length * np.dtype(header.dtype).itemsize


def _int64(path: Path, position: int) -> int:
    with path.open("rb") as stream:
        stream.seek(position)
        return int.from_bytes(stream.read(8), "little", signed=True)


def _wrong_size(path: Path, size: int, needed: int) -> DataError:
    difference = f"{needed - size:,} missing" if size < needed else f"{size - needed:,} too many"
    return DataError(
        f"the file has {size:,} bytes, its index says {needed:,}: {difference}",
        where=str(path),
        hint="it was cut off or overwritten; copy it again, or tokenize again",
    )


def _as_int32(lengths: npt.NDArray[np.int64], prefix: Path) -> npt.NDArray[np.int32]:
    if len(lengths) and lengths.max() > np.iinfo(np.int32).max:
        raise DataError(
            f"a document of {lengths.max():,} tokens; the format holds {np.iinfo(np.int32).max:,}",
            where=str(prefix),
            hint="split it: for .txt files, sample_by: paragraph or line",
        )
    return lengths.astype(np.int32)


def temporary(path: Path) -> Path:
    """Where a file is written before it has its name."""
    return path.with_name(f".{path.name}.tmp")
