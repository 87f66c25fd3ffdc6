"""Documents on their way through the filters, many at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from toolkit.data.clean.words import Splitter, Words

Reasons = list[str | None]
"""For each document of a batch why it goes; None where it stays."""


LANGUAGE = ("language", "language_score")
"""Metadata that the language filter gives."""


@dataclass
class Batch:
    """Documents: texts, and what is known of them beside the text."""

    texts: list[str]
    splitter: Splitter
    metadata: list[dict[str, Any]]
    _words: Words | None = field(default=None, repr=False)

    @classmethod
    def of(cls, texts: Sequence[str], splitter: Splitter | None = None) -> Batch:
        """Texts without metadata."""
        return cls(list(texts), splitter or Splitter(), [{} for _ in texts])

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def words(self) -> Words:
        """The words of the texts as they are now; split when first asked for."""
        if self._words is None:
            self._words = self.splitter.split(self.texts)
        return self._words

    def words_of(self, some: npt.NDArray[np.bool_]) -> Words:
        """The words of some of the documents, without splitting the others."""
        if self._words is None and not some.all():
            return self.splitter.split(t for t, one in zip(self.texts, some, strict=True) if one)
        return self.words.select(some)

    def replace(self, texts: list[str]) -> None:
        """Put other texts in the place of these."""
        self.texts, self._words = texts, None

    def stored(self) -> Iterator[Stored]:
        """The documents one by one."""
        return (Stored(t, m) for t, m in zip(self.texts, self.metadata, strict=True))

    def kept(self, kept: npt.NDArray[np.bool_]) -> Batch:
        """The documents that stay."""
        if kept.all():
            return self
        indices = np.flatnonzero(kept)
        return Batch(
            [self.texts[i] for i in indices],
            self.splitter,
            [self.metadata[i] for i in indices],
            self._words.select(kept) if self._words is not None else None,
        )


@dataclass(slots=True)
class Stored:
    """A document with what is known of it, as it is written."""

    text: str
    metadata: dict[str, Any]
    """With ``id``, and ``language`` where it is known."""
    reason: str = ""
    """Why it goes; empty where it stays."""
    detail: str = ""


class Filter(Protocol):
    """Decides which documents of a batch stay; may edit the texts of those that do."""

    def __call__(self, batch: Batch) -> Reasons:
        """Why each document goes, or None."""
