"""Checks of an ``.idx`` file: every byte of it is read, in blocks, and must agree with the rest.

What agrees with nothing can't be checked: where the documents of several sequences begin, and the
modes of multimodal data. A manifest's checksum covers those.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.data.examine.findings import Damage, Finding, Place
from toolkit.data.indexed import HEADER, IndexHeader, bin_path, idx_path, read_header
from toolkit.errors import DataError

CHUNK = 1 << 20
"""Sequences, or documents, at a time."""
SENTENCES = "_sentence"
"""What Megatron's ``preprocess_data.py`` ends a prefix with where a sequence is a sentence."""
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Index:
    """The arrays of an index, read a piece at a time."""

    prefix: Path
    header: IndexHeader

    @cached_property
    def itemsize(self) -> int:
        """Bytes of a token."""
        return np.dtype(self.header.dtype).itemsize

    @cached_property
    def bin_size(self) -> int:
        """Bytes of the ``.bin``."""
        return bin_path(self.prefix).stat().st_size

    @cached_property
    def path(self) -> Path:
        """The ``.idx``."""
        return idx_path(self.prefix)

    @property
    def name(self) -> str:
        """The file's name, for messages."""
        return self.path.name

    @property
    def offsets_at(self) -> int:
        """Where the byte offsets begin in the file."""
        return HEADER.size + 4 * self.header.sequences

    @property
    def boundaries_at(self) -> int:
        """Where the document boundaries begin in the file."""
        return self.offsets_at + 8 * self.header.sequences

    def lengths(self, start: int, stop: int) -> npt.NDArray[np.int32]:
        """Tokens of the sequences ``start`` to ``stop``."""
        return np.fromfile(self.path, np.int32, stop - start, offset=HEADER.size + 4 * start)

    def offsets(self, start: int, stop: int) -> Int64:
        """Byte offsets of the sequences ``start`` to ``stop``."""
        return np.fromfile(self.path, np.int64, stop - start, offset=self.offsets_at + 8 * start)

    def boundaries(self, start: int, stop: int) -> Int64:
        """The first sequence of each document; the last one of all is the number of sequences."""
        at = self.boundaries_at + 8 * start
        return np.fromfile(self.path, np.int64, stop - start, offset=at)

    def document_of(self, sequence: int) -> int | None:
        """The document that a sequence is in, by halving; None where the boundaries are damaged."""
        low, high = 0, self.header.documents
        while low < high:
            middle = (low + high) // 2
            if int(self.boundaries(middle + 1, middle + 2)[0]) <= sequence:
                low = middle + 1
            else:
                high = middle
        return low if low < self.header.documents else None

    def document_at(self, position: int) -> int | None:
        """The document that a byte of a contiguous ``.bin`` is in."""
        low, high = 0, self.header.sequences
        while low < high:
            middle = (low + high) // 2
            length = int(self.lengths(middle, middle + 1)[0])
            end = int(self.offsets(middle, middle + 1)[0]) + length * self.itemsize
            low, high = (middle + 1, high) if end <= position else (low, middle)
        return self.document_of(low)


def spans(count: int, step: int = CHUNK) -> Iterator[tuple[int, int]]:
    """``(0, step), (step, 2 * step), ...`` up to ``count``."""
    for start in range(0, count, step):
        yield start, min(start + step, count)


def check_header(prefix: Path) -> tuple[Index, Finding]:
    """The first 34 bytes, and whether the file has the size that they imply.

    Raises:
        Damage: it is no index, or has another size.
    """
    path = idx_path(prefix)
    size = path.stat().st_size
    try:
        header = read_header(path)
    except DataError as error:
        offset = _bad_header_byte(path)
        raise Damage("header", error.message, Place(path.name, offset)) from error
    count, whole = header.sequences, header.size
    if size not in (whole, whole + count):
        equation = f"34 + 12 x {count:,} sequences + 8 x {header.documents + 1:,} boundaries"
        raise Damage(
            "size equation",
            f"the header asks for {equation} = {whole:,} bytes, there are {size:,}",
            Place(path.name, min(size, whole), None, f"{whole:,} bytes", f"{size:,} bytes"),
        )
    dtype = np.dtype(header.dtype).name
    detail = f"version 1, {dtype}, {count:,} sequences, {header.documents:,} documents"
    return Index(prefix, header), Finding("header", "ok", detail)


def _bad_header_byte(path: Path) -> int:
    """The first byte of a header that can't be right."""
    raw = path.open("rb").read(HEADER.size)
    good = b"MMIDIDX\x00\x00" + (1).to_bytes(8, "little")
    return next((i for i, (a, b) in enumerate(zip(raw, good, strict=False)) if a != b), 17)


def check_lengths(index: Index) -> Finding:
    """No sequence has fewer than 0 tokens.

    Raises:
        Damage: at the first that has.
    """
    total, longest, empty = 0, 0, 0
    for start, stop in spans(index.header.sequences):
        lengths = index.lengths(start, stop)
        if lengths.min() < 0:
            bad = start + int(np.argmax(lengths < 0))
            found = int(lengths[bad - start])
            raise _bad_length(index, bad, "0 or more", found, "a sequence of fewer than 0 tokens")
        total += int(lengths.sum(dtype=np.int64))
        longest = max(longest, int(lengths.max()))
        empty += int(np.count_nonzero(lengths == 0))
    without = f", {empty:,} empty" if empty else ""
    return Finding("lengths", "ok", f"{total:,} tokens, {longest:,} in the longest{without}")


