"""What happens to documents one by one: repair, filters, scrubbing, decontamination."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from toolkit.data.clean.batch import LANGUAGE, Batch, Filter, Reasons, Stored
from toolkit.data.clean.c4 import C4Quality
from toolkit.data.clean.filter_settings import FilterSettings
from toolkit.data.clean.fineweb import FineWebQuality
from toolkit.data.clean.gopher_quality import GopherQuality
from toolkit.data.clean.languages import Language
from toolkit.data.clean.normalise import Normaliser
from toolkit.data.clean.repetition import GopherRepetition
from toolkit.data.clean.scrub import Scrubber
from toolkit.data.clean.settings import NormalizeSettings, PiiSettings
from toolkit.data.clean.simple import Function, Length, Regex, Url
from toolkit.data.clean.words import Splitter
from toolkit.data.dedup.decontaminate import EvaluationIndex

FILTERS: dict[str, Callable[[Any], Filter]] = {
    "gopher-quality": GopherQuality,
    "gopher-repetition": GopherRepetition,
    "c4-quality": C4Quality,
    "fineweb-quality": FineWebQuality,
    "language": Language,
    "length": Length,
    "url": Url,
    "regex": Regex,
    "function": Function,
}
EMPTIED = "emptied"
"""Why a document goes of which repair or a filter left nothing but blanks."""
CONTAMINATED = "contaminated"
OURS = ("id", *LANGUAGE)
"""Metadata that are not the record's other keys."""


class Pipeline:
    """Takes batches of documents, gives those that stay, and counts.

    Raises:
        ToolkitError: a filter lacks its package, model, list or function.
    """

    def __init__(
        self,
        normalize: NormalizeSettings | None,
        filters: Sequence[FilterSettings],
        pii: PiiSettings | None,
        evaluations: EvaluationIndex | None = None,
        seed: int = 0,
        *,
        keep_removed: bool = False,
    ) -> None:
        self._normaliser = Normaliser(normalize) if normalize else None
        self._filters = [(one.label, FILTERS[one.filter](one)) for one in filters]
        self._scrubber = Scrubber(pii, seed) if pii else None
        self._aside = Scrubber(pii, seed) if pii and keep_removed else None
        """For what is written aside, which is not counted."""
        self._beside = pii.metadata if pii else "keep"
        self._evaluations = evaluations
        self._splitter = Splitter()
        self.drops: Counter[str] = Counter()
        """Documents removed, by reason."""
        self.changed: Counter[str] = Counter()
        """Documents that a step edited, by step."""
        self.items: set[int] = set()
        """Numbers of the evaluations' items that removed documents hold."""

    @property
    def pii(self) -> Counter[str]:
        """What was replaced of personal data, by kind."""
        return self._scrubber.counts if self._scrubber else Counter()

    def __call__(
        self, texts: list[str], metadata: list[dict[str, Any]]
    ) -> tuple[Batch, list[Stored]]:
        """The documents that stay, and those that go with their reasons, each in order."""
        batch = Batch(texts, self._splitter, metadata)
        removed: list[Stored] = []
        if self._normaliser:
            batch = self._edit(batch, "normalize", self._normaliser, removed)
        for label, judge in self._filters:
            if len(batch):
                batch = self._judge(batch, label, judge, removed)
        if self._scrubber:
            batch = self._scrub(batch, self._scrubber, removed)
        if self._evaluations and len(batch):
            batch = self._decontaminate(batch, self._evaluations, removed)
        return batch, removed

    def _scrub(self, batch: Batch, scrubber: Scrubber, removed: list[Stored]) -> Batch:
        """Scrub what stays, and what was removed so far where it is written aside."""
        if self._aside:
            for one in removed:
                one.text = self._aside(one.text)
                one.metadata = self._without_pii(one.metadata, self._aside)
        batch.metadata = [self._without_pii(one, scrubber) for one in batch.metadata]
        return self._edit(batch, "pii", scrubber, removed)

    def _without_pii(self, metadata: dict[str, Any], scrubber: Scrubber) -> dict[str, Any]:
        if self._beside == "keep":
            return metadata
        ours = {key: metadata[key] for key in OURS if key in metadata}
        if self._beside == "drop":
            return ours
        return {key: _scrubbed(value, scrubber) for key, value in metadata.items()} | ours

    def _edit(
        self, batch: Batch, step: str, edit: Callable[[str], str], removed: list[Stored]
    ) -> Batch:
        edited = [edit(text) for text in batch.texts]
        changed = [a is not b and a != b for a, b in zip(edited, batch.texts, strict=True)]
        if not any(changed):
            return batch
        self.changed[step] += sum(changed)
        batch.replace(edited)
        return self._without_empty(batch, removed)

    def _judge(self, batch: Batch, label: str, judge: Filter, removed: list[Stored]) -> Batch:
        before = batch.texts
        reasons = judge(batch)
        after = batch.texts
        named = [reason and f"{label}/{reason}" for reason in reasons]
        if after is not before:
            pairs = zip(before, after, reasons, strict=True)
            self.changed[label] += sum(r is None and a != b for a, b, r in pairs)
        batch = self._remove(batch, named, removed)
        return batch if after is before else self._without_empty(batch, removed)

    def _without_empty(self, batch: Batch, removed: list[Stored]) -> Batch:
        blank = [not text or text.isspace() for text in batch.texts]
        return self._remove(batch, [EMPTIED if gone else None for gone in blank], removed)

    def _decontaminate(
        self, batch: Batch, evaluations: EvaluationIndex, removed: list[Stored]
    ) -> Batch:
        found = evaluations.find(batch.texts)
        for one in found:
            self.items.update(one.items if one else ())
        reasons: Reasons = [CONTAMINATED if one else None for one in found]
        return self._remove(batch, reasons, removed, [one.reason if one else "" for one in found])

    def _remove(
        self,
        batch: Batch,
        reasons: Reasons,
        removed: list[Stored],
        details: Sequence[str] | None = None,
    ) -> Batch:
        for index, reason in enumerate(reasons):
            if reason is not None:
                self.drops[reason] += 1
                detail = details[index] if details else ""
                removed.append(Stored(batch.texts[index], batch.metadata[index], reason, detail))
        return batch.kept(np.array([reason is None for reason in reasons], bool))


def _scrubbed(value: Any, scrubber: Scrubber) -> Any:
    """A JSON value with every text in it scrubbed."""
    if isinstance(value, str):
        return scrubber(value)
    if isinstance(value, list):
        return [_scrubbed(one, scrubber) for one in value]
    if isinstance(value, dict):
        return {key: _scrubbed(one, scrubber) for key, one in value.items()}
    return value
