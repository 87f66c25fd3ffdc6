"""Documents with all that their records hold beside the text."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import orjson
import xxhash

from toolkit.data.config import SampleBy
from toolkit.data.keys import MISSING, getter
from toolkit.data.readers import RecordReader
from toolkit.data.records import BadRecord, OnBad, Record, key_problem, raw_json, refuse
from toolkit.data.shards import Part


class Metadata(dict[str, Any]):
    """A record's other keys, and where it stands, for messages."""

    def __init__(self, values: dict[str, Any], where: str) -> None:
        super().__init__(values)
        self.where = where


class MetadataReader:
    """Reads documents, and counts: ``read = documents + empty + bad``.

    A document's metadata are its record's other keys, and its ``id``: the record's, or where it
    stands (``corpus.jsonl:17``). ``metadata`` as ``clean`` itself writes it is opened.

    Args:
        parts: from ``plan_shards``.
        text_key: the key, or dotted path, that holds the text.
        id_key: the key that holds the id.
        on_bad: takes what is no record, and records without a text; without it the first is a
            DataError.
        sample_by: what one document is in a ``.txt`` file.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        text_key: str,
        id_key: str,
        on_bad: OnBad | None,
        sample_by: SampleBy,
    ) -> None:
        self._key, self._id_key, self._on_bad = text_key, id_key, on_bad or refuse
        self._get = getter(text_key)
        self._reader = RecordReader(parts, self._bad, sample_by=sample_by, text_key=text_key)
        self.documents = self.empty = self.bad = 0
        self.ids = array("Q")
        """xxh3-64 of the ids that records have, in their order."""

    @property
    def read(self) -> int:
        """Records met so far, of whatever kind."""
        return self.documents + self.empty + self.bad

    @property
    def bytes_read(self) -> int:
        """Bytes on disk read so far."""
        return self._reader.bytes_read

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Text and metadata of each document; those of nothing but blanks are counted as empty."""
        for record in self._reader:
            text = self._get(record.value)
            if type(text) is not str:
                self._no_text(record, text)
            elif not text or text.isspace():
                self.empty += 1
            else:
                self.documents += 1
                yield text, self._metadata(record)

    def _metadata(self, record: Record) -> dict[str, Any]:
        value = dict(record.value)
        _remove(value, self._key)
        given = value.get(self._id_key)
        if given is None or isinstance(given, (dict, list)):
            own = record.where
        else:
            own = str(value.pop(self._id_key))
            self.ids.append(xxhash.xxh3_64_intdigest(own.encode()))
        metadata = _opened(value)
        if metadata.get("id") is not None:  # it is not the document's id, and must not be lost
            metadata[next(n for n in _other_names("id") if n not in metadata)] = metadata["id"]
        return Metadata({**metadata, "id": own}, record.where)

    def _no_text(self, record: Record, found: object) -> None:
        if found is MISSING:
            reason = key_problem(self._key, record.value)
        else:
            shown = "null" if found is None else f"{type(found).__name__} {str(found)[:40]!r}"
            reason = f"the value of {self._key!r} is {shown}, not a text"
        self._bad(BadRecord(record.where, reason, raw_json(record.value)))

    def _bad(self, bad: BadRecord) -> None:
        self.bad += 1
        self._on_bad(bad)


def _remove(value: dict[str, Any], key: str) -> None:
    """Take a key, or the end of a dotted path, out of an object; objects on the way are copied."""
    if key in value or "." not in key:
        value.pop(key, None)
        return
    first, _, rest = key.partition(".")
    if isinstance(value.get(first), dict):
        value[first] = dict(value[first])
        _remove(value[first], rest)


def _other_names(key: str) -> Iterator[str]:
    """``original_id``, ``original_original_id``, ... for ``id``."""
    while True:
        key = f"original_{key}"
        yield key


def _opened(value: dict[str, Any]) -> dict[str, Any]:
    """Metadata that this stage wrote (an object, or in parquet its JSON) among the other keys."""
    inner = value.get("metadata")
    if isinstance(inner, str) and inner.startswith("{"):
        try:
            inner = orjson.loads(inner)
        except orjson.JSONDecodeError:
            return value
    if not isinstance(inner, dict):
        return value
    rest = {key: other for key, other in value.items() if key != "metadata"}
    return value if inner.keys() & rest.keys() else {**inner, **rest}
