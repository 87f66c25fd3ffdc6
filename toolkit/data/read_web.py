"""Records of web pages: WARC and WET archives, and HTML files, as the main text of each page.

The text is Resiliparse's: boilerplate (menus, footers, comments) is left out. A record has
``text``, ``url`` and, from an archive, ``id`` and ``date``. In an archive, HTML responses with
status 200, HTML resources, and conversions to text (WET) are records; other responses are counted.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType
from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import bytes_to_str, detect_encoding
from resiliparse.parse.html import HTMLParserException

from toolkit.data.records import BadRecord, OnBad, Record
from toolkit.data.streams import Stream
from toolkit.errors import DataError

logger = logging.getLogger(__name__)

HTML_TYPES = ("text/html", "application/xhtml+xml")
HTTP_OK = 200
PAGES = (
    WarcRecordType.response
    | WarcRecordType.resource
    | WarcRecordType.conversion
    | WarcRecordType.revisit
)


def main_text(html: bytes, charset: str | None = None) -> str:
    """The main text of a page.

    Args:
        html: as the server sent it.
        charset: as the server named it; else the page says it, or it is guessed.

    Raises:
        HTMLParserException: it can't be parsed.
    """
    encoding = charset or detect_encoding(html, from_html_meta=True) or "utf-8"
    try:
        text = bytes_to_str(html, encoding, errors="replace")
    except LookupError:  # a charset that doesn't exist
        text = bytes_to_str(html, detect_encoding(html) or "utf-8", errors="replace")
    return str(extract_plain_text(text, main_content=True))


def read_html(stream: Stream, on_bad: OnBad, text_key: str) -> Iterator[Record]:
    """The one record of an HTML file; its ``url`` is the file's name."""
    html = bytes(stream.read())
    if not html:
        return
    try:
        text = main_text(html)
    except HTMLParserException as error:
        on_bad(BadRecord(stream.place.where(1), f"not readable as HTML: {error}", html))
        return
    yield Record({text_key: text, "url": stream.place.name}, stream.place, 1)


def read_warc(
    stream: Stream, on_bad: OnBad, text_key: str, skipped: Counter[str]
) -> Iterator[Record]:
    """The pages of an archive; a record's number counts all records of the archive.

    Args:
        stream: the archive.
        on_bad: takes pages that can't be decoded.
        text_key: the key under which a record has its text.
        skipped: counts responses that are no pages, by reason.

    Raises:
        DataError: the archive is damaged or cut off.
    """
    place, number, before = stream.place, 0, Counter(skipped)
    archive: Any = _Archive(stream)
    records = ArchiveIterator(archive, parse_http=False, stream_detect=False)
    try:
        for number, record in enumerate(records, start=1):
            body = _body(record)
            if not record.record_type & PAGES:
                continue
            try:
                page = _page(record, body, text_key)
            except (OSError, HTMLParserException) as error:
                message = f"the page {_url(record)} can't be decoded: {error}"
                on_bad(BadRecord(place.where(number), message, body))
                continue
            if isinstance(page, str):
                skipped[page] += 1
            else:
                yield Record(page, place, number)
    except (OSError, EOFError) as error:
        message = f"the archive is damaged or cut off behind record {number}: {error}"
        raise DataError(message, where=place.name) from error
    if passed := skipped - before:
        shown = ", ".join(f"{count:,} x {reason}" for reason, count in passed.most_common())
        logger.info("%s: passed over what is no page: %s", place.name, shown)


class _Archive:
    """A stream as a file, for FastWARC."""

    def __init__(self, stream: Stream) -> None:
        self._blocks = stream.blocks()
        self._rest = b""
        self._position = 0

    def read(self, size: int = 1 << 16) -> bytes:
        self._rest = self._rest or next(self._blocks, b"")
        content, self._rest = self._rest[:size], self._rest[size:]
        self._position += len(content)
        return content

    def tell(self) -> int:
        return self._position


def _body(record: Any) -> bytes:
    """A record's body, whole: FastWARC takes the end of a file for the end of a record."""
    length = record.headers.get("Content-Length")
    body: bytes = record.reader.read()
    if length is None or str(len(body)) != length.strip():
        found = f"has {len(body):,} bytes of {length}" if length else "has no length"
        raise EOFError(f"the next one {found}")
    return body


def _url(record: Any) -> str | None:
    url = record.headers.get("WARC-Target-URI")
    return None if url is None else str(url).strip("<>")  # some writers put it in brackets


def _page(record: Any, body: bytes, text_key: str) -> dict[str, Any] | str:
    """The record of a page, or why it is none: ``image/png``, ``status 404``.

    Raises:
        OSError: its transfer or content encoding is damaged.
        HTMLParserException: it can't be parsed.
    """
    if record.record_type == WarcRecordType.revisit:
        return "revisit"
    charset, media = None, str(record.headers.get("Content-Type") or "")
    if record.record_type == WarcRecordType.response and record.is_http:
        http = WarcRecord()  # a copy: damaged encodings would end the archive's own reader
        http.set_bytes_content(body)
        http.is_http = True
        http.parse_http(auto_decode="all")
        if http.http_headers.status_code != HTTP_OK:
            return f"status {http.http_headers.status_code}"
        body, charset, media = http.reader.read(), http.http_charset, http.http_content_type or ""
    media = media.partition(";")[0].strip().lower()
    if record.record_type == WarcRecordType.conversion and media == "text/plain":
        text = body.decode("utf-8", errors="replace")
    elif media in HTML_TYPES:
        text = main_text(body, charset)
    else:
        return media or "no content type"
    page = {text_key: text, "url": _url(record), "id": record.record_id}
    return {**page, "date": record.headers.get("WARC-Date")}
