"""Objects behind URLs: found, read whole, and resumed where a connection breaks."""

import gzip
import io
import json
import logging
import pickle
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from toolkit.data import remote, streams
from toolkit.data.documents import DocumentReader
from toolkit.data.readers import RecordReader
from toolkit.data.shards import Part, plan_shards
from toolkit.data.sources import expand
from toolkit.errors import DataError

ROWS = [{"text": f"document {n} " + "x" * 90} for n in range(5000)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


class Handler(BaseHTTPRequestHandler):
    """Serves ``files``; breaks a body after ``breaks[path].pop()`` bytes."""

    files: ClassVar[dict[str, bytes]] = {}
    breaks: ClassVar[dict[str, list[int]]] = {}
    ranges: ClassVar[bool] = True
    status: ClassVar[int] = 200
    etag: ClassVar[str] = '"one"'
    requests: ClassVar[list[str]] = []
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        content = self.files.get(self.path)
        if content is None or self.status != 200:
            self.send_error(404 if content is None else self.status)
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        total = len(content)
        self.send_response(206 if asked and self.ranges else 200)
        if asked and self.ranges:
            start, stop = int(asked[1]), int(asked[2] or total - 1) + 1
            content = content[start:stop]
            self.send_header("Content-Range", f"bytes {start}-{start + len(content) - 1}/{total}")
        if self.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", self.etag)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.requests.append(f"{self.path} {self.headers.get('Range')}")
            left = self.breaks.get(self.path)
            cut = left.pop(0) if left else None
            self.wfile.write(content[:cut])
            if cut is not None and cut < len(content):
                self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(remote, "PAUSE", 0.001)
    monkeypatch.setattr(remote, "BLOCK", 100_000)
    for name, value in (
        ("files", {}),
        ("breaks", {}),
        ("ranges", True),
        ("requests", []),
        ("status", 200),
    ):
        monkeypatch.setattr(Handler, name, value)
    monkeypatch.setattr(Handler, "etag", '"one"')
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    http.server_close()


def values(url: str) -> list[object]:
    return [record.value for record in RecordReader(expand(url))]


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_http_with_and_without_ranges(server: str, ranges: bool, suffix: str) -> None:
    Handler.ranges = ranges
    content = gzip.compress(LINES) if suffix.endswith("gz") else LINES
    Handler.files[f"/a.{suffix}"] = content
    [source] = expand(f"{server}/a.{suffix}")
    assert (source.size, source.etag, source.seekable) == (len(content), "one", ranges)
    reader = RecordReader([source])
    assert [r.value for r in reader] == ROWS
    assert reader.bytes_read == reader.bytes_total == len(content)
    assert len(plan_shards([source], 1000)) == (
        len(LINES) // 1000 + 1 if ranges and suffix == "jsonl" else 1
    )


def test_a_query_is_no_part_of_the_suffix(server: str) -> None:
    Handler.files["/a.jsonl?part=1&x=*"] = LINES
    assert values(f"{server}/a.jsonl?part=1&x=*") == ROWS


@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_breaks_is_resumed(
    server: str, ranges: bool, caplog: pytest.LogCaptureFixture
) -> None:
    Handler.ranges = ranges
    Handler.files["/a.jsonl"] = LINES
    Handler.breaks["/a.jsonl"] = [70_000, 70_000, 90_000]
    with caplog.at_level(logging.WARNING):
        assert values(f"{server}/a.jsonl") == ROWS
    assert Handler.breaks["/a.jsonl"] == []
    assert any("the connection broke at byte" in message for message in caplog.messages)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_always_breaks_is_an_error(server: str, ranges: bool) -> None:
    Handler.ranges = ranges
    Handler.files["/a.jsonl"] = LINES
    [source] = expand(f"{server}/a.jsonl")
    Handler.breaks["/a.jsonl"] = [7_000] * 1000
    with pytest.raises(DataError, match=r"a\.jsonl: the connection broke at byte .* 5 times"):
        list(RecordReader([source]))


@pytest.mark.parametrize("ranges", [True, False])
def test_an_object_that_changes(server: str, ranges: bool) -> None:
    Handler.ranges = ranges
    Handler.files["/a.jsonl"] = LINES
    [source] = expand(f"{server}/a.jsonl")
    Handler.etag = '"two"'
    with pytest.raises(DataError, match=r"was changed since the work was planned.*one.*two"):
        list(RecordReader([source]))
    Handler.etag = '"one"'
    Handler.files["/a.jsonl"] = LINES + LINES
    with pytest.raises(DataError, match=r"was changed since the work was planned"):
        list(RecordReader([source]))


@pytest.mark.parametrize("breaks", [[], [10]])
def test_an_object_that_changes_while_it_is_read(
    server: str, breaks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "BLOCK", 10_000)
    Handler.files["/a.jsonl"] = LINES
    records = iter(RecordReader(expand(f"{server}/a.jsonl")))
    next(records)
    Handler.etag = '"two"'
    Handler.breaks["/a.jsonl"] = breaks
    with pytest.raises(DataError, match="was changed since the work was planned"):
        list(records)


def test_what_is_not_there(server: str) -> None:
    with pytest.raises(DataError, match=r"http://.*/none\.jsonl: there is no such object"):
        expand(f"{server}/none.jsonl")
    with pytest.raises(DataError, match=r"can't be read: .*[Cc]onnect"):
        expand("http://127.0.0.1:9/a.jsonl")
    Handler.status, Handler.files["/a.jsonl"] = 403, LINES
    with pytest.raises(DataError, match=r"can't be read: 403"):
        expand(f"{server}/a.jsonl")
    Handler.status = 200
    Handler.files["/a.csv"] = b"a"
    with pytest.raises(DataError, match=r"a\.csv: the URL's suffix names no known format"):
        expand(f"{server}/a.csv")


def parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), sink, row_group_size=1000)
    return sink.getvalue()