def _bad_length(index: Index, sequence: int, expected: Any, found: Any, what: str) -> Damage:
    offset = HEADER.size + 4 * sequence
    place = Place(index.name, offset, index.document_of(sequence), str(expected), str(found))
    return Damage("lengths", f"{what}: length of sequence {sequence:,}", place)


def check_offsets(index: Index) -> Finding:
    """Each sequence begins where the one before it ends, and the last ends where the ``.bin`` does.

    Raises:
        Damage: at the length or the offset that doesn't fit.
    """
    end = 0
    for start, stop in spans(index.header.sequences):
        expected = (
            end
            + np.concatenate(
                [np.zeros(1, np.int64), np.cumsum(index.lengths(start, stop), dtype=np.int64)]
            )
            * index.itemsize
        )
        offsets = index.offsets(start, stop)
        wrong = offsets != expected[:-1]
        if wrong.any():
            bad = start + int(np.argmax(wrong))
            raise _blame(index, bad, int(expected[bad - start]), int(offsets[bad - start]))
        end = int(expected[-1])
    if end != index.bin_size:
        raise _wrong_bin_size(index, end)
    return Finding("offsets", "ok", "each is the sum of the lengths before it")


def _blame(index: Index, sequence: int, expected: int, found: int) -> Damage:
    """Whether an offset is wrong, or the length before it: then those behind are off as much."""
    off = found - expected
    if sequence:
        before = int(index.lengths(sequence - 1, sequence)[0])
        right, rest = divmod(off, index.itemsize)
        if not rest and before + right >= 0 and off == _off_behind(index, sequence, expected):
            what = "the offsets behind it ask for another one"
            return _bad_length(index, sequence - 1, before + right, before, what)
    place = Place(
        index.name,
        index.offsets_at + 8 * sequence,
        index.document_of(sequence),
        str(expected),
        str(found),
    )
    detail = f"offset of sequence {sequence:,} is not the sum of the lengths before it"
    return Damage("offsets", detail, place)


def _off_behind(index: Index, sequence: int, expected: int) -> int:
    """By how much the offset (or the file's end) behind ``sequence`` is off."""
    end = expected + int(index.lengths(sequence, sequence + 1)[0]) * index.itemsize
    if sequence + 1 < index.header.sequences:
        return int(index.offsets(sequence + 1, sequence + 2)[0]) - end
    return index.bin_size - end


def _wrong_bin_size(index: Index, needed: int) -> Damage:
    size = index.bin_size
    difference = f"{needed - size:,} missing" if size < needed else f"{size - needed:,} too many"
    document = index.document_at(size) if size < needed else None
    expected, found = f"{needed:,} bytes", f"{size:,}"
    place = Place(bin_path(index.prefix).name, min(size, needed), document, expected, found)
    what = f"the .bin has {size:,} bytes, its index says {needed:,}: {difference}"
    return Damage(".bin size", what, place)


def check_boundaries(index: Index) -> Finding:
    """The documents begin at sequence 0, never fall, and end at the last sequence.

    Where there are as many documents as sequences, each must have one: a document of two beside
    an empty one is an accident, except among sentences.

    Raises:
        Damage: at the first boundary that is wrong.
    """
    count, documents = index.header.sequences, index.header.documents
    plain = documents == count and not index.prefix.name.endswith(SENTENCES)
    before, empty = 0, 0
    for start, stop in spans(documents + 1):
        found = index.boundaries(start, stop)
        steps = np.diff(found, prepend=before)
        expected = np.arange(start, stop) if plain else None
        wrong = found != expected if plain else (steps < 0) | (found > count)
        if start == 0:
            wrong[0] = found[0] != 0
        if stop == documents + 1:
            wrong[-1] |= found[-1] != count
        if wrong.any():
            at = int(np.argmax(wrong))
            low = int(found[at - 1]) if at else before
            raise _bad_boundary(index, start + at, int(found[at]), low, plain)
        empty += int(np.count_nonzero(steps == 0)) - (start == 0)
        before = int(found[-1])
    if empty:
        return Finding("documents", "note", f"{empty:,} of {documents:,} have no sequence at all")
    detail = f"{count:,} sequences in {documents:,} documents"
    return Finding("documents", "ok", "one sequence each" if plain else detail)


def _bad_boundary(index: Index, number: int, found: int, before: int, plain: bool) -> Damage:
    count, documents = index.header.sequences, index.header.documents
    expected = f"{before:,} to {count:,}"
    if number == 0 or number == documents:
        expected = f"{0 if number == 0 else count:,}"
    elif plain:
        expected = f"{number:,}"
    place = Place(
        index.name,
        index.boundaries_at + 8 * number,
        min(number, max(documents - 1, 0)),
        expected,
        f"{found:,}",
    )
    return Damage("documents", f"boundary {number:,} of the documents is wrong", place)


def check_modes(index: Index) -> Finding | None:
    """The modes of multimodal data, where the file has room for them; they are 0 or more.

    Raises:
        Damage: at the first that is negative: bytes were appended to the file.
    """
    size, whole = idx_path(index.prefix).stat().st_size, index.header.size
    if size == whole:
        return None
    modes = np.memmap(idx_path(index.prefix), np.int8, "r", whole)
    if modes.min() < 0:
        bad = int(np.argmax(modes < 0))
        place = Place(index.name, whole + bad, None, "0 or more", str(int(modes[bad])))
        raise Damage("modes", "bytes behind the index that are no modes", place)
    kinds = len(np.unique(modes[:CHUNK]))
    detail = f"{len(modes):,} bytes behind the boundaries: {kinds} modes of multimodal data"
    return Finding("modes", "note", detail)
