"""However sources are cut into shards, the records are those of the whole files, once, in order."""

import itertools
import json
import os
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.data import ranges
from toolkit.data.config import SampleBy
from toolkit.data.documents import DocumentReader
from toolkit.data.readers import BadRecord, RecordReader
from toolkit.data.shards import Part, Shard, plan_shards
from toolkit.data.sources import Source, expand
from toolkit.errors import DataError

PIECES = st.sampled_from(
    [
        *(b"\n", b"\r\n", b"\n\n", b" \n", b"\t\r\n", b"\x0b", b"\r", b" "),
        *(b'{"text": "a"}\n', b'{"text": "\xc3\xa4\xf0\x9f\x98\x80"}\n', b'{"text": 1}', b"[]\n"),
        *(
            b"x" * 40,
            b"\xef\xbb\xbf",
            b"\xff",
            b"\xe2\x80\xa8",
            b"word\r\n",
            "\u4e2d\u6587\n".encode(),
        ),
    ]
)
CONTENT = st.one_of(
    st.lists(PIECES, max_size=30).map(b"".join),
    st.lists(PIECES, max_size=30).map(lambda pieces: b"\xef\xbb\xbf" + b"".join(pieces)),
    st.binary(max_size=60),
)
CUTS = st.lists(st.integers(0, 200), max_size=8)
ONCE = settings(deadline=None, max_examples=400, derandomize=True)
Found = list[tuple[str, object]]


def read(parts: list[Part], sample_by: SampleBy) -> Found:
    """Every record and bad record of parts, in the order in which they are met."""
    found: Found = []

    def on_bad(bad: BadRecord) -> None:
        found.append((bad.where, (bad.reason, bad.raw)))

    for part in parts:
        try:
            for record in RecordReader([part], on_bad, sample_by=sample_by):
                found.append((record.where, record.value))
        except DataError as error:
            assert error.message == "the file holds no records"
    return found


def check_cuts(name: str, content: bytes, cuts: list[int], sample_by: SampleBy) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content or b"\n")
        [source] = expand(path)
        bounds = [0, *sorted(min(cut, source.size) for cut in cuts), None]
        parts = [Part(source, a or 0, b) for a, b in itertools.pairwise(bounds)]
        assert read(parts, sample_by) == read([Part.of(source)], sample_by)


@given(CONTENT, CUTS)
@ONCE
def test_json_lines_are_the_same_however_they_are_cut(content: bytes, cuts: list[int]) -> None:
    check_cuts("a.jsonl", content, cuts, "document")


@given(CONTENT, CUTS)
@ONCE
def test_lines_of_text_are_the_same_however_they_are_cut(content: bytes, cuts: list[int]) -> None:
    check_cuts("a.txt", content, cuts, "line")


@given(CONTENT, CUTS)
@ONCE
def test_paragraphs_are_the_same_however_they_are_cut(content: bytes, cuts: list[int]) -> None:
    check_cuts("a.txt", content, cuts, "paragraph")


@given(CONTENT, CUTS, st.integers(4, 9))
@settings(ONCE, max_examples=150)
def test_windows_smaller_than_lines_change_nothing(
    content: bytes, cuts: list[int], window: int
) -> None:
    before, ranges.WINDOW = ranges.WINDOW, window
    try:
        check_cuts("a.txt", content, cuts, "paragraph")
        check_cuts("a.jsonl", content, cuts, "document")
    finally:
        ranges.WINDOW = before


def test_every_cut_of_a_file_with_every_kind_of_trouble(tmp_path: Path) -> None:
    content = (
        b"\xef\xbb\xbf \r\n\n\xc3\xa4 one\r\nstill\n \t\n"
        + b"x" * 30
        + b"\n\r\n\r\n\xff bad\n\nend"
    )
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    [source] = expand(path)
    for sample_by in ("line", "paragraph"):
        whole = read([Part.of(source)], sample_by)
        assert len(whole) == (11 if sample_by == "line" else 4)
        for cut in range(len(content) + 1):
            parts = [Part(source, 0, cut), Part(source, cut, None)]
            assert read(parts, sample_by) == whole


