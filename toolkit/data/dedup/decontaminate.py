"""Which documents hold an n-gram of an evaluation's items, and which items those are.

The n-grams of documents are looked up by their hashes, then compared word by word: a document is
never removed for a collision. After GPT-3 (Brown et al. 2020, appendix C).
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.data.dedup.arrays import mapped
from toolkit.data.dedup.evaluations import DESCRIPTION, GRAM, GRAMS, ITEMS, WORDS
from toolkit.data.dedup.shingles import ngram_hashes
from toolkit.data.dedup.words import Hashes, Offsets, Words, batches, split_words

LOAD = 64
"""Places in the table of possible hashes for each n-gram of the index."""
TABLE_BITS = 24
"""Of the largest table: 16 MB."""
EXAMPLES = 10
"""Contaminated items that the report names, for each file."""


@dataclass(frozen=True)
class Contamination:
    """What a document shares with evaluation data."""

    evaluation: str
    """The file of the first item that it shares an n-gram with."""
    where: str
    """That item: ``gsm8k_test.jsonl:17``."""
    ngram: str
    """The words that they share, in lower case and without punctuation."""
    items: tuple[int, ...]
    """The numbers of all items that the document shares an n-gram with: see ``report``."""
    matches: int
    """How many different n-grams it shares."""

    @property
    def reason(self) -> str:
        """Why the document is removed, in words."""
        return f"contaminated: shares {self.ngram!r} with {self.where}"


@dataclass
class _Hits:
    """What was found in one document so far."""

    grams: dict[int, None]
    """The first of the index's rows for each n-gram, in the order of the document."""
    items: set[int]
    whole: bool = False
    """Whether a short item is in the document, as a whole."""


class EvaluationIndex:
    """An index that ``write_index`` made, opened; ``load_index`` keeps it open.

    Args:
        folder: where the index is.
    """

    def __init__(self, folder: Path) -> None:
        described = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        self._files: list[str] = described["files"]
        self._lengths: list[int] = described["lengths"]
        self._ngram, self._min_words = described["ngram"], described["min_words"]
        self._min_matches = described["min_matches"]
        self._grams = mapped(folder / GRAMS, GRAM)
        self._hashes = np.ascontiguousarray(self._grams["hash"])
        self._words = mapped(folder / WORDS, np.uint8)
        self._items = mapped(folder / ITEMS, np.uint32).reshape(-1, 3)
        self._shift, self._table = _table(self._hashes)
        self._known: dict[tuple[int, bytes], list[int]] = {}
        """What ``_rows`` found: boilerplate is in many items, and often in a document."""

    def find(self, texts: Sequence[str]) -> list[Contamination | None]:
        """For each text, what it shares with the evaluations; None where it is clean."""
        return [found for batch in batches(texts) for found in self._find(split_words(batch))]

    def report(self, items: Iterable[int]) -> dict[str, dict[str, Any]]:
        """By evaluation file: items, how many are contaminated, and how many too short to tell.

        Args:
            items: numbers from ``Contamination.items``, of all documents.
        """
        dirty = np.unique(np.fromiter(items, np.int64))
        report = {}
        for number, name in enumerate(self._files):
            mine = self._items[self._items[:, 0] == number]
            found = dirty[self._items[dirty, 0] == number]
            report[name] = {
                "items": len(mine),
                "contaminated": len(found),
                "too_short": int((mine[:, 2] < self._min_words).sum()),
                "examples": [self._where(item) for item in found[:EXAMPLES].tolist()],
            }
        return report

    def _find(self, words: Words) -> list[Contamination | None]:
        units = words.hashes()
        found: dict[int, _Hits] = {}
        for n in self._lengths:
            places, firsts = self._look_up(ngram_hashes(units, n))
            documents = np.searchsorted(words.offsets, places, side="right") - 1
            within = places + n <= words.offsets[documents + 1]
            columns = (documents[within], places[within], firsts[within])
            for document, place, first in zip(*(c.tolist() for c in columns), strict=True):
                rows = self._rows(first, words.joined(place, place + n))
                self._note(found, document, rows, n)
        return [self._verdict(found.get(d)) for d in range(len(words.offsets) - 1)]

    def _look_up(self, grams: Hashes) -> tuple[Offsets, Offsets]:
        """Where there are hashes that the index has, and the first of its rows that has each."""
        places = np.flatnonzero(self._table[grams >> self._shift])
        firsts = np.searchsorted(self._hashes, grams[places])
        there = self._hashes[np.minimum(firsts, len(self._hashes) - 1)] == grams[places]
        return places[there], firsts[there]

    def _rows(self, first: int, text: bytes) -> list[int]:
        """The index's rows that have the hash of row ``first``, and these words."""
        key = int(first), text
        if key not in self._known:
            rows = itertools.takewhile(
                lambda row: self._hashes[row] == self._hashes[first],
                range(first, len(self._hashes)),
            )
            self._known[key] = [row for row in rows if self._text(row) == text]
        return self._known[key]

    def _note(self, found: dict[int, _Hits], document: int, rows: list[int], n: int) -> None:
        if not rows:
            return
        hits = found.setdefault(document, _Hits({}, set()))
        if rows[0] not in hits.grams:
            hits.grams[rows[0]] = None
            hits.items.update(self._grams["item"][rows].tolist())
            hits.whole = hits.whole or n < self._ngram

    def _verdict(self, hits: _Hits | None) -> Contamination | None:
        if hits is None or not (hits.whole or len(hits.grams) >= self._min_matches):
            return None
        row = next(iter(hits.grams))
        item = int(self._grams["item"][row])
        return Contamination(
            self._files[self._items[item, 0]],
            self._where(item),
            self._text(row).decode("utf-8", "replace"),
            tuple(sorted(hits.items)),
            len(hits.grams),
        )

    def _text(self, row: int) -> bytes:
        return self._words[self._grams["begin"][row] : self._grams["end"][row]].tobytes()

    def _where(self, item: int) -> str:
        file, number, _ = self._items[item].tolist()
        return f"{self._files[file]}:{number}"


@functools.lru_cache(maxsize=2)
def load_index(folder: Path) -> EvaluationIndex:
    """The index in a folder; opened once in a process."""
    return EvaluationIndex(folder)


def _table(hashes: Hashes) -> tuple[np.uint64, npt.NDArray[np.bool_]]:
    """Which leading bits of hashes occur, and by how much to shift a hash to look it up."""
    bits = min(max((LOAD * len(hashes)).bit_length(), 10), TABLE_BITS)
    shift = np.uint64(64 - bits)
    table = np.zeros(1 << bits, np.bool_)
    table[hashes >> shift] = True
    return shift, table
