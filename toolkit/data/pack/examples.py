"""Examples: where the documents of indexed datasets lie, and what becomes of the too long ones.

Only numbers are kept in memory, 24 bytes an example; tokens stay on disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from toolkit.data.indexed import IndexedReader, bin_path, idx_path
from toolkit.errors import DataError

Integers = npt.NDArray[np.int64]
Overflow = Literal["error", "truncate", "split"]


@dataclass(frozen=True)
class Pair:
    """A ``.bin``/``.idx`` pair of tokens, and the one of its loss mask."""

    tokens: Path
    mask: Path | None = None
    """None: every token is trained."""


@dataclass(frozen=True)
class Examples:
    """Stretches of tokens in pairs; three arrays of one length."""

    pairs: tuple[Pair, ...]
    pair: Integers
    """Which pair an example is in."""
    start: Integers
    """Its first token, counted from the beginning of the ``.bin``."""
    length: Integers

    def __len__(self) -> int:
        return len(self.length)

    @property
    def tokens(self) -> int:
        """Tokens of all examples."""
        return int(self.length.sum())


def documents_of(pairs: Sequence[Pair]) -> Examples:
    """Every document that has a token, in order; one of several sequences is one example.

    Raises:
        DataError: a file is damaged, or its documents don't lie one after another.
    """
    numbers, starts, lengths = [], [], []
    for number, pair in enumerate(pairs):
        bounds = document_bounds(pair.tokens)
        length = np.diff(bounds)
        numbers.append(np.full(int((length > 0).sum()), number, np.int64))
        starts.append(bounds[:-1][length > 0])
        lengths.append(length[length > 0])
    return Examples(
        tuple(pairs), np.concatenate(numbers), np.concatenate(starts), np.concatenate(lengths)
    )


def document_bounds(prefix: Path) -> Integers:
    """Where documents begin and end in the ``.bin``: (documents + 1,), counted in tokens.

    Raises:
        DataError: the index doesn't list the tokens in the order of the ``.bin``.
    """
    reader = IndexedReader(prefix)
    ends = np.zeros(len(reader) + 1, np.int64)
    np.cumsum(reader.lengths, dtype=np.int64, out=ends[1:])
    if not np.array_equal(ends[:-1] * np.dtype(reader.header.dtype).itemsize, reader.offsets):
        raise DataError(
            f"the index doesn't list the sequences in the order of {bin_path(prefix).name}",
            where=str(idx_path(prefix)),
            hint="tokenize or merge again; only whole files in order can be cut and packed",
        )
    found: Integers = ends[reader.document_indices]
    return found


@dataclass(frozen=True)
class Fitted:
    """Examples of which none is longer than a row."""

    examples: Examples
    overlong: int = 0
    """Examples that were longer than a row."""
    lost_tokens: int = 0
    """Tokens cut off."""


def fit(examples: Examples, seq_length: int, overflow: Overflow) -> Fitted:
    """Apply the overflow policy.

    Raises:
        DataError: with ``error``, and an example is too long; says what the others would do.
    """
    over = np.maximum(examples.length - seq_length, 0)
    overlong, lost = int((over > 0).sum()), int(over.sum())
    if not overlong:
        return Fitted(examples)
    if overflow == "error":
        raise too_long(overlong, len(examples), int(examples.length.max()), seq_length, lost)
    if overflow == "truncate":
        kept = np.minimum(examples.length, seq_length)
        return Fitted(Examples(examples.pairs, examples.pair, examples.start, kept), overlong, lost)
    return Fitted(_pieces(examples, seq_length), overlong)


def too_long(
    overlong: int, examples: int, longest: int, seq_length: int, lost: int, where: str | None = None
) -> DataError:
    """What ``overflow: error`` says."""
    return DataError(
        f"{overlong:,} of {examples:,} examples are longer than a row of {seq_length:,} tokens;"
        f" the longest has {longest:,}",
        where=where,
        hint=f"raise seq_length, or set overflow: truncate ({lost:,} tokens would be lost) or"
        " split (pieces that don't see one another)",
    )


def _pieces(examples: Examples, seq_length: int) -> Examples:
    """Every example in pieces of ``seq_length`` tokens, the last one shorter."""
    counts = -(-examples.length // seq_length)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    begun = number * seq_length
    return Examples(
        examples.pairs,
        np.repeat(examples.pair, counts),
        np.repeat(examples.start, counts) + begun,
        np.minimum(np.repeat(examples.length, counts) - begun, seq_length),
    )
