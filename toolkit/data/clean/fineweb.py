"""FineWeb's quality rules: ``datatrove/pipeline/filters/fineweb_quality_filter.py``."""

from __future__ import annotations

import numpy as np

from toolkit.data.clean.batch import Batch, Reasons
from toolkit.data.clean.characters import TERMINAL
from toolkit.data.clean.filter_settings import FineWebQualitySettings

NEWLINE = 10
WORTH_AN_ARRAY = 2048
"""Characters from which on numpy is faster than Python."""
_BLANKS = np.array([chr(code).isspace() for code in range(128)])


class FineWebQuality:
    """The rules in datatrove's order; the first that a document breaks is the reason."""

    def __init__(self, settings: FineWebQualitySettings) -> None:
        self._settings = settings
        stops = settings.stop_chars
        self._stops = TERMINAL if stops is None else frozenset(stops)
        self._single = all(len(stop) == 1 for stop in self._stops)
        self._ends = np.array([chr(code) in self._stops for code in range(128)])

    def __call__(self, batch: Batch) -> Reasons:
        """Why each document goes, or None."""
        reasons = [self._lines(text) for text in batch.texts]
        doubtful = [i for i, r in enumerate(reasons) if not r and self._may_be_list(batch.texts[i])]
        if doubtful:
            counts = batch.splitter.split([batch.texts[i] for i in doubtful]).counts
            for index, count in zip(doubtful, counts.tolist(), strict=True):
                if batch.texts[index].count("\n") / count > self._settings.new_line_ratio:
                    reasons[index] = "list_ratio"
        return reasons

    def _lines(self, text: str) -> str | None:
        settings = self._settings
        count, ended, short = self._figures(text)
        if not count:
            return "empty"
        ratio = ended / count
        if ratio < settings.line_punct_thr and not (
            ratio == 0 and settings.line_punct_exclude_zero
        ):
            return "line_punct_ratio"
        if short / count > settings.short_line_thr:
            return "short_line_ratio"
        lines = _not_blank(text)
        distinct = set(lines)
        if len(distinct) < len(lines):
            repeated = sum(map(len, lines)) - sum(map(len, distinct))
            if repeated / (len(text) - text.count("\n")) > settings.char_duplicates_ratio:
                return "char_dup_ratio"
        return None

    def _figures(self, text: str) -> tuple[int, int, int]:
        """Lines that aren't blank; those of them that end a sentence; those that are short."""
        if self._single and len(text) >= WORTH_AN_ARRAY and text.isascii():
            return self._figures_of_array(text)
        lines = _not_blank(text)
        if self._single:
            ended = sum([line[-1] in self._stops for line in lines])
        else:
            ended = sum([line.endswith(tuple(self._stops)) for line in lines])
        longest = self._settings.short_line_length
        return len(lines), ended, sum([len(line) <= longest for line in lines])

    def _figures_of_array(self, text: str) -> tuple[int, int, int]:
        """The same from the bytes of ASCII text."""
        content = np.frombuffer(text.encode("ascii"), np.uint8)
        ends = np.append(np.flatnonzero(content == NEWLINE), len(content))
        lengths = np.diff(ends, prepend=-1) - 1
        filled = lengths > 0
        ends, lengths = ends[filled], lengths[filled]
        last = content[ends - 1]
        blank = np.zeros(len(ends), bool)
        for index in np.flatnonzero(_BLANKS[last]).tolist():
            end = int(ends[index])
            blank[index] = text[end - int(lengths[index]) : end].isspace()
        short = (lengths <= self._settings.short_line_length) & ~blank
        count = len(ends) - int(blank.sum())
        return count, int((self._ends[last] & ~blank).sum()), int(short.sum())

    def _may_be_list(self, text: str) -> bool:
        """Whether the words must be counted: there is one at least in each chunk of text."""
        newlines = text.count("\n")
        return newlines > 0 and newlines / len(text.split()) > self._settings.new_line_ratio


def _not_blank(text: str) -> list[str]:
    return [line for line in text.split("\n") if line and not line.isspace()]
