"""Web archives and HTML files: the main text of pages, and a count of what is none."""

import gzip
import logging
from collections import Counter
from pathlib import Path

import pytest

from toolkit.data.documents import DocumentReader
from toolkit.data.readers import BadRecord, RecordReader
from toolkit.data.sources import expand
from toolkit.errors import DataError

PAGE = (
    "<html><head><title>T</title><script>var x = 1;</script></head><body><nav><a href='/'>Menu</a>"
    "</nav><article><h1>A heading</h1><p>{} is what this page is about, at some length.</p>"
    "</article><footer>Imprint</footer></body></html>"
)


def record(kind: str, uri: str, body: bytes, media: str = "text/html", number: int = 1) -> bytes:
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:{number:032d}>\r\n"
        f"WARC-Date: 2024-05-06T07:08:09Z\r\nWARC-Target-URI: {uri}\r\n"
        f"Content-Type: {media}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body + b"\r\n\r\n"


def response(uri: str, body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    head = "\r\n".join([f"HTTP/1.1 {status}", *headers])
    payload = head.encode() + b"\r\n\r\n" + body
    return record("response", uri, payload, "application/http; msgtype=response")


def page(word: str, encoding: str = "utf-8") -> bytes:
    return PAGE.format(word).encode(encoding)


HTML = "Content-Type: text/html; charset=utf-8"
LATIN = "Content-Type: text/html; charset=latin1"
ARCHIVE = [
    record("warcinfo", "x", b"software: test", "application/warc-fields"),
    record("request", "http://a/1", b"GET / HTTP/1.1\r\n\r\n", "application/http; msgtype=request"),
    response("http://a/1", page("Stra\u00dfe"), HTML),
    response("http://a/2", page("Stra\u00dfe", "latin1"), LATIN),
    response("http://a/3", gzip.compress(page("Packed")), HTML, "Content-Encoding: gzip"),
    response("http://a/4", b"%x\r\n%b\r\n0\r\n\r\n" % (len(page("Chunks")), page("Chunks")), HTML,
             "Transfer-Encoding: chunked"),
    response("http://a/5", b"\x89PNG", "Content-Type: image/png"),
    response("http://a/6", b"%PDF", "Content-Type: application/pdf"),
    response("http://a/7", page("Missing"), HTML, status="404 Not Found"),
    response("http://a/8", b"not gzip", HTML, "Content-Encoding: gzip"),
    record("resource", "file://x", page("Resource"), "text/html"),
    record("conversion", "http://a/9", "Wet \u00e4".encode(), "text/plain"),
    response("http://a/10", b"x"),
    record("revisit", "http://a/1", b"HTTP/1.1 304 Not Modified\r\n\r\n", "application/http"),
]  # fmt: skip


def test_pages_of_an_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.warc.gz"
    path.write_bytes(b"".join(gzip.compress(r) for r in ARCHIVE))
    bad: list[BadRecord] = []
    reader = RecordReader(expand(path), bad.append)
    records = list(reader)
    texts = {r.where.rpartition(":")[2]: r.value["text"] for r in records}
    about = "{} is what this page is about, at some length."
    found = {n: [line for line in text.splitlines() if line][-1] for n, text in texts.items()}
    assert found == {
        "3": about.format("Stra\u00dfe"),
        "4": about.format("Stra\u00dfe"),
        "5": about.format("Packed"),
        "6": about.format("Chunks"),
        "11": about.format("Resource"),
        "12": "Wet \u00e4",
    }
    assert not any("Menu" in t or "var x" in t or "Imprint" in t for t in texts.values())
    assert {k: v for k, v in records[0].value.items() if k != "text"} == {
        "url": "http://a/1",
        "id": f"<urn:uuid:{1:032d}>",
        "date": "2024-05-06T07:08:09Z",
    }
    assert reader.skipped == Counter(
        ["image/png", "application/pdf", "status 404", "no content type", "revisit"]
    )
    assert [b.where for b in bad] == [f"{path}:10"]
    assert "the page http://a/8 can't be decoded: Gzip" in bad[0].reason


def test_documents_of_an_archive_count_what_was_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.warc"
    path.write_bytes(ARCHIVE[2] + ARCHIVE[6] + response("http://b", b"<html></html>", HTML))
    reader = DocumentReader(expand(path), "content")
    with caplog.at_level(logging.INFO):
        assert ["Stra\u00dfe" in d.text for d in reader] == [True]
    assert caplog.messages == [f"{path}: passed over what is no page: 1 x image/png"]
    assert (reader.read, reader.documents, reader.empty) == (2, 1, 1)
    assert reader.skipped == {"image/png": 1}


def test_an_archive_without_pages_is_no_error_where_all_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.warc"
    path.write_bytes(ARCHIVE[6] * 3)
    reader = RecordReader(expand(path))
    assert list(reader) == []
    assert reader.skipped == {"image/png": 3}
    path.write_bytes(ARCHIVE[0])
    with pytest.raises(DataError, match="holds no records"):
        list(RecordReader(expand(path)))


def test_an_archive_that_is_cut_anywhere_is_an_error(tmp_path: Path) -> None:
    whole = ARCHIVE[0] + ARCHIVE[2]
    path = tmp_path / "a.warc"
    for size in range(len(ARCHIVE[0]) + 1, len(whole) - 4, 7):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"a\.warc: the archive is damaged or cut off behind"):
            list(RecordReader(expand(path), lambda bad: None))


def test_a_compressed_archive_that_is_cut_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.warc.gz"
    path.write_bytes(gzip.compress(ARCHIVE[2]) + gzip.compress(ARCHIVE[3])[:-30])
    with pytest.raises(DataError, match=r"a\.warc\.gz: the compressed content is .*cut off"):
        list(RecordReader(expand(path)))


@pytest.mark.parametrize("content", [b"no archive\n" * 9, ARCHIVE[2] + b"garbage " * 9])
def test_what_is_no_archive_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.warc"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.warc: the archive is damaged or cut off behind"):
        list(RecordReader(expand(path)))


def test_html_files(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_bytes(page("Stra\u00dfe"))
    meta = PAGE.replace("<head>", "<head><meta charset='iso-8859-1'>").format("Stra\u00dfe")
    (tmp_path / "b.htm.gz").write_bytes(gzip.compress(meta.encode("latin-1")))
    (tmp_path / "c.html").write_bytes(b"<html><body></body></html>")
    reader = DocumentReader(expand(tmp_path))
    assert ["Stra\u00dfe is what" in d.text for d in reader] == [True, True]
    assert reader.empty == 1
    values = [r.value for r in RecordReader(expand(tmp_path))]
    assert [v["url"] for v in values] == [
        str(tmp_path / n) for n in ("a.html", "b.htm.gz", "c.html")
    ]