def test_parquet_needs_ranges(server: str) -> None:
    Handler.files["/a.parquet"] = parquet()
    assert values(f"{server}/a.parquet") == ROWS
    sources = expand(f"{server}/a.parquet")
    assert len(plan_shards(sources, sources[0].size // 4)) == 5
    Handler.ranges = False
    with pytest.raises(DataError, match=r"(?s)can't be read from its middle.*download"):
        values(f"{server}/a.parquet")


@pytest.fixture
def memory() -> Iterator[str]:
    system = fsspec.filesystem("memory")
    for name, content in {
        "data/b.jsonl": LINES,
        "data/a/c.parquet": parquet(),
        "data/a/_SUCCESS": b"x",
        "data/README.md": b"x",
        "data/d.jsonl.gz": gzip.compress(LINES),
    }.items():
        system.pipe(f"/{name}", content)
    yield "memory://data"
    system.rm("/data", recursive=True)


def test_an_object_store(memory: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        sources = expand(memory)
    assert [s.name for s in sources] == [
        *("memory:///data/a/c.parquet", "memory:///data/b.jsonl", "memory:///data/d.jsonl.gz"),
    ]
    assert any("passed over files of unknown formats: 1 x .md" in m for m in caplog.messages)
    assert [r.value for r in RecordReader(sources)] == ROWS * 3
    assert [s.name for s in expand(f"{memory}/*.jsonl*")] == [s.name for s in sources[1:]]
    assert pickle.loads(pickle.dumps(sources)) == sources


def test_shards_of_objects(memory: str) -> None:
    sources = expand(memory)
    shards = plan_shards(sources, 40_000)
    assert sum(shard.size for shard in shards) == sum(source.size for source in sources)
    found = [d for shard in shards for d in DocumentReader(shard.parts)]
    whole = list(DocumentReader([Part.of(source) for source in sources]))
    assert [d.text for d in found] == [d.text for d in whole]
    lines = [d.where for d in found if "b.jsonl" in d.where]
    assert lines[0] == "memory:///data/b.jsonl:1"
    assert re.fullmatch(r"memory:///data/b\.jsonl\[from byte \d+\]:\d+", lines[-1])
    assert len(shards) > len(sources)


def test_a_file_url_is_a_path(tmp_path: object) -> None:
    path = f"{tmp_path}/a.jsonl"
    with open(path, "wb") as stream:  # noqa: PTH123 - the fixture as text
        stream.write(LINES)
    [source] = expand(f"file://{path}")
    assert source.name == path
    assert source.path is not None


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://nowhere/a.jsonl", "there is no such object"),
        ("memory://nowhere/*.jsonl", "no object is there, or matches this pattern"),
        ("s4://bucket/a.jsonl", r"s4:// is no kind of URL.*did you mean s3://.*valid: s3, "),
        ("htp://host/a.jsonl", r"htp:// is no kind of URL.*did you mean http"),
    ],
)
def test_urls_that_are_refused(url: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        expand(url)


@pytest.mark.parametrize(("scheme", "package"), [("s3", "s3fs"), ("gs", "gcsfs"), ("az", "adlfs")])
def test_a_missing_driver_is_named(scheme: str, package: str) -> None:
    try:
        __import__(package)
    except ImportError:
        with pytest.raises(
            DataError, match=f"needs the package {package}.*\n.*pip install {package}"
        ):
            expand(f"{scheme}://bucket/a.jsonl")
    else:
        pytest.skip(f"{package} is installed here")
