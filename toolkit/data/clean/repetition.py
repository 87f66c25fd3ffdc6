"""Gopher's repetition rules: ``datatrove/pipeline/filters/gopher_repetition_filter.py``.

Most documents repeat little, and bounds that cost one sort show it; the figures themselves are
computed for the others alone. N-grams are compared by 64-bit hashes of their words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from toolkit.data.clean.batch import Batch, Reasons
from toolkit.data.clean.filter_settings import GopherRepetitionSettings
from toolkit.data.clean.ngrams import Grams
from toolkit.data.clean.words import Ints, Words

NEARLY = 1 - 1e-9
"""Of a limit: what is decided by dividing must not be lost to how a product is rounded."""
WORTH_SELECTING = 0.8
PARAGRAPHS = re.compile(r"\n{2,}")


class GopherRepetition:
    """The rules in datatrove's order; the first that a document breaks is the reason."""

    def __init__(self, settings: GopherRepetitionSettings) -> None:
        self._settings = settings

    def __call__(self, batch: Batch) -> Reasons:
        """Why each document goes, or None."""
        reasons = [self._lines(text) for text in batch.texts]
        left = np.array([reason is None for reason in reasons])
        if not left.any():
            return reasons
        words = batch.words_of(left)
        texts = [t for t, reason in zip(batch.texts, reasons, strict=True) if reason is None]
        found = self._n_grams(words, np.array([len(text) for text in texts]))
        for index, reason in zip(np.flatnonzero(left).tolist(), found, strict=True):
            reasons[index] = reason
        return reasons

    def _lines(self, text: str) -> str | None:
        settings = self._settings
        if not text:
            return "empty"
        stripped = text.strip()
        if "\n\n" in stripped:
            count, characters, of = _repeats(PARAGRAPHS.split(stripped))
            if settings.dup_para_frac and count / of > settings.dup_para_frac:
                return "dup_para_frac"
            if settings.dup_para_char_frac and characters / len(text) > settings.dup_para_char_frac:
                return "dup_para_char_frac"
        count, characters, of = _repeats(_lines(text))
        if settings.dup_line_frac and count / of > settings.dup_line_frac:
            return "dup_line_frac"
        if settings.dup_line_char_frac and characters / len(text) > settings.dup_line_char_frac:
            return "dup_line_char_frac"
        return None

    def _n_grams(self, words: Words, sizes: Ints) -> Reasons:
        grams = Grams.of(words)
        reasons: Reasons = [None] * len(sizes)
        self._top(grams, sizes, reasons)
        self._repeated(grams, sizes, reasons)
        return reasons

    def _top(self, grams: Grams, sizes: Ints, reasons: Reasons) -> None:
        for n, most in self._settings.top_n_grams:
            for document in np.flatnonzero(grams.top_bound(n) >= NEARLY * most * sizes).tolist():
                if reasons[document] is not None:
                    continue
                if grams.top(document, n) / sizes[document] > most:
                    reasons[document] = f"top_{n}_gram"

    def _repeated(self, grams: Grams, sizes: Ints, reasons: Reasons) -> None:
        """Longer n-grams repeat no more than shorter ones: fewer documents are left each time."""
        limits = self._settings.dup_n_grams
        least = min((most for _, most in limits), default=0.0)
        places = np.arange(len(sizes))
        for n, most in limits:
            bound = grams.repeated_bound(n)
            for index in np.flatnonzero(bound >= NEARLY * most * sizes).tolist():
                size, place = int(sizes[index]), int(places[index])
                if reasons[place] is None and grams.repeated(index, n, most * size) / size > most:
                    reasons[place] = f"duplicated_{n}_n_grams"
            open_still = np.array([reasons[place] is None for place in places.tolist()], bool)
            doubtful = open_still & (bound >= NEARLY * least * sizes)
            if doubtful.mean() < WORTH_SELECTING:
                grams, sizes, places = grams.select(doubtful), sizes[doubtful], places[doubtful]
            if not len(places):
                return


def _lines(text: str) -> list[str]:
    """The lines that aren't empty, and an empty one for line ends at the text's start and end."""
    lines = [line for line in text.split("\n") if line]
    return [*([""] if text[0] == "\n" else []), *lines, *([""] if text[-1] == "\n" else [])]


def _repeats(items: Sequence[str]) -> tuple[int, int, int]:
    """Items that were there before, their characters, and how many items there are."""
    distinct = set(items)
    if len(distinct) == len(items):
        return 0, 0, len(items)
    characters = sum(map(len, items)) - sum(map(len, distinct))
    return len(items) - len(distinct), characters, len(items)
