"""Packed rows on disk, in Megatron's own format: a row is a document, its examples are sequences.

Every row has exactly ``seq_length`` tokens, so ``PREFIX.bin`` is a matrix of (rows, seq_length).
What the examples leave free is one more sequence, of padding. Beside it ``PREFIX_loss_mask`` has a
u8 for every token: 1 where the token is to be predicted, by those in front of it in its example.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.data.indexed import IndexedWriter, bin_path, idx_path, read_header
from toolkit.data.pack.bestfit import Packing
from toolkit.data.pack.examples import Examples, Integers, Pair

MASK = "_loss_mask"
MASK_VALUES = 2
BLOCK = 1 << 22
"""Tokens in memory at a time."""


def mask_prefix(prefix: Path) -> Path:
    """``text_document`` to ``text_document_loss_mask``."""
    return prefix.with_name(prefix.name + MASK)


@dataclass
class Written:
    """What was written."""

    rows: int = 0
    tokens: int = 0
    """Of examples; the rest of the rows is padding."""
    trained_tokens: int = 0
    """Tokens that are predicted: those of mask 1 that are not the first of their example."""


def write_rows(
    examples: Examples,
    packing: Packing,
    seq_length: int,
    pad_id: int,
    target: Path,
    vocab_size: int,
    progress: Callable[[int], None],
) -> Written:
    """Copy the examples' tokens and masks into rows, a block of rows at a time.

    Args:
        target: prefix of the tokens; the mask's is ``mask_prefix(target)``.
        progress: told the number of rows written so far.

    Raises:
        DataError: a token id outside the vocabulary.
    """
    written = Written()
    step = max(1, BLOCK // seq_length)
    with (
        IndexedWriter(target, vocab_size) as tokens,
        IndexedWriter(mask_prefix(target), MASK_VALUES, np.uint8) as masks,
    ):
        for first in range(0, len(packing), step):
            starts = packing.starts[first : first + step + 1]
            chosen = packing.order[starts[0] : starts[-1]]
            block = _Block(examples, chosen, np.diff(starts), seq_length)
            row_tokens, row_masks = block.gather(examples.pairs, pad_id)
            lengths, sequences = block.sequences()
            tokens.write(row_tokens, lengths, sequences=sequences)
            masks.write(row_masks, lengths, sequences=sequences)
            written.rows += len(sequences)
            written.tokens += int(block.length.sum())
            written.trained_tokens += int(row_masks.sum()) - int(row_masks[block.begin].sum())
            progress(written.rows)
    return written


class _Stretches:
    """Stretches of one ``.bin``, read and not mapped: the kernel would map what lies around, too,
    and so by and by the whole file."""

    def __init__(self, prefix: Path) -> None:
        self.dtype = np.dtype(read_header(idx_path(prefix)).dtype)
        self._path = bin_path(prefix)

    def copy(self, places: Iterable[tuple[int, int, int]], target: npt.NDArray[Any]) -> None:
        """Copy each stretch (first token, place in the target, tokens) to its place."""
        size = self.dtype.itemsize
        with self._path.open("rb", buffering=0) as stream:
            for start, begin, length in places:
                found = os.pread(stream.fileno(), length * size, start * size)
                target[begin : begin + length] = np.frombuffer(found, self.dtype)


class _Block:
    """Some neighbouring rows: where each token comes from, and where it goes."""

    def __init__(
        self, examples: Examples, chosen: Integers, counts: Integers, seq_length: int
    ) -> None:
        self.counts, self.seq_length = counts, seq_length
        self.length = examples.length[chosen]
        self._pair, self._start = examples.pair[chosen], examples.start[chosen]
        ends = np.cumsum(self.length)
        before = np.concatenate([[0], ends])
        self._last = np.cumsum(counts)
        self.used = before[self._last] - before[self._last - counts]
        """Tokens of examples in each row."""
        free = np.cumsum(seq_length - self.used) - (seq_length - self.used)
        self.begin: Integers = ends - self.length + np.repeat(free, counts)
        """Each example's place in the block."""

    def sequences(self) -> tuple[Integers, Integers]:
        """Lengths of the sequences, padding last in its row, and how many each row has."""
        free = self.seq_length - self.used
        padded = free > 0
        lengths = np.insert(self.length, self._last[padded], free[padded])
        return lengths, self.counts + padded

    def gather(
        self, pairs: Sequence[Pair], pad_id: int
    ) -> tuple[npt.NDArray[np.integer[Any]], npt.NDArray[np.uint8]]:
        """The tokens and the mask of the rows, one row after another."""
        used = np.unique(self._pair).tolist()
        sources = {number: _Stretches(pairs[number].tokens) for number in used}
        size = len(self.counts) * self.seq_length
        tokens = np.full(size, pad_id, np.result_type(*(s.dtype for s in sources.values())))
        mask = np.zeros(size, np.uint8)
        for number, source in sources.items():
            own = self._pair == number
            arrays = (self._start[own], self.begin[own], self.length[own])
            places = list(zip(*(array.tolist() for array in arrays), strict=True))
            source.copy(places, tokens)
            trained = pairs[number].mask
            if trained is not None:
                _Stretches(trained).copy(places, mask)
            else:
                for _, begin, length in places:
                    mask[begin : begin + length] = 1
        return tokens, mask
