"""FineWeb's quality rules: ``datatrove/pipeline/filters/fineweb_quality_filter.py``."""

from __future__ import annotations

from toolkit.data.clean.batch import Batch, Reasons
from toolkit.data.clean.characters import TERMINAL
from toolkit.data.clean.filter_settings import FineWebQualitySettings


class FineWebQuality:
    """The rules in datatrove's order; the first that a document breaks is the reason."""

    def __init__(self, settings: FineWebQualitySettings) -> None:
        self._settings = settings
        stops = settings.stop_chars
        self._stops = TERMINAL if stops is None else frozenset(stops)
        self._single = all(len(stop) == 1 for stop in self._stops)
        self._ascii_ends = sorted(f"{stop}\n" for stop in self._stops if stop.isascii())

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
        lines = [line for line in text.split("\n") if line and not line.isspace()]
        if not lines:
            return "empty"
        ended = self._ended(text, lines)
        ratio = ended / len(lines)
        if ratio < settings.line_punct_thr and not (
            ratio == 0 and settings.line_punct_exclude_zero
        ):
            return "line_punct_ratio"
        lengths = list(map(len, lines))
        short = sum([length <= settings.short_line_length for length in lengths])
        if short / len(lines) > settings.short_line_thr:
            return "short_line_ratio"
        distinct = set(lines)
        if len(distinct) < len(lines):
            repeated = sum(lengths) - sum(map(len, distinct))
            if repeated / (len(text) - text.count("\n")) > settings.char_duplicates_ratio:
                return "char_dup_ratio"
        return None

    def _ended(self, text: str, lines: list[str]) -> int:
        """Lines that end with one of the characters."""
        if not self._single:
            return sum([line.endswith(tuple(self._stops)) for line in lines])
        if not text.isascii():
            return sum([line[-1] in self._stops for line in lines])
        within = sum([text.count(end) for end in self._ascii_ends])
        return within + (text[-1] in self._stops)

    def _may_be_list(self, text: str) -> bool:
        """Whether the words must be counted: there is one at least in each chunk of text."""
        newlines = text.count("\n")
        return newlines > 0 and newlines / len(text.split()) > self._settings.new_line_ratio
