"""N-grams of words, as 64-bit hashes, and how much of a document repeats them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from toolkit.data.clean.words import Ints, Words

Hashes = npt.NDArray[np.uint64]
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
BEYOND_WORDS = 1 << 40
"""Numbers from here on are no ids of words: what they mix to is not a word's."""


def mixed(values: npt.NDArray[np.generic]) -> Hashes:
    """splitmix64 of numbers: equal for equal ones, and else as if drawn at random."""
    mix = (values.astype(np.uint64) + np.uint64(1)) * MULTIPLIER
    for shift, multiplier in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mix = (mix ^ (mix >> np.uint64(shift))) * np.uint64(multiplier)
    return mix ^ (mix >> np.uint64(31))


@dataclass
class Grams:
    """The n-grams of a batch of documents.

    An n-gram is known by the place of its first word among all words of the batch.
    """

    words: Words
    single: Hashes
    """Of each word."""
    ends: Ints
    """Where the document of each word ends."""
    documents: Ints
    """The document of each word."""
    characters: Ints
    """Characters of all words in front of each word, and of all."""

    @classmethod
    def of(cls, words: Words) -> Grams:
        """The n-grams of these words."""
        documents = words.documents()
        characters = np.zeros(len(words.ids) + 1, np.int64)
        np.cumsum(words.lengths[words.ids], out=characters[1:])
        return cls(words, mixed(words.ids), words.offsets[documents + 1], documents, characters)

    def select(self, some: npt.NDArray[np.bool_]) -> Grams:
        """Those of some of the documents."""
        return Grams.of(self.words.select(some))

    def hashes(self, n: int, start: int = 0, stop: int | None = None) -> Hashes:
        """Of the n-grams that begin in ``[start, stop)``, those across documents included."""
        single = self.single[start:stop]
        size = max(0, len(single) - n + 1)
        total = single[:size].copy()
        for offset in range(1, n):
            total *= MULTIPLIER
            total += single[offset : offset + size]
        return total

    def top_bound(self, n: int) -> Ints:
        """For each document the most characters, blanks included, that one n-gram makes."""
        hashes, places, documents = self._within(n)
        bound = np.zeros(len(self.words.offsets) - 1, np.int64)
        if not len(places):
            return bound
        order = np.argsort(hashes)
        ordered = hashes[order]
        begins = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
        counts = np.diff(np.append(begins, len(ordered)))
        one = order[begins]
        lengths = self.characters[places[one] + n] - self.characters[places[one]] + n - 1
        np.maximum.at(bound, documents[one], counts * lengths)
        return bound

    def top(self, document: int, n: int) -> int:
        """Characters that the most frequent n-gram makes; of equals the one that is first."""
        start, stop = self.words.offsets[document : document + 2].tolist()
        _, firsts, counts = np.unique(
            self.hashes(n, start, stop), return_index=True, return_counts=True
        )
        most = int(counts.max())
        place = start + int(firsts[counts == most].min())
        return most * int(self.characters[place + n] - self.characters[place] + n - 1)

    def repeated_bound(self, n: int) -> Ints:
        """For each document the characters in n-grams that it has twice: more than repeats them."""
        hashes, places, _ = self._within(n)
        order = np.argsort(hashes)
        ordered = hashes[order]
        equal = np.flatnonzero(ordered[1:] == ordered[:-1])
        twice = np.zeros(len(hashes), bool)
        twice[order[equal]] = twice[order[equal + 1]] = True
        return self.words.totals(self._covered(places[twice], n))

    def repeated(self, document: int, n: int, most: float) -> int:
        """Characters in n-grams that were there before, read from the left without overlap.

        An n-gram that begins within one that was counted doesn't count as having been there.
        Stops counting beyond ``most``.
        """
        start, stop = self.words.offsets[document : document + 2].tolist()
        first = _first_equal(self.hashes(n, start, stop))
        again = np.flatnonzero(first < np.arange(len(first)))
        lengths = self.characters[start + again + n] - self.characters[start + again]
        skipped, seen = bytearray(len(first) + n), set[int]()
        total = free = 0
        entries = zip(again.tolist(), first[again].tolist(), lengths.tolist(), strict=True)
        for place, origin, length in entries:
            if place < free:
                continue
            if skipped[origin] and origin not in seen:
                seen.add(origin)
                continue
            total += length
            if total > most:
                break
            free = place + n
            skipped[place + 1 : free] = b"\1" * (n - 1)
        return total

    def _within(self, n: int) -> tuple[Hashes, Ints, Ints]:
        """Hashes, places and documents of the n-grams that lie in one document.

        Equal n-grams of different documents have different hashes.
        """
        hashes = self.hashes(n)
        places = np.flatnonzero(np.arange(n, n + len(hashes)) <= self.ends[: len(hashes)])
        documents = self.documents[places]
        seeds = mixed(BEYOND_WORDS + np.arange(len(self.words.offsets)))
        return hashes[places] + seeds[documents], places, documents

    def _covered(self, places: Ints, n: int) -> Ints:
        """Characters of each word that lies in one of these n-grams; 0 of the others."""
        changes = np.zeros(len(self.single) + 1, np.int32)
        changes[places] = 1
        changes[places + n] -= 1
        inside = np.cumsum(changes[:-1]) > 0
        covered: Ints = np.where(inside, np.diff(self.characters), 0)
        return covered


def _first_equal(hashes: Hashes) -> Ints:
    """For each hash the place of the first one that is equal to it."""
    order = np.argsort(hashes)
    ordered = hashes[order]
    begins = np.concatenate(([True], ordered[1:] != ordered[:-1]))
    firsts = np.minimum.reduceat(order, np.flatnonzero(begins))
    found = np.empty_like(order)
    found[order] = firsts[np.cumsum(begins) - 1]
    return found
