"""Records of data files, strictly: what can't be read is an error with its file and line.

============= ======================================================= =====================
format        a record                                                where it says it is
============= ======================================================= =====================
``.jsonl``    the object of a line; blank lines are no records        ``a.jsonl:17`` (line)
``.json``     an object of the one array, or as ``.jsonl``            ``a.json:17`` (item)
``.parquet``  a row                                                   ``a.parquet:17`` (row)
``.txt``      ``{"text": ...}``: a document, paragraph or line        ``a.txt:17`` (line)
``sample:``   see ``samples.py``                                      ``sample:...:17``
============= ======================================================= =====================

Numbers count from 1. Files may be compressed (``.gz``, ``.zst``) and may begin with a byte order
mark. Memory is flat but for ``.json`` arrays and ``.txt`` documents, which are read whole. A key
that an object has twice has its last value, as everywhere in Python.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow
import pyarrow.parquet

from toolkit.data.config import SampleBy
from toolkit.data.samples import read_sample
from toolkit.data.sources import Source, expand
from toolkit.data.streams import Stream, open_stream, unreadable
from toolkit.errors import DataError

ROWS_PER_BATCH = 1024


@dataclass(frozen=True, slots=True)
class Record:
    """One object, row or document, and where it was read."""

    value: dict[str, Any]
    where: str
    """``corpus.jsonl:17``."""


@dataclass(frozen=True, slots=True)
class BadRecord:
    """Something that is no record: a line of bad JSON, say."""

    where: str
    reason: str
    raw: bytes
    """The line as it is in the file, or the value as JSON."""


OnBad = Callable[[BadRecord], None]


def read_records(
    sources: str | Path | Sequence[str | Path],
    on_bad: OnBad | None = None,
    *,
    columns: Sequence[str] | None = None,
    sample_by: SampleBy = "document",
) -> Iterator[Record]:
    """The records of all sources, in order: see ``expand`` and ``RecordReader``."""
    return iter(RecordReader(expand(sources), on_bad, columns=columns, sample_by=sample_by))


class RecordReader:
    """Reads sources one after another, and knows how many bytes of them it has read.

    Args:
        sources: from ``expand``.
        on_bad: takes what is no record, and reading goes on behind it: a bad line loses only
            itself. Without it the first one is raised as a DataError. A file that is damaged as a
            whole (a truncated ``.gz``, ``.json`` or ``.parquet``) is an error in either case.
        columns: of ``.parquet`` files, read these alone; a file must have them.
        sample_by: what one record of a ``.txt`` file is.
        text_key: the key under which a ``.txt`` file's records have their text.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        on_bad: OnBad | None = None,
        *,
        columns: Sequence[str] | None = None,
        sample_by: SampleBy = "document",
        text_key: str = "text",
    ) -> None:
        self._sources, self._columns = sources, columns
        self._sample_by, self._text_key = sample_by, text_key
        self._on_bad = on_bad or refuse
        self._finished = 0
        self._position: Callable[[], int] = int
        self._bad = 0

    @property
    def bytes_read(self) -> int:
        """Bytes on disk read so far, of all files; samples count nothing."""
        return self._finished + self._position()

    @property
    def bytes_total(self) -> int:
        """Bytes on disk of all files; samples count nothing."""
        return sum(source.size for source in self._sources)

    def __iter__(self) -> Iterator[Record]:
        """Read everything, from the start.

        Raises:
            DataError: see the class; also a file that holds no record at all.
        """
        self._finished = 0
        for source in self._sources:
            before, record = self._bad, None
            for record in self._read(source):
                yield record
            if record is None and self._bad == before:
                raise DataError("the file holds no records", where=source.name)
            self._finished += source.size
            self._position = int

    def _read(self, source: Source) -> Iterator[Record]:
        if source.format == "sample":
            return self._numbered(source.name, read_sample(source.name))
        if source.format == "parquet":
            return self._parquet(source)
        return self._stream(source)

    def _stream(self, source: Source) -> Iterator[Record]:
        with open_stream(source) as stream:
            self._position = lambda: stream.position
            if source.format == "txt":
                yield from self._text(stream)
            elif source.format == "json":
                yield from self._json(stream)
            else:
                yield from self._json_lines(stream.lines(), stream.name)
            self._position = int

    def _json_lines(self, lines: Iterable[bytes], name: str) -> Iterator[Record]:
        for number, line in enumerate(lines, start=1):
            try:
                value = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                if line.strip():
                    self._report(f"{name}:{number}", _json_reason(line, error), line)
                continue
            if type(value) is dict:
                yield Record(value, f"{name}:{number}")
            else:
                self._report(f"{name}:{number}", _not_an_object(value), line)

    def _json(self, stream: Stream) -> Iterator[Record]:
        content = stream.read()
        if content.lstrip()[:1] != b"[":
            return self._json_lines(content.split(b"\n"), stream.name)
        try:
            values = orjson.loads(content)
        except orjson.JSONDecodeError as error:
            line = content.count(b"\n", 0, _byte_offset(content, error)) + 1
            reason = _json_reason(content, error)
            raise DataError(reason, where=f"{stream.name}:{line}") from error
        return self._numbered(stream.name, values)

    def _numbered(self, name: str, values: Iterable[Any]) -> Iterator[Record]:
        for number, value in enumerate(values, start=1):
            if type(value) is dict:
                yield Record(value, f"{name}:{number}")
            else:
                self._report(f"{name}:{number}", _not_an_object(value), orjson.dumps(value))

    def _text(self, stream: Stream) -> Iterator[Record]:
        pieces: Iterable[tuple[int, bytes]]
        if self._sample_by == "document":
            pieces = [(1, content)] if (content := stream.read()) else []
        elif self._sample_by == "paragraph":
            pieces = _paragraphs(stream.lines())
        else:
            pieces = ((n, s.removesuffix(b"\r")) for n, s in enumerate(stream.lines(), start=1))
        for number, raw in pieces:
            where = f"{stream.name}:{number}"
            try:
                yield Record({self._text_key: raw.decode("utf-8")}, where)
            except UnicodeDecodeError as error:
                line = number + raw.count(b"\n", 0, error.start)
                self._report(f"{stream.name}:{line}", _utf8_reason(raw, error), raw)

    def _parquet(self, source: Source) -> Iterator[Record]:
        assert source.path is not None
        try:
            with pyarrow.parquet.ParquetFile(source.path) as file:
                columns = self._columns_of(file, source)
                rows, number = file.metadata.num_rows, 0
                for batch in file.iter_batches(batch_size=ROWS_PER_BATCH, columns=columns):
                    yield from self._rows(batch, source.name, number)
                    number += batch.num_rows
                    self._position = functools.partial(int, source.size * number / rows)
        except pyarrow.ArrowException as error:
            raise DataError(f"not a readable parquet file: {error}", where=source.name) from error
        except OSError as error:
            raise unreadable(source.name, error) from error

    def _rows(self, batch: Any, name: str, before: int) -> Iterator[Record]:
        try:
            rows = batch.to_pylist()
        except UnicodeDecodeError as error:
            if batch.num_rows == 1:
                where = f"{name}:{before + 1}"
                self._report(where, _utf8_reason(error.object, error), error.object)
            else:
                for index in range(batch.num_rows):
                    yield from self._rows(batch.slice(index, 1), name, before + index)
            return
        for number, value in enumerate(rows, start=before + 1):
            yield Record(value, f"{name}:{number}")

    def _columns_of(self, file: Any, source: Source) -> list[str] | None:
        if self._columns is None:
            return None
        there = file.schema_arrow.names
        for column in self._columns:
            if column not in there:
                raise DataError(key_problem(column, there), where=source.name)
        return list(self._columns)

    def _report(self, where: str, reason: str, raw: bytes) -> None:
        self._bad += 1
        self._on_bad(BadRecord(where, reason, raw))


