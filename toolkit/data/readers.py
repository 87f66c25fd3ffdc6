"""Records of data files, strictly: what can't be read is an error with its file and line.

=============== ===================================================== =====================
format          a record                                              where it says it is
=============== ===================================================== =====================
``.jsonl``      the object of a line; blank lines are no records      ``a.jsonl:17`` (line)
``.json``       an object of the one array, or as ``.jsonl``          ``a.json:17`` (item)
``.parquet``    a row                                                 ``a.parquet:17`` (row)
``.arrow``      a row; IPC files and streams                          ``a.arrow:17`` (row)
``.txt``        ``{"text": ...}``: a document, paragraph or line      ``a.txt:17`` (line)
``.html``       ``{"text", "url"}``: the main text of the page        ``a.html:1``
``.warc .wet``  ``{"text", "url", "id", "date"}``: a page             ``a.warc:17`` (record)
``sample:``     see ``samples.py``                                    ``sample:...:17``
``hf:``         a row; see ``hub.py``                                 ``hf:...:17`` (row)
=============== ===================================================== =====================

Numbers count from 1. Files may be compressed (``.gz .zst .bz2 .xz``) and may begin with a byte
order mark; they may lie behind URLs. Memory is flat: it holds the longest record, which is the
whole file where a ``.txt`` file is a document. A key that an object has twice has its last value,
as everywhere in Python.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from toolkit.data.config import SampleBy
from toolkit.data.files import Format, Part, Source
from toolkit.data.read_json import numbered, read_json, read_json_lines
from toolkit.data.read_text import read_text
from toolkit.data.records import BadRecord, OnBad, Place, Record, refuse
from toolkit.data.samples import read_sample
from toolkit.data.sources import expand
from toolkit.data.streams import Stream, open_stream
from toolkit.errors import DataError

__all__ = ["BadRecord", "OnBad", "Record", "RecordReader", "read_records"]


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
    """Reads sources, or parts of them, one after another, and knows how many bytes it has read.

    Args:
        sources: from ``expand``, or parts from ``plan_shards``.
        on_bad: takes what is no record, and reading goes on behind it: a bad line loses only
            itself. Without it the first one is raised as a DataError. A file that is damaged as a
            whole (a truncated ``.gz``, ``.json`` or ``.parquet``) is an error in either case.
        columns: of ``.parquet`` and ``.arrow`` files, read these alone; a file must have them. A
            dotted path leads into structs.
        strings: whether these columns must hold strings.
        sample_by: what one record of a ``.txt`` file is.
        text_key: the key under which a ``.txt`` file's records have their text.
    """

    def __init__(
        self,
        sources: Sequence[Source | Part],
        on_bad: OnBad | None = None,
        *,
        columns: Sequence[str] | None = None,
        strings: bool = False,
        sample_by: SampleBy = "document",
        text_key: str = "text",
    ) -> None:
        self._parts = [s if isinstance(s, Part) else Part.of(s) for s in sources]
        self._columns, self._strings = columns, strings
        self._sample_by, self._text_key = sample_by, text_key
        self._take_bad = on_bad or refuse
        self._finished = 0
        self._position: Callable[[], int] = int
        self._bad = 0
        self.skipped: Counter[str] = Counter()
        """What web archives hold beside pages, by reason: ``image/png``, ``status 404``."""

    @property
    def bytes_read(self) -> int:
        """Bytes on disk read so far, of all parts; samples count nothing."""
        return self._finished + self._position()

    @property
    def bytes_total(self) -> int:
        """Bytes on disk of all parts; samples count nothing."""
        return sum(part.size for part in self._parts)

    def __iter__(self) -> Iterator[Record]:
        """Read everything, from the start.

        Raises:
            DataError: see the class; also a whole file that holds no record at all.
        """
        self._finished = 0
        for part in self._parts:
            before, records = self._met, self._read(part)
            first = next(records, None)
            if first is not None:
                yield first
                yield from records
            elif self._met == before and part.is_whole:
                raise DataError("the file holds no records", where=part.source.name)
            self._finished += part.size
            self._position = int

    @property
    def _met(self) -> int:
        """What was met that is no record."""
        return self._bad + self.skipped.total()

    def _read(self, part: Part) -> Iterator[Record]:
        source = part.source
        if source.format == "sample":
            return numbered(read_sample(source.name), Place(source.name), self._on_bad)
        if source.format == "hub":
            from toolkit.data.hub_stream import read_hub  # datasets takes seconds to import

            return read_hub(part, self._on_bad)
        if source.format in ("parquet", "arrow"):
            return self._rows(part)
        return self._stream(part)

    def _stream(self, part: Part) -> Iterator[Record]:
        form = part.source.format
        paragraphs = form == "txt" and self._sample_by == "paragraph"
        with open_stream(part, paragraphs=paragraphs) as stream:
            self._position = lambda: stream.position
            if form == "txt":
                yield from read_text(stream, self._on_bad, self._sample_by, self._text_key)
            elif form == "json":
                yield from read_json(stream, self._on_bad)
            elif form == "jsonl":
                yield from read_json_lines(stream.line_lists(), stream.place, self._on_bad)
            else:
                yield from self._web(stream, form)
            self._position = int

    def _web(self, stream: Stream, form: Format) -> Iterator[Record]:
        from toolkit.data.read_web import read_html, read_warc  # resiliparse, where it is needed

        if form == "html":
            return read_html(stream, self._on_bad, self._text_key)
        return read_warc(stream, self._on_bad, self._text_key, self.skipped)

    def _rows(self, part: Part) -> Iterator[Record]:
        from toolkit.data.read_columns import Columns, read_arrow, read_parquet  # slow to import

        def progress(share: float) -> None:
            self._position = functools.partial(int, part.size * share)

        columns = None if self._columns is None else Columns(tuple(self._columns), self._strings)
        read = read_parquet if part.source.format == "parquet" else read_arrow
        return read(part, self._on_bad, columns, progress)

    def _on_bad(self, bad: BadRecord) -> None:
        self._bad += 1
        self._take_bad(bad)
