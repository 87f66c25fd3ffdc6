"""The words of many documents as numbers: each distinct chunk of text is split once.

Natural text repeats itself (Zipf), so splitting is a look-up in a dictionary for all but a few
chunks. Words come out as ids, and all that filters ask of a word (its length, whether it has a
letter) is known per id: everything else is arithmetic on arrays.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.data.clean.characters import PUNCTUATION, SENTENCE_ENDS, is_punctuation
from toolkit.data.clean.splitting import split_chunk

Ints = npt.NDArray[np.int64]
Ids = npt.NDArray[np.int32]

MOST_CHUNKS = 1 << 20
"""Distinct chunks that are remembered, in some 200 MB; beyond it the memory starts anew."""

SYMBOL, ALPHA, ENDS, PUNCTUATES = 1, 2, 4, 8
"""What a word is: of punctuation alone (datatrove's list); with a letter; the end of a sentence;
of punctuation alone (Unicode's category P)."""


class Column:
    """An array that grows."""

    def __init__(self, dtype: type[np.generic]) -> None:
        self._values = np.zeros(1 << 12, dtype)
        self.size = 0

    def extend(self, values: Sequence[int]) -> None:
        """Append values."""
        size = self.size + len(values)
        if size > len(self._values):
            grown = np.zeros(max(size, 2 * len(self._values)), self._values.dtype)
            grown[: self.size] = self._values[: self.size]
            self._values = grown
        self._values[self.size : size] = values
        self.size = size

    @property
    def values(self) -> npt.NDArray[Any]:
        """What is there now; later values are not seen through it."""
        return self._values[: self.size]


class _Numbered(dict[str, int]):
    """Gives every new key the next number, and keeps the new ones in order."""

    def __init__(self) -> None:
        super().__init__()
        self._new: list[str] = []

    def __missing__(self, key: str) -> int:
        number = self[key] = len(self)
        self._new.append(key)
        return number

    def take_new(self) -> list[str]:
        """The keys that are new since the last time."""
        new, self._new = self._new, []
        return new


@dataclass(frozen=True)
class Words:
    """The words of a batch of documents, one after another."""

    ids: Ids
    """Of equal words equal, as long as they are of one batch."""
    offsets: Ints
    """Where each document's words begin, and where the last one's end."""
    lengths: npt.NDArray[np.int32]
    """Characters, by id."""
    kinds: npt.NDArray[np.uint8]
    """Flags (``SYMBOL`` ...), by id."""
    numbers: dict[str, int]
    """The id of each word that the vocabulary has."""

    @property
    def counts(self) -> Ints:
        """Words of each document."""
        return np.diff(self.offsets)

    def documents(self) -> Ints:
        """The number of its document, for each word."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.counts)

    def totals(self, values: npt.NDArray[np.generic]) -> Ints:
        """Sums over the words of each document, of a value for each word."""
        sums = np.zeros(len(values) + 1, np.int64)
        np.cumsum(values, out=sums[1:])
        return sums[self.offsets[1:]] - sums[self.offsets[:-1]]

    def select(self, kept: npt.NDArray[np.bool_]) -> Words:
        """The words of some of the documents."""
        counts = self.counts
        offsets = np.concatenate(([0], np.cumsum(counts[kept])))
        ids = self.ids[np.repeat(kept, counts)]
        return Words(ids, offsets, self.lengths, self.kinds, self.numbers)


class Splitter:
    """Splits texts into words, and remembers how."""

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._chunks = _Numbered()
        self._numbers = _Numbered()
        self._first, self._count = Column(np.int64), Column(np.int64)
        self._words = Column(np.int32)
        self._lengths, self._kinds = Column(np.int32), Column(np.uint8)

    def split(self, texts: Iterable[str]) -> Words:
        """The words of texts."""
        if len(self._chunks) > MOST_CHUNKS:
            self._forget()
        split = [text.split() for text in texts]
        sizes = np.fromiter(map(len, split), np.int64, len(split))
        numbers = map(self._chunks.__getitem__, itertools.chain.from_iterable(split))
        chunks = np.fromiter(numbers, np.int64, int(sizes.sum()))
        self._learn()
        ids, ends = self._expand(chunks)
        offsets = np.concatenate(([0], ends))[np.concatenate(([0], np.cumsum(sizes)))]
        lengths, kinds = self._lengths.values, self._kinds.values
        return Words(ids, offsets, lengths, kinds, self._numbers)

    def _learn(self) -> None:
        """Split the chunks that were not met before."""
        counts: list[int] = []
        words: list[str] = []
        for chunk in self._chunks.take_new():
            parts = split_chunk(chunk)
            counts.append(len(parts))
            words += parts
        firsts = itertools.accumulate(counts[:-1], initial=self._words.size)
        self._first.extend(list(firsts)[: len(counts)])
        self._count.extend(counts)
        self._words.extend(list(map(self._numbers.__getitem__, words)))
        new = self._numbers.take_new()
        self._lengths.extend([len(word) for word in new])
        self._kinds.extend([_kind(word) for word in new])

    def _expand(self, chunks: Ints) -> tuple[Ids, Ints]:
        """The words of chunks, and how many there are up to each chunk's end."""
        counts = self._count.values[chunks]
        ends = np.cumsum(counts)
        firsts = self._first.values[chunks] - (ends - counts)
        places = np.repeat(firsts, counts)
        places += np.arange(len(places))
        return self._words.values[places], ends


def _kind(word: str) -> int:
    if word.isalpha():
        return ALPHA
    kind = SYMBOL if PUNCTUATION.issuperset(word) else 0
    kind |= ALPHA if any(map(str.isalpha, word)) else 0
    kind |= ENDS if word in SENTENCE_ENDS else 0
    return kind | (PUNCTUATES if is_punctuation(word) else 0)
