"""Checks of an index that names a part of its ``.bin``, as splits of a corpus do.

Such an index shares the tokens of another dataset (its ``.bin`` is a link), so its offsets are no
sums of its lengths: they must lie within the file, and where the other index is found, within its
sequences.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from toolkit.data.examine.findings import Damage, Finding, Place
from toolkit.data.examine.index_checks import Index, Int64, spans
from toolkit.data.indexed import IndexedReader, whole_of
from toolkit.errors import DataError


class _Spans(NamedTuple):
    """Some of an index's sequences, as bytes of the ``.bin``."""

    first: int
    begins: Int64
    ends: Int64


def check_subset(index: Index) -> Finding:
    """Every sequence lies in the ``.bin``, at a whole token, and within one of the parent's.

    Raises:
        Damage: at the first that doesn't.
    """
    whole = _open_whole(index.prefix)
    parts = used = 0
    for start, stop in spans(index.header.sequences):
        begins = index.offsets(start, stop)
        found = _Spans(
            start, begins, begins + index.lengths(start, stop) * np.int64(index.itemsize)
        )
        _within_file(index, found)
        if whole is not None:
            parts += _within_parent(index, found, whole)
        used += int((found.ends - found.begins).sum())
    share = f"{used / index.bin_size:.1%}" if index.bin_size else "0 bytes"
    detail = f"not contiguous: the index names {share} of a shared .bin"
    if whole is not None:
        detail += f", within the sequences of {whole.header.sequences:,}"
    if parts:
        detail += f"; {parts:,} {'is a part' if parts == 1 else 'are parts'} of a longer one"
    return Finding("offsets", "note", detail)


def _within_file(index: Index, spans_: _Spans) -> None:
    begins, ends = spans_.begins, spans_.ends
    wrong = (begins < 0) | (begins > index.bin_size) | (begins % index.itemsize != 0)
    wrong |= ends > index.bin_size
    if wrong.any():
        at = int(np.argmax(wrong))
        expected = f"a multiple of {index.itemsize} that ends by {index.bin_size:,}"
        raise _bad_offset(index, spans_, at, expected, "outside the .bin, or within a token")


def _within_parent(index: Index, spans_: _Spans, whole: IndexedReader) -> int:
    """How many sequences are parts of longer ones."""
    filled = spans_.ends > spans_.begins
    at = np.searchsorted(whole.offsets, spans_.begins, side="right") - 1
    at = np.clip(at, 0, max(len(whole) - 1, 0))
    begins = whole.offsets[at]
    ends = begins + whole.lengths[at] * np.int64(index.itemsize)
    wrong = filled & ((spans_.begins < begins) | (spans_.ends > ends))
    if wrong.any():
        bad = int(np.argmax(wrong))
        expected = f"within bytes {begins[bad]:,} to {ends[bad]:,}"
        raise _bad_offset(index, spans_, bad, expected, "not within one sequence of the whole")
    return int(np.count_nonzero(filled & ((spans_.begins > begins) | (spans_.ends < ends))))


def _bad_offset(index: Index, spans_: _Spans, at: int, expected: str, what: str) -> Damage:
    sequence = spans_.first + at
    place = Place(
        index.name,
        index.offsets_at + 8 * sequence,
        index.document_of(sequence),
        expected,
        f"{spans_.begins[at]:,} to {spans_.ends[at]:,}",
    )
    return Damage("offsets", f"sequence {sequence:,} is {what}", place)


def _open_whole(prefix: Path) -> IndexedReader | None:
    """The dataset that this one's ``.bin`` belongs to, if it is whole itself."""
    whole = whole_of(prefix)
    try:
        return None if whole is None else IndexedReader(whole)
    except DataError:
        return None
