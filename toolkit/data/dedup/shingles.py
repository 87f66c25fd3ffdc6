"""Shingles: the hashed n-grams of documents, as one array with offsets.

The hash of an n-gram is a polynomial in the hashes of its units (words or characters), mod 2**64,
mixed. A document of fewer units than n is one shingle of them all; one of none has no shingle.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from toolkit.data.dedup.arrays import distinct
from toolkit.data.dedup.config import NearDedupSettings
from toolkit.data.dedup.words import BLANK, Hashes, Offsets, Words, mix, split_words

_BASE = np.uint64(0x2545F4914F6CDD1D)
_LENGTH = np.uint64(0xD6E8FEB86659FD93)


@dataclass(frozen=True)
class Shingles:
    """The hashed n-grams of documents, in their order, repeated ones too."""

    hashes: Hashes
    offsets: Offsets
    """int64[documents + 1]: those of document d are ``offsets[d]`` to ``offsets[d + 1]``."""

    @property
    def counts(self) -> Offsets:
        """Shingles of each document."""
        return np.diff(self.offsets)

    def sets(self) -> list[Hashes]:
        """Of each document, its different shingles, sorted."""
        bounds = self.offsets.tolist()
        return [distinct(self.hashes[a:b]) for a, b in itertools.pairwise(bounds)]


def shingle(texts: Sequence[str], settings: NearDedupSettings) -> Shingles:
    """The shingles of texts as settings want them."""
    words = split_words(texts)
    if settings.unit == "words":
        return shingles_of(words.hashes(), words.offsets, settings.ngram)
    return shingles_of(*_characters(words), settings.ngram)


def shingles_of(units: Hashes, offsets: Offsets, n: int) -> Shingles:
    """The n-grams of documents whose hashed units are ``offsets[d]`` to ``offsets[d + 1]``."""
    counts = np.diff(offsets)
    grams = np.zeros(len(units), np.uint64)
    whole = max(len(units) - n + 1, 0)
    grams[:whole] = ngram_hashes(units, n)
    valid = np.ones(len(units), np.bool_)
    tails = offsets[1:, None] - np.arange(1, n)[None, :]
    valid[tails[tails >= offsets[:-1, None]]] = False
    short = np.flatnonzero((counts > 0) & (counts < n))
    for length in np.unique(counts[short]).tolist():
        first = offsets[short[counts[short] == length]]
        grams[first] = _polynomial([units[first + j] for j in range(length)])
        valid[first] = True
    held = np.where(counts >= n, counts - n + 1, np.minimum(counts, 1))
    return Shingles(grams[valid], np.concatenate(([0], np.cumsum(held))))


def ngram_hashes(units: Hashes, n: int) -> Hashes:
    """The hash of every run of n units, whatever documents they belong to; u64[units - n + 1]."""
    whole = len(units) - n + 1
    if whole <= 0:
        return np.zeros(0, np.uint64)
    return _polynomial([units[j : j + whole] for j in range(n)])


def _polynomial(columns: Sequence[Hashes]) -> Hashes:
    """Row by row, the hash of the sequence that the columns hold; its length goes into it."""
    result = np.full(len(columns[0]), len(columns), np.uint64) * _LENGTH
    for column in columns:
        result *= _BASE
        result += column
    return mix(result)


def _characters(words: Words) -> tuple[Hashes, Offsets]:
    """A hash of each character of the words, and of the one blank between two of them."""
    raw = np.frombuffer(words.buffer, np.uint8)
    kept = raw != BLANK
    kept[1:] |= kept[:-1].copy()  # a word, and the blank behind it
    codes = np.frombuffer(raw[kept].tobytes().decode().encode("utf-32-le"), np.dtype("<u4"))
    before = np.append(0, np.cumsum(kept & (raw & 0xC0 != 0x80)))
    worded = np.diff(words.offsets) > 0
    first, last = words.offsets[:-1][worded], words.offsets[1:][worded] - 1
    begins, ends = before[words.starts[first]], before[words.ends[last]]
    counts = np.zeros(len(worded), np.int64)
    counts[worded] = ends - begins
    hashes = mix(codes.astype(np.uint64) * _BASE)
    return np.delete(hashes, ends), np.append(0, np.cumsum(counts))
