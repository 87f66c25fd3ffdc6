"""Gopher's quality rules: ``datatrove/pipeline/filters/gopher_quality_filter.py``, in arrays."""

from __future__ import annotations

import numpy as np

from toolkit.data.clean.batch import Batch, Reasons
from toolkit.data.clean.filter_settings import GopherQualitySettings
from toolkit.data.clean.words import ALPHA, SYMBOL, Ints, Words

Floats = np.typing.NDArray[np.float64]


class GopherQuality:
    """The rules in datatrove's order; the first that a document breaks is the reason.

    A rule set to null or 0 is off. A document without any word goes as too short.
    """

    def __init__(self, settings: GopherQualitySettings) -> None:
        self._settings = settings

    def __call__(self, batch: Batch) -> Reasons:
        """Why each document goes, or None."""
        reasons: Reasons = [None] * len(batch)
        words = batch.words
        kinds = words.kinds[words.ids]
        proper = (kinds & SYMBOL) == 0
        n_proper, n_words = words.totals(proper), words.counts
        characters = words.totals(words.lengths[words.ids] * proper)
        with np.errstate(divide="ignore", invalid="ignore"):
            length = characters / n_proper
            alpha = words.totals((kinds & ALPHA) != 0) / n_words
        stops = self._stop_words(words)
        for index, text in enumerate(batch.texts):
            reasons[index] = (
                self._size(int(n_proper[index]), int(n_words[index]), float(length[index]))
                or self._symbols(text, int(n_words[index]))
                or self._lines(text)
                or self._content(float(alpha[index]), int(stops[index]))
            )
        return reasons

    def _size(self, proper: int, words: int, length: float) -> str | None:
        settings = self._settings
        if not words or (settings.min_doc_words and proper < settings.min_doc_words):
            return "gopher_short_doc"
        if settings.max_doc_words and proper > settings.max_doc_words:
            return "gopher_long_doc"
        if settings.min_avg_word_length and length < settings.min_avg_word_length:
            return "gopher_below_avg_threshold"
        if settings.max_avg_word_length and length > settings.max_avg_word_length:
            return "gopher_above_avg_threshold"
        return None

    def _symbols(self, text: str, words: int) -> str | None:
        most = self._settings.max_symbol_word_ratio
        if most and text.count("#") / words > most:
            return "gopher_too_many_hashes"
        if most and (text.count("...") + text.count("…")) / words > most:
            return "gopher_too_many_ellipsis"
        return None

    def _lines(self, text: str) -> str | None:
        bullets = self._settings.max_bullet_lines_ratio
        ellipses = self._settings.max_ellipsis_lines_ratio
        if bullets and ("-" in text or "•" in text):
            lines = text.splitlines()
            starts = [line.lstrip()[:1] for line in lines]
            if (starts.count("-") + starts.count("•")) / len(lines) > bullets:
                return "gopher_too_many_bullets"
        if ellipses and ("..." in text or "…" in text):
            lines = text.splitlines()
            ends = [line.rstrip().endswith(("...", "…")) for line in lines]
            if ends.count(True) / len(lines) > ellipses:
                return "gopher_too_many_end_ellipsis"
        return None

    def _content(self, alpha: float, stops: int) -> str | None:
        settings = self._settings
        if settings.max_non_alpha_words_ratio and alpha < settings.max_non_alpha_words_ratio:
            return "gopher_below_alpha_threshold"
        if settings.min_stop_words and stops < settings.min_stop_words:
            return "gopher_enough_stop_words"
        return None

    def _stop_words(self, words: Words) -> Ints:
        """Different stop words in each document."""
        listed = sorted(set(self._settings.stop_words))
        which = np.zeros(len(words.kinds), np.int64)
        for number, word in enumerate(listed, start=1):
            if (found := words.numbers.get(word)) is not None:
                which[found] = number
        here = which[words.ids]
        places = np.flatnonzero(here)
        documents = np.searchsorted(words.offsets, places, side="right") - 1
        pairs = np.unique(documents * (len(listed) + 1) + here[places])
        return np.bincount(pairs // (len(listed) + 1), minlength=len(words.counts))
