"""C4's quality rules: ``datatrove/pipeline/filters/c4_filters.py``, ``split_paragraph=True``."""

from __future__ import annotations

import re

import numpy as np

from toolkit.data.clean.batch import Batch, Reasons
from toolkit.data.clean.filter_settings import C4QualitySettings
from toolkit.data.clean.words import ENDS, PUNCTUATES, Ints, Splitter

CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
LINE_ENDS = (".", "?", "!", '"', "'")
POLICIES = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)


class C4Quality:
    """Keeps a document's good lines, or drops the document."""

    def __init__(self, settings: C4QualitySettings) -> None:
        self._settings = settings

    def __call__(self, batch: Batch) -> Reasons:
        """Why each document goes, or None; the texts become the good lines."""
        least = self._settings.min_num_sentences
        found = [self._good_lines(text) for text in batch.texts]
        reasons: Reasons = [lines if isinstance(lines, str) else None for lines in found]
        few = [i for i, r in enumerate(reasons) if r is None and len(found[i]) < least]
        counts = sentences([line for i in few for line in found[i]], batch.splitter)
        ends = np.cumsum([len(found[i]) for i in few], dtype=np.int64)
        totals = np.concatenate(([0], np.cumsum(counts)))[np.concatenate(([0], ends))]
        for index, total in zip(few, np.diff(totals).tolist(), strict=True):
            if total < least:
                reasons[index] = "too_few_sentences"
        edited = (
            text if reason else "\n".join(lines).strip()
            for text, reason, lines in zip(batch.texts, reasons, found, strict=True)
        )
        batch.replace(list(edited))
        return reasons

    def _good_lines(self, text: str) -> list[str] | str:
        """The lines to keep, or why the document goes."""
        settings, kept = self._settings, []
        for line in text.splitlines():
            good = self._good_line(line.strip())
            if good is None:
                continue
            lowered = good.lower()
            if settings.filter_lorem_ipsum and "lorem ipsum" in lowered:
                return "lorem_ipsum"
            if settings.filter_javascript and "javascript" in lowered:
                continue
            if settings.filter_curly_bracket and "{" in good:
                return "curly_bracket"
            if settings.filter_policy and any(policy in lowered for policy in POLICIES):
                continue
            kept.append(good)
        return kept

    def _good_line(self, line: str) -> str | None:
        """A line without its citations, or None where it is no prose."""
        settings, whole = self._settings, line
        longest = settings.max_word_length
        if -1 < longest < len(line) and any(len(word) > longest for word in line.split()):
            return None
        if settings.remove_citations and "[" in line:
            line = CITATION.sub("", line)
        unfinished = not line.endswith(LINE_ENDS) or line.endswith("...")
        if settings.filter_no_terminal_punct and unfinished:
            return None
        if len(whole.split(None, settings.min_words_per_line)) < settings.min_words_per_line:
            return None
        return line


def sentences(lines: list[str], splitter: Splitter) -> Ints:
    """Sentences in each line, as spaCy's sentencizer counts them: one at least.

    A new one begins with a word that is no punctuation behind one that ends a sentence.
    """
    words = splitter.split(lines)
    kinds = words.kinds[words.ids]
    ends = (kinds & ENDS) != 0
    others = np.flatnonzero(ends | ((kinds & PUNCTUATES) == 0))
    documents = np.searchsorted(words.offsets, others, side="right") - 1
    begins = ends[others[:-1]] & ~ends[others[1:]] & (documents[:-1] == documents[1:])
    return 1 + np.bincount(documents[1:][begins], minlength=len(lines))