def plan(sources: list[Source], size: int, sample_by: SampleBy = "document") -> list[Shard]:
    shards = plan_shards(sources, size, sample_by=sample_by)
    assert [shard.index for shard in shards] == list(range(len(shards)))
    assert all(shard.size == sum(part.size for part in shard.parts) for shard in shards)
    assert sum(shard.size for shard in shards) == sum(source.size for source in sources)
    return shards


def test_large_files_are_cut_and_small_ones_put_together(tmp_path: Path) -> None:
    for name, size in {"a.jsonl": 30, "b.jsonl": 30, "c.jsonl": 1000, "d.txt": 500}.items():
        (tmp_path / name).write_bytes(b"\n" * size)
    (tmp_path / "e.jsonl.gz").write_bytes(b"x" * 700)
    shards = plan(expand(tmp_path), 100)
    cuts = [[(Path(p.source.name).name, p.start, p.stop) for p in s.parts] for s in shards]
    assert cuts == [
        [("a.jsonl", 0, None), ("b.jsonl", 0, None)],
        *[[("c.jsonl", n, n + 100)] for n in range(0, 900, 100)],
        [("c.jsonl", 900, None)],
        [("d.txt", 0, None)],
        [("e.jsonl.gz", 0, None)],
    ]
    assert shards == plan(expand(tmp_path), 100)


def test_text_is_cut_where_a_document_is_a_line_or_a_paragraph(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"words\n\n" * 100)
    sources = expand(tmp_path)
    assert [len(plan(sources, 70, by)) for by in ("document", "line", "paragraph")] == [1, 10, 10]


def test_parquet_is_cut_at_row_groups(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [f"row {n}" for n in range(5000)]})
    pq.write_table(table, path, row_group_size=700)
    sources = expand(path)
    shards = plan(sources, sources[0].size // 3)
    assert [(p.start, p.stop) for s in shards for p in s.parts] == [
        *((0, 2), (2, 4), (4, 6), (6, None)),
    ]
    whole = read([Part.of(sources[0])], "document")
    assert [w for w, _ in whole] == [f"{path}:{n}" for n in range(1, 5001)]
    assert read([p for s in shards for p in s.parts], "document") == whole
    assert len(plan(sources, 100)) == 8


def test_documents_of_shards_are_counted_and_sized(tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"document {n}" * (n % 7)}) for n in range(400)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows) + "\n")
    [source] = expand(tmp_path)
    readers = [DocumentReader(shard.parts) for shard in plan([source], 1000)]
    documents = [document for reader in readers for document in reader]
    assert [d.text for d in documents] == [t for r in rows if (t := json.loads(r)["text"])]
    assert documents[-1].where == f"{source.name}:399"
    assert len(readers) > 5
    assert sum(reader.read for reader in readers) == 400
    assert [reader.bytes_read for reader in readers] == [reader.bytes_total for reader in readers]
    assert sum(reader.bytes_total for reader in readers) == source.size


def changes() -> dict[str, object]:
    def append(path: Path) -> None:
        with path.open("ab") as stream:
            stream.write(b'{"text": "more"}\n')

    def touch(path: Path) -> None:
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))

    return {
        "appended to": append,
        "written again": touch,
        "cut off": lambda path: os.truncate(path, 10),
        "gone": Path.unlink,
    }


@pytest.mark.parametrize("kind", changes())
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_file_that_changes_after_the_plan(tmp_path: Path, kind: str, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b'{"text": "a"}\n' * 100)
    if suffix == "parquet":
        pq.write_table(pa.table({"text": ["a"] * 100}), path)
    [shard] = plan(expand(path), 1 << 20)
    changes()[kind](path)  # type: ignore[operator]
    message = "No such file" if kind == "gone" else "was changed since the work was planned"
    with pytest.raises(DataError, match=rf"a\.{suffix}: .*{message}"):
        list(RecordReader(shard.parts))


def test_a_file_that_is_appended_to_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n' * 100)
    records = iter(RecordReader(expand(path)))
    next(records)
    with path.open("ab") as stream:
        stream.write(b'{"text": "more"}\n')
    with pytest.raises(DataError, match="was changed since the work was planned: it had 1,400"):
        list(records)
