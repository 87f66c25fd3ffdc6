"""The texts of records: what is a document, what is none, and how many of each there were."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import orjson

from toolkit.data.config import SampleBy
from toolkit.data.readers import RecordReader
from toolkit.data.records import BadRecord, OnBad, Place, key_problem, refuse
from toolkit.data.shards import Part
from toolkit.data.sources import Source


class Document(NamedTuple):
    """A text, and where it was read."""

    text: str
    place: Place
    number: int

    @property
    def where(self) -> str:
        """``corpus.jsonl:17``."""
        return self.place.where(self.number)


class DocumentReader:
    """Reads the documents of sources, and counts: ``read = documents + empty + bad``.

    Args:
        sources: from ``expand``, or parts from ``plan_shards``.
        text_key: the key, or column, that holds the text; nothing to ``.txt`` files.
        on_bad: takes what is no record, and records without a text; without it the first is a
            DataError.
        sample_by: what one document is in a ``.txt`` file.
    """

    def __init__(
        self,
        sources: Sequence[Source | Part],
        text_key: str = "text",
        on_bad: OnBad | None = None,
        sample_by: SampleBy = "document",
    ) -> None:
        self._key, self._on_bad = text_key, on_bad or refuse
        self._reader = RecordReader(
            sources,
            self._count_bad,
            columns=[text_key],
            sample_by=sample_by,
            text_key=text_key,
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

    def __iter__(self) -> Iterator[Document]:
        """Documents that have a text; those of nothing but blanks are counted as empty."""
        for record in self._reader:
            text = record.value.get(self._key)
            if type(text) is not str:
                self._count_bad(BadRecord(record.where, *self._no_text(record.value)))
            elif not text or text.isspace():
                self.empty += 1
            else:
                self.documents += 1
                yield Document(text, record.place, record.number)

    def _no_text(self, value: dict[str, Any]) -> tuple[str, bytes]:
        raw = orjson.dumps(value, default=str)
        if self._key not in value:
            return key_problem(self._key, value), raw
        found = value[self._key]
        shown = "null" if found is None else f"{type(found).__name__} {str(found)[:40]!r}"
        return f"the value of {self._key!r} is {shown}, not a text", raw

    def _count_bad(self, bad: BadRecord) -> None:
        self.bad += 1
        self._on_bad(bad)
