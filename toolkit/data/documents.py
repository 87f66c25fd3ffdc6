"""The texts of records: what is a document, what is none, and how many of each there were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from toolkit.data.config import SampleBy
from toolkit.data.files import Part, Source
from toolkit.data.keys import MISSING, getter, key_paths
from toolkit.data.readers import RecordReader
from toolkit.data.records import BadRecord, OnBad, Place, Record, key_problem, raw_json, refuse


class Document(NamedTuple):
    """A text, and where it was read; with several keys, the texts of all of them."""

    text: str
    place: Place
    number: int
    others: tuple[str, ...] = ()
    """The texts of the second key and those behind it; they may be blank where ``text`` is not."""

    @property
    def texts(self) -> tuple[str, ...]:
        """One text for each key."""
        return (self.text, *self.others)

    @property
    def where(self) -> str:
        """``corpus.jsonl:17``."""
        return self.place.where(self.number)


class DocumentReader:
    """Reads the documents of sources, and counts: ``read = documents + empty + bad``.

    Args:
        sources: from ``expand``, or parts from ``plan_shards``.
        text_key: the key, or column, that holds the text, or several of them, of which a record
            must have all. ``meta.text`` is the key of that name or else ``text`` in ``meta``. A
            ``.txt`` file has the one key that is given.
        on_bad: takes what is no record, and records without a text; without it the first is a
            DataError. A record is taken once, whatever number of keys it lacks.
        sample_by: what one document is in a ``.txt`` file.
    """

    def __init__(
        self,
        sources: Sequence[Source | Part],
        text_key: str | Sequence[str] = "text",
        on_bad: OnBad | None = None,
        sample_by: SampleBy = "document",
    ) -> None:
        self._keys = (text_key,) if isinstance(text_key, str) else tuple(text_key)
        self._getters = [getter(key) for key in self._keys]
        self._on_bad = on_bad or refuse
        self._reader = RecordReader(
            sources,
            self._count_bad,
            columns=self._keys,
            strings=True,
            sample_by=sample_by,
            text_key=self._keys[0],
        )
        self.documents = self.empty = self.bad = 0

    @property
    def read(self) -> int:
        """Records met so far, of whatever kind."""
        return self.documents + self.empty + self.bad

    @property
    def bytes_read(self) -> int:
        """Bytes on disk read so far; samples count nothing."""
        return self._reader.bytes_read

    @property
    def bytes_total(self) -> int:
        """Bytes on disk of all files; samples count nothing."""
        return self._reader.bytes_total

    @property
    def skipped(self) -> Counter[str]:
        """Responses of web archives that are no pages, by reason; not counted as read."""
        return self._reader.skipped

    def __iter__(self) -> Iterator[Document]:
        """Documents that have a text; those of nothing but blanks are counted as empty."""
        key = self._keys[0]
        if len(self._keys) > 1 or "." in key:
            yield from self._of_keys()
            return
        new = tuple.__new__  # faster than Document(...), which short texts feel
        for record in self._reader:
            value, place, number = record
            text = value.get(key)
            if type(text) is not str:
                self._no_text(record)
            elif not text or text.isspace():
                self.empty += 1
            else:
                self.documents += 1
                yield new(Document, (text, place, number, ()))

    def _of_keys(self) -> Iterator[Document]:
        """As ``__iter__``, for several keys, and for paths of keys."""
        for record in self._reader:
            texts = [find(record.value) for find in self._getters]
            if not all(type(text) is str for text in texts):
                self._no_text(record)
            elif all(not text or text.isspace() for text in texts):
                self.empty += 1
            else:
                self.documents += 1
                yield Document(texts[0], record.place, record.number, tuple(texts[1:]))

    def _no_text(self, record: Record) -> None:
        """Say which of the keys has no text."""
        value = record.value
        problems = [
            _problem(k, g(value), value) for k, g in zip(self._keys, self._getters, strict=True)
        ]
        reason = "; ".join(p for p in problems if p)
        self._count_bad(BadRecord(record.where, reason, raw_json(value)))

    def _count_bad(self, bad: BadRecord) -> None:
        self.bad += 1
        self._on_bad(bad)


def _problem(key: str, found: Any, value: dict[str, Any]) -> str | None:
    """Why what was found under a key is no text, or None if it is one."""
    if found is MISSING:
        return key_problem(key, key_paths(value) if "." in key else value)
    if type(found) is str:
        return None
    shown = "null" if found is None else f"{type(found).__name__} {str(found)[:40]!r}"
    return f"the value of {key!r} is {shown}, not a text"