def key_problem(key: str, there: Iterable[str]) -> str:
    """What to say of a record without a key: the keys there are, and the nearest one."""
    names = list(there)
    near = difflib.get_close_matches(key, names, n=1)
    shown = ", ".join(repr(name) for name in names) or "none"
    advice = f"; did you mean {near[0]!r}?" if near else ""
    return f"there is no key {key!r}; the keys are: {shown}{advice}"


def refuse(bad: BadRecord) -> None:
    """Raise a DataError for it: what ``on_bad`` is where none is given."""
    raise DataError(bad.reason, where=bad.where)


def _paragraphs(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Runs of lines that aren't blank, each with the number of its first line."""
    begun: list[bytes] = []
    number = 0
    for number, line in enumerate(lines, start=1):
        if line.strip():
            begun.append(line.removesuffix(b"\r"))
        elif begun:
            yield number - len(begun), b"\n".join(begun)
            begun = []
    if begun:
        yield number - len(begun) + 1, b"\n".join(begun)


def _json_reason(raw: bytes, error: orjson.JSONDecodeError) -> str:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as invalid:
        return _utf8_reason(raw, invalid)
    return f"invalid JSON: {error.msg} (column {error.colno})"


def _byte_offset(raw: bytes, error: orjson.JSONDecodeError) -> int:
    """Where an error is, in bytes; orjson counts characters, and gives 0 for invalid UTF-8."""
    try:
        return len(raw.decode("utf-8")[: error.pos].encode("utf-8"))
    except UnicodeDecodeError as invalid:
        return invalid.start


def _utf8_reason(raw: bytes, error: UnicodeDecodeError) -> str:
    utf16 = raw[:2] in (b"\xff\xfe", b"\xfe\xff")
    column = error.start - raw.rfind(b"\n", 0, error.start)
    advice = "; this looks like UTF-16: convert the file to UTF-8" if utf16 else ""
    return f"invalid UTF-8: {error.reason}, byte 0x{raw[error.start]:02x} (byte {column}){advice}"


def _not_an_object(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return f"{names.get(type(value), 'a number')} where a JSON object was expected"
