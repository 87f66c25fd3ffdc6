"""Checks of the tokens themselves: the ``.bin`` is read once, in blocks, whatever its size."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from toolkit.data.examine.findings import Advance, Damage, Finding, Place
from toolkit.data.examine.index_checks import Index, Int64
from toolkit.data.indexed import bin_path

BLOCK = 4 << 20
"""Bytes of the ``.bin`` at a time."""
DOCUMENTS = 1 << 16
"""Documents whose ends are looked up at a time."""


@dataclass(frozen=True)
class Expected:
    """What the tokens are held against."""

    vocab_size: int | None = None
    eod_id: int | None = None
    ends_with_eod: bool = False
    """Whether every document must end with ``eod_id``."""
    sha256: str | None = None
    pieces: tuple[tuple[str, int, str], ...] = ()
    """The shards that the file was merged from: key, bytes, xxh3-64."""


@dataclass
class Tally:
    """What was counted on the way."""

    highest: int | None = None
    eod_ends: int = 0
    """Documents that end with EOD."""
    eod_within: int = 0
    """EODs that end no document."""
    documents: int = 0
    """Those that have a token."""
    empty: int = 0
    other_end: tuple[int, int, int] | None = None
    """The first document without EOD at its end: document, position in tokens, its last token."""


@dataclass(frozen=True)
class Ends:
    """Where documents end in the ``.bin``, counted in tokens."""

    documents: Int64
    positions: Int64


def check_tokens(
    index: Index, expected: Expected, advance: Advance, *, contiguous: bool = True
) -> tuple[Tally, list[Finding]]:
    """Read all tokens of a dataset.

    Args:
        index: of the dataset; its structure has been checked.
        expected: what to hold the tokens against.
        advance: told the bytes as they are read.
        contiguous: whether the sequences follow one another in the ``.bin``; in the ``.bin`` of
            an index that names parts of it, EODs within documents are not counted.

    Raises:
        Damage: a token is outside the vocabulary, or a checksum differs.
    """
    tally, hashes = Tally(), _Hashes(bin_path(index.prefix).name, expected)
    ends = _Ending(_document_ends(index, tally) if contiguous else iter(()), expected, tally)
    position = 0
    for raw in _blocks(bin_path(index.prefix), index.itemsize):
        tokens = np.frombuffer(raw, index.header.dtype)
        hashes.update(raw)
        _look_at(tokens, position, index, expected, tally)
        position += len(tokens)
        ends.look_at(tokens, position)
        advance(len(raw))
    if not contiguous:
        _gather_ends(index, expected, tally)
    return tally, hashes.findings()


def _blocks(path: Path, itemsize: int) -> Iterator[memoryview]:
    """The file in blocks of whole tokens, all in one buffer.

    Raises:
        Damage: the disk can't give a part of it.
    """
    buffer = memoryview(bytearray(BLOCK - BLOCK % itemsize))
    with path.open("rb", buffering=0) as stream:
        filled = 0
        while count := _read_into(stream, buffer[filled:], path.name):
            filled += count
            if filled == len(buffer):
                yield buffer
                filled = 0
        if filled:
            yield buffer[:filled]


def _read_into(stream: FileIO, buffer: memoryview, name: str) -> int:
    try:
        return stream.readinto(buffer)
    except OSError as error:
        place = Place(name, stream.tell())
        raise Damage("tokens", f"can't be read: {error.strerror}", place) from error


def _look_at(
    tokens: npt.NDArray[Any], position: int, index: Index, expected: Expected, tally: Tally
) -> None:
    """The highest id, and whether all are in the vocabulary."""
    highest, lowest = int(tokens.max()), int(tokens.min())
    tally.highest = max(highest, tally.highest or 0)
    size = expected.vocab_size
    if size is None or (highest < size and lowest >= 0):
        return
    at = int(np.argmax((tokens >= size) | (tokens < 0)))
    token, offset = int(tokens[at]), (position + at) * index.itemsize
    document = index.document_at(offset)
    place = Place(bin_path(index.prefix).name, offset, document, f"0 to {size - 1:,}", f"{token:,}")
    detail = f"token {token:,} is outside the vocabulary of {size:,}"
    raise Damage("vocabulary", detail, place)


def _document_ends(index: Index, tally: Tally) -> Iterator[Ends]:
    """The ends of all documents that have a token, in order; the others are counted."""
    for start in range(0, index.header.documents, DOCUMENTS):
        stop = min(start + DOCUMENTS, index.header.documents)
        boundaries = index.boundaries(start, stop + 1)
        first, last = int(boundaries[0]), int(boundaries[-1])
        lengths = index.lengths(first, last).astype(np.int64)
        ends = index.offsets(first, last) // index.itemsize + lengths
        before = np.append(0, np.cumsum(lengths))[boundaries - first]
        filled = np.diff(before) > 0
        tally.documents += int(np.count_nonzero(filled))
        tally.empty += int(np.count_nonzero(~filled))
        yield Ends(np.arange(start, stop)[filled], ends[boundaries[1:][filled] - 1 - first])


class _Ending:
    """Looks at the tokens that documents end with, block by block."""

    def __init__(self, ends: Iterator[Ends], expected: Expected, tally: Tally) -> None:
        self._ends, self._expected, self._tally = ends, expected, tally
        self._waiting = next(ends, None)

    def look_at(self, tokens: npt.NDArray[Any], position: int) -> None:
        """Take a block that ends at ``position``, counted in tokens."""
        eod, tally = self._expected.eod_id, self._tally
        if eod is not None:
            tally.eod_within += int(np.count_nonzero(tokens == eod))
        while self._waiting is not None:
            count = int(np.searchsorted(self._waiting.positions, position, side="right"))
            here = Ends(self._waiting.documents[:count], self._waiting.positions[:count])
            last = tokens[here.positions - 1 - (position - len(tokens))]
            right = _count_ends(here, last, self._expected, tally)
            tally.eod_within -= right
            rest = Ends(self._waiting.documents[count:], self._waiting.positions[count:])
            self._waiting = rest if len(rest.positions) else next(self._ends, None)
            if len(rest.positions):
                break


def _gather_ends(index: Index, expected: Expected, tally: Tally) -> None:
    """As ``_Ending``, of documents that lie anywhere in the ``.bin``."""
    tokens = np.memmap(bin_path(index.prefix), index.header.dtype, "r") if index.bin_size else None
    for ends in _document_ends(index, tally):
        if tokens is not None:
            _count_ends(ends, tokens[ends.positions - 1], expected, tally)


def _count_ends(ends: Ends, last: npt.NDArray[Any], expected: Expected, tally: Tally) -> int:
    """How many documents end with EOD, of these; the first that doesn't is noted."""
    if expected.eod_id is None or not len(last):
        return 0
    right = last == expected.eod_id
    count = int(np.count_nonzero(right))
    tally.eod_ends += count
    if tally.other_end is None and count < len(right):
        at = int(np.argmin(right))
        tally.other_end = (int(ends.documents[at]), int(ends.positions[at]) - 1, int(last[at]))
    return count


class _Hashes:
    """The file's SHA-256, and the checksum of each shard that it was merged from."""

    def __init__(self, name: str, expected: Expected) -> None:
        self._name, self._expected = name, expected
        self._whole = hashlib.sha256()
        self._pieces = list(expected.pieces)
        self._piece, self._taken, self._begun = xxhash.xxh3_64(), 0, 0

    def update(self, raw: memoryview) -> None:
        """Take a block.

        Raises:
            Damage: a shard has ended, and its checksum is another one.
        """
        if self._expected.sha256:
            self._whole.update(raw)
        while raw and self._pieces:
            key, size, recorded = self._pieces[0]
            part = raw[: size - self._taken]
            self._piece.update(part)
            self._taken += len(part)
            raw = raw[len(part) :]
            if self._taken == size:
                self._end(key, recorded)

    def _end(self, key: str, recorded: str) -> None:
        found = self._piece.hexdigest()
        if found != recorded:
            span = f"bytes {self._begun:,} to {self._begun + self._taken:,}"
            place = Place(self._name, self._begun, None, f"xxh3 {recorded}", found)
            detail = f"the tokens of shard {key} ({span}) are not those that were written"
            raise Damage("checksum", detail, place)
        self._begun += self._taken
        self._piece, self._taken = xxhash.xxh3_64(), 0
        del self._pieces[0]

    def findings(self) -> list[Finding]:
        """What the checksums say at the end.

        Raises:
            Damage: the file's SHA-256 is not the recorded one.
        """
        recorded, found = self._expected.sha256, self._whole.hexdigest()
        if recorded and found != recorded:
            place = Place(self._name, None, None, f"sha256 {recorded[:16]}...", f"{found[:16]}...")
            raise Damage("checksum", "the tokens are not those that were written", place)
        shards = len(self._expected.pieces)
        each = f", and the xxh3 of {shards} shard{'s' if shards > 1 else ''}" if shards else ""
        return [Finding("checksum", "ok", f"sha256 as recorded{each}")] if recorded else []
