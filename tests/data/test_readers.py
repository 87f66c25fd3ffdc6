"""Every format gives the same records; everything that is no record is named, or set aside."""

import bz2
import gzip
import io
import json
import lzma
import tempfile
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.data import streams
from toolkit.data.json_items import array_items
from toolkit.data.readers import BadRecord, OnBad, RecordReader, read_records
from toolkit.data.shards import plan_shards
from toolkit.data.sources import expand
from toolkit.errors import DataError

ROWS = [{"text": "one"}, {"text": "zwei \u00e4\u4e2d\U0001f600"}, {"text": "nul \x00 and \u2028"}]
LINES = [json.dumps(row, ensure_ascii=False).encode() for row in ROWS]
JSONL = b"\n".join(LINES) + b"\n"


def zst(*frames: bytes) -> bytes:
    return b"".join(zstandard.compress(frame) for frame in frames)


SKIPPABLE = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"

SAME = {
    "plain.jsonl": JSONL,
    "no-final-newline.jsonl": JSONL.rstrip(b"\n"),
    "crlf.jsonl": JSONL.replace(b"\n", b"\r\n"),
    "mark.jsonl": b"\xef\xbb\xbf" + JSONL,
    "blank-lines.jsonl": b"\n\n" + JSONL.replace(b"\n", b"\n  \n\r\n") + b"\n",
    "one.jsonl.gz": gzip.compress(JSONL),
    "members.jsonl.gz": b"".join(gzip.compress(line + b"\n") for line in LINES),
    "member-inside-a-line.jsonl.gz": gzip.compress(JSONL[:9]) + gzip.compress(JSONL[9:]),
    "one.jsonl.zst": zst(JSONL),
    "frames.jsonl.zst": zst(*(line + b"\n" for line in LINES)),
    "skippable.jsonl.zst": SKIPPABLE + zst(JSONL[:9]) + SKIPPABLE + zst(b"", JSONL[9:]),
    "one.jsonl.bz2": bz2.compress(JSONL),
    "streams.jsonl.bz2": bz2.compress(JSONL[:9]) + bz2.compress(JSONL[9:]),
    "one.jsonl.xz": lzma.compress(JSONL),
    "streams.jsonl.xz": lzma.compress(JSONL[:9]) + bytes(8) + lzma.compress(JSONL[9:]) + bytes(4),
    "mark-in-frames.jsonl.zst": zst(b"\xef", b"\xbb", b"\xbf", JSONL),
    "array.json": b"[" + b", ".join(LINES) + b"]",
    "pretty.json": json.dumps(ROWS, indent=2).encode(),
    "array.json.gz": gzip.compress(b" \n[" + b",\n".join(LINES) + b"]\n"),
    "lines.json": JSONL,
    "A Name With Spaces.JSONL": JSONL,
}


def write(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", SAME)
def test_the_same_records_whatever_the_file(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name, SAME[name])
    records = list(read_records(path))
    assert [r.value for r in records] == ROWS
    assert [r.where.rpartition(":")[0] for r in records] == [str(path)] * 3


def test_where_is_the_line_and_blank_lines_count(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", b'{"a":1}\n\n\r\n{"a":2}\n')
    assert [r.where for r in read_records(path)] == [f"{path}:1", f"{path}:4"]


def test_the_last_of_a_key_given_twice_counts(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", b'{"text": "one", "text": "two"}\n')
    assert next(read_records(path)).value == {"text": "two"}


def test_a_line_longer_than_many_blocks(tmp_path: Path) -> None:
    long = "x" * (3 * streams.BLOCK + 17)
    path = write(tmp_path, "a.jsonl", b'{"a":"%s"}\n{"a":2}' % long.encode())
    assert [r.value["a"] for r in read_records(path)] == [long, 2]


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "LONGEST_LINE", 2 * streams.BLOCK)
    path = write(tmp_path, "a.jsonl", b'{"a":1}\n' + b" " * (4 * streams.BLOCK))
    with pytest.raises(DataError, match=r"a\.jsonl:2: a line of more than 2,097,152 bytes"):
        list(read_records(path))


BAD = {
    "cut off": (b'{"text": "a', "invalid JSON: .*column"),
    "no JSON": (b"text: a", "invalid JSON"),
    "two values": (b'{"text": "a"} {"text": "b"}', "invalid JSON: .*column 15"),
    "single quotes": (b"{'text': 'a'}", "invalid JSON: .*column 2"),
    "not a number": (b'{"text": NaN}', "invalid JSON"),
    "lone surrogate": (b'{"text": "\\ud800"}', "invalid JSON: .*surrogate"),
    "bare control character": (b'{"text": "a\x01"}', "invalid JSON: .*control character"),
    "zeros of a crash": (b"\0" * 64, "invalid JSON"),
    "Latin-1": ('{"text": "\u00e4"}'.encode("latin-1"), r"invalid UTF-8: .* byte 0xe4 \(byte 11\)"),
    "UTF-16": ('{"text": "a"}'.encode("utf-16"), "invalid UTF-8: .*UTF-16: convert"),
    "encoded surrogate": (b'{"text": "\xed\xa0\x80"}', "invalid UTF-8: .*0xed"),
    "array": (b'["text"]', "an array where a JSON object was expected"),
    "string": (b'"text"', "a string where"),
    "number": (b"17", "a number where"),
    "boolean": (b"true", "a boolean where"),
    "null": (b"null", "null where"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_line_is_an_error_with_its_number(tmp_path: Path, case: str) -> None:
    line, reason = BAD[case]
    path = write(tmp_path, "a.jsonl", b"\n".join([LINES[0], line, LINES[1]]))
    records = read_records(path)
    assert next(records).value == ROWS[0]
    with pytest.raises(DataError, match=rf"a\.jsonl:2: {reason}"):
        next(records)


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.zst", "json"])
def test_bad_lines_lose_only_themselves(tmp_path: Path, suffix: str) -> None:
    bad_lines = [line for line, _ in BAD.values() if b"\n" not in line]
    content = LINES[0] + b"\n" + b"".join(b + b"\n" + LINES[1] + b"\n" for b in bad_lines)
    pack = {"jsonl.gz": gzip.compress, "jsonl.zst": zstandard.compress}.get(suffix, bytes)
    path = write(tmp_path, f"a.{suffix}", pack(content))
    bad: list[BadRecord] = []
    records = list(read_records(path, bad.append))
    assert [r.value for r in records] == [ROWS[0]] + [ROWS[1]] * len(bad_lines)
    assert [b.raw for b in bad] == bad_lines
    assert [b.where for b in bad] == [f"{path}:{2 * n}" for n in range(1, len(bad_lines) + 1)]


def rewritten(path: Path, kind: str) -> bytes:
    content = path.read_bytes()
    return {
        "cut": content[: len(content) // 2],
        "no end mark": content[:-8],
        "header": content[:4] + b"\xff\xff\xff\x7f" + content[8:],
        "garbage": b"ARROW1" + b"x" * 100,
        "no arrow": b"x" * 100,
    }[kind]


@pytest.mark.parametrize("kind", ["cut", "no end mark", "header", "garbage", "no arrow"])
def test_a_damaged_arrow_stream_is_an_error(tmp_path: Path, kind: str) -> None:
    table = pa.table({"text": [f"row {n}" for n in range(5000)]})
    path = tmp_path / "a.arrow"
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=1000)
    path.write_bytes(rewritten(path, kind))
    with pytest.raises(DataError, match=r"a\.arrow: (not a readable arrow file|can't be read)"):
        list(read_records(path, lambda bad: None))


@given(st.binary(min_size=1, max_size=200), st.integers(0, 2000))
@settings(deadline=None, max_examples=200, derandomize=True)
def test_an_arrow_stream_with_other_bytes_is_an_error_or_read(content: bytes, at: int) -> None:
    table = pa.table({"text": [f"row {n}" for n in range(100)]})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=50)
    whole = sink.getvalue()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.arrow"
        path.write_bytes(whole[:at] + content + whole[at + len(content) :])
        try:
            count = sum(1 for _ in read_records(path, lambda bad: None))
        except DataError:
            return
    assert count <= 100


def test_a_flipped_bit_in_a_parquet_page_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": ["the needle in the stack"] + [f"row {n}" for n in range(500)]})
    pq.write_table(
        table,
        path,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
        write_page_checksum=True,
    )
    content = path.read_bytes()
    path.write_bytes(content.replace(b"needle", b"noodle", 1))
    with pytest.raises(DataError, match=r"a\.parquet: .*(checksum|CRC)"):
        list(read_records(path))


@pytest.mark.parametrize("kind", ["file", "stream", "compressed", "dictionaries"])
def test_arrow_files_and_streams(tmp_path: Path, kind: str) -> None:
    texts = pa.array([f"row {n % 7}" for n in range(5000)])
    table = pa.table({"text": texts.dictionary_encode() if kind == "dictionaries" else texts})
    path = tmp_path / "a.arrow"
    options = pa.ipc.IpcWriteOptions(compression="zstd" if kind == "compressed" else None)
    new = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
    with new(path, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=700)
    [source] = expand(path)
    whole = [(r.where, r.value["text"]) for r in RecordReader([source])]
    assert whole == [(f"{path}:{n + 1}", f"row {n % 7}") for n in range(5000)]
    parts = [part for shard in plan_shards([source], source.size // 3) for part in shard.parts]
    assert len(parts) == (1 if kind == "dictionaries" else 4)
    assert [(r.where, r.value["text"]) for r in RecordReader(parts)] == whole


def test_elements_of_an_array_that_are_no_objects(tmp_path: Path) -> None:
    path = write(tmp_path, "a.json", b'[{"a": 1}, 2, {"a": 3}]')
    bad: list[BadRecord] = []
    assert [r.where for r in read_records(path, bad.append)] == [f"{path}:1", f"{path}:3"]
    assert bad == [BadRecord(f"{path}:2", "a number where a JSON object was expected", b"2")]
    with pytest.raises(DataError, match=r"a\.json:2: a number"):
        list(read_records(path))


def damaged_parquet(folder: Path) -> bytes:
    pq.write_table(pa.table({"text": ["a"] * 10_000}), folder / "whole")
    return (folder / "whole").read_bytes()[:-20]


GZIPPED = gzip.compress(bytes(range(256)) * 400)
DAMAGED = {
    "cut.jsonl.gz": gzip.compress(JSONL)[:-12],
    "no-gzip.jsonl.gz": JSONL,
    "garbage.jsonl.gz": GZIPPED[:20] + b"\xff" * 40 + GZIPPED[60:],
    "checksum.jsonl.gz": gzip.compress(JSONL)[:-8] + b"\0" * 8,
    "cut.jsonl.zst": zst(JSONL)[:-3],
    "cut-second-frame.jsonl.zst": zst(JSONL) + zst(JSONL)[:-3],
    "no-zstd.jsonl.zst": JSONL,
    "garbage-behind.jsonl.gz": gzip.compress(JSONL) + b"garbage",
    "garbage-behind.jsonl.zst": zst(JSONL) + b"garbage",
    "cut.jsonl.bz2": bz2.compress(JSONL)[:-7],
    "cut-second-stream.jsonl.bz2": bz2.compress(JSONL) + bz2.compress(JSONL)[:-7],
    "garbage-behind.jsonl.bz2": bz2.compress(JSONL) + b"garbage",
    "no-bzip2.jsonl.bz2": JSONL,
    "cut.jsonl.xz": lzma.compress(JSONL)[:-7],
    "garbage-behind.jsonl.xz": lzma.compress(JSONL) + b"garbage",
    "checksum.jsonl.xz": lzma.compress(JSONL)[:-40] + bytes(40),
    "no-xz.jsonl.xz": JSONL,
    "cut.json": b'[{"text": "a"},\n {"text": "b"},\n',
    "cut.parquet": b"",
    "no-parquet.parquet": JSONL,
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_an_error_also_where_bad_records_are_not(
    tmp_path: Path, name: str
) -> None:
    content = DAMAGED[name] or damaged_parquet(tmp_path)
    path = write(tmp_path, name, content)
    with pytest.raises(DataError) as caught:
        list(read_records(path, lambda bad: None))
    assert str(caught.value).startswith(str(path))


def test_a_bad_item_of_an_array_loses_only_itself(tmp_path: Path) -> None:
    items = '[{"a": "\u00e4"},\n {"a" 3},\n nonsense, {"a": "]"}, [1}, "\ud83d\\ud800", {"a": 4} ]'
    path = write(tmp_path, "a.json", items.encode("utf-8", "surrogatepass"))
    bad: list[BadRecord] = []
    records = list(read_records(path, bad.append))
    assert [(r.where, r.value["a"]) for r in records] == [
        *((f"{path}:1", "\u00e4"), (f"{path}:4", "]"), (f"{path}:7", 4)),
    ]
    assert [b.where for b in bad] == [f"{path}:{n}" for n in (2, 3, 5, 6)]
    assert bad[0].raw == b'{"a" 3}'
    with pytest.raises(DataError, match=r"a\.json:2: invalid JSON.*column 6"):
        list(read_records(path))


BROKEN_ARRAYS = {
    "no end": (b'[{"a": 1}, {"a": 2}', "behind item 1 .* no end"),
    "no end behind a comma": (b'[{"a": 1},', "behind item 1 .* no end"),
    "open quote": (b'[{"a": 1}, {"a": "2}, {"a": 3}]', "behind item 1 .* no end: .* lacks a quote"),
    "comma at the end": (b'[{"a": 1},]', "nothing between two commas, or behind the last"),
    "two commas": (b'[{"a": 1},,{"a": 2}]', "behind item 1 .*nothing between two commas"),
    "only a comma": (b"[,]", "behind item 0 .*nothing between"),
    "something behind it": (b'[{"a": 1}]\n{"a": 2}', "behind item 1 .*something stands behind"),
    "a comma after objects": (b'[{"a": 1}, {"a": 2}, ]', "behind item 2 .*nothing between two"),
    "two arrays": (b'[{"a": 1}][{"a": 2}]', "something stands behind"),
    "a brace too many": (b'[{"a": 1}}, {"a": 2}]', "a '}' that nothing opened"),
}


@pytest.mark.parametrize("case", BROKEN_ARRAYS)
@pytest.mark.parametrize("on_bad", [None, lambda bad: None])
def test_a_broken_array_is_an_error(tmp_path: Path, case: str, on_bad: OnBad | None) -> None:
    content, message = BROKEN_ARRAYS[case]
    path = write(tmp_path, "a.json", content)
    with pytest.raises(DataError, match=f"a\\.json: invalid JSON .*{message}"):
        list(read_records(path, on_bad))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.text(max_size=5)
    | st.sampled_from(["}, {", "},{", '"}, {"', "\\", "]", "[{"])
    | st.floats(-1, 1),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.lists(JSON, max_size=6), st.integers(1, 9), st.sampled_from([None, 1]), st.booleans())
@settings(deadline=None, max_examples=250, derandomize=True)
def test_items_are_those_of_the_array_whatever_the_blocks(
    values: list[object], block: int, indent: int | None, ascii_only: bool
) -> None:
    content = b" \n" + json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode() + b"\n "
    blocks = (content[n : n + block] for n in range(0, len(content), block))
    assert [json.loads(item) for item, _ in array_items(blocks)] == values


SUFFIXES = [
    *("txt", "jsonl", "json", "html", "warc", "parquet", "arrow"),
    *("jsonl.gz", "jsonl.zst", "jsonl.bz2", "jsonl.xz"),
]
BEGINNINGS = [
    b"",
    b"[",
    b"PAR1",
    b"ARROW1\0\0",
    b"WARC/1.0\r\n",
    b"\x1f\x8b",
    b"\xff" * 4,
    SKIPPABLE,
]


@given(st.sampled_from(SUFFIXES), st.sampled_from(BEGINNINGS), st.binary(min_size=1, max_size=80))
@settings(deadline=None, max_examples=400, derandomize=True)
def test_any_bytes_are_records_or_an_error_that_names_the_file(
    suffix: str, beginning: bytes, content: bytes
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), f"a.{suffix}", beginning + content)
        try:
            records = list(read_records(path, lambda bad: None))
        except DataError as error:
            assert str(error).startswith(str(path))
        else:
            assert all(isinstance(record.value, dict) for record in records)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b"\n \n\r\n"),
        ("a.jsonl.gz", gzip.compress(b"", mtime=0)),
        ("a.jsonl.zst", zst(b"")),
        ("a.jsonl.bz2", bz2.compress(b"")),
        ("a.jsonl.xz", lzma.compress(b"")),
        ("a.json", b"[]"),
        ("a.txt.gz", gzip.compress(b"", mtime=0)),
        ("a.jsonl", b"\xef\xbb\xbf"),
    ],
)
def test_a_file_without_a_record_is_an_error(tmp_path: Path, name: str, content: bytes) -> None:
    with pytest.raises(DataError, match=r"a\.\S+: the file holds no records"):
        list(read_records(write(tmp_path, name, content)))


TEXT = "\ufeffOne.\r\nStill one.\r\n\r\n \r\n\r\nTwo \u00e4.\n\nThree.".encode()


@pytest.mark.parametrize(
    ("sample_by", "texts", "numbers"),
    [
        ("document", [TEXT.decode().lstrip("\ufeff")], [1]),
        ("paragraph", ["One.\nStill one.", "Two \u00e4.", "Three."], [1, 6, 8]),
        (
            "line",
            ["One.", "Still one.", "", " ", "", "Two \u00e4.", "", "Three."],
            [1, 2, 3, 4, 5, 6, 7, 8],
        ),
    ],
)
def test_text_files(tmp_path: Path, sample_by: str, texts: list[str], numbers: list[int]) -> None:
    path = write(tmp_path, "a.txt", TEXT)
    records = list(read_records(path, sample_by=sample_by))  # type: ignore[arg-type]
    assert [r.value for r in records] == [{"text": text} for text in texts]
    assert [r.where for r in records] == [f"{path}:{number}" for number in numbers]


@pytest.mark.parametrize("sample_by", ["document", "paragraph", "line"])
def test_a_text_that_is_no_utf8(tmp_path: Path, sample_by: str) -> None:
    path = write(tmp_path, "a.txt", b"fine\n\nnot \xff fine\n\nfine")
    bad: list[BadRecord] = []
    texts = [r.value["text"] for r in read_records(path, bad.append, sample_by=sample_by)]  # type: ignore[arg-type]
    assert [b.where for b in bad] == [f"{path}:3"]
    assert "byte 0xff (byte 5)" in bad[0].reason
    assert [t for t in texts if t] == ([] if sample_by == "document" else ["fine", "fine"])


def test_parquet_with_row_groups_and_other_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = [f"row {n}" for n in range(5000)]
    table = pa.table({"id": range(5000), "text": texts, "tags": [["a", None]] * 5000})
    pq.write_table(table, path, row_group_size=700)
    records = list(read_records(path, columns=["text"]))
    assert [r.value for r in records] == [{"text": text} for text in texts]
    assert records[-1].where == f"{path}:5000"
    whole = next(read_records(path))
    assert whole.value == {"id": 0, "text": "row 0", "tags": ["a", None]}


def test_parquet_without_the_column_names_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [1], "Text": ["a"]}), path)
    with pytest.raises(DataError, match=r"a\.parquet: .*'text'.*'id', 'Text'; did you mean 'Text'"):
        list(read_records(path, columns=["text"]))


def test_a_parquet_string_that_is_no_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    values = [b"fine"] * 1500 + [b"not \xff"] + [b"fine"] * 3
    pq.write_table(pa.table({"text": pa.array(values, pa.binary()).view(pa.string())}), path)
    bad: list[BadRecord] = []
    assert len(list(read_records(path, bad.append))) == 1503
    assert [(b.where, b.raw) for b in bad] == [(f"{path}:1501", b"not \xff")]
    assert "byte 0xff (byte 5)" in bad[0].reason


def test_bytes_read_reach_the_total(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.json"):
        write(tmp_path, name, SAME.get(name, JSONL if name != "d.json" else SAME["array.json"]))
    write(tmp_path, "b.jsonl.gz", gzip.compress(JSONL))
    write(tmp_path, "c.jsonl.zst", zst(JSONL))
    pq.write_table(pa.table({"text": ["a"] * 5000}), tmp_path / "e.parquet")
    sources = expand(tmp_path)
    reader = RecordReader(sources)
    positions = [reader.bytes_read for _ in reader]
    assert positions == sorted(positions)
    assert positions[0] > 0
    assert positions[-1] <= reader.bytes_total
    assert reader.bytes_read == reader.bytes_total == sum(s.size for s in sources)


def test_an_item_longer_than_many_blocks(tmp_path: Path) -> None:
    long = "x]" * (2 * streams.BLOCK + 17)
    path = write(tmp_path, "a.json", b'[{"a": 1}, {"a": "%s"}, {"a": 3}]' % long.encode())
    assert [r.value["a"] for r in read_records(path)] == [1, long, 3]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.xz", "a.json", "a.json.zst"])
def test_memory_stays_flat(tmp_path: Path, name: str) -> None:
    lines = [json.dumps({"text": f"memory {n} " * 100}).encode() for n in range(20_000)]
    array = ".json" in name and ".jsonl" not in name
    content = b"[" + b",\n".join(lines) + b"]" if array else b"\n".join(lines)
    pack = {
        "gz": lambda c: gzip.compress(c, 1),
        "xz": lambda c: lzma.compress(c, preset=0),
        "zst": zstandard.compress,
    }
    path = write(tmp_path, name, pack.get(name.rpartition(".")[2], bytes)(content))
    size = len(content)
    del content, lines
    tracemalloc.start()
    try:
        count = sum(1 for _ in read_records(path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 20_000
    assert size > 24e6 > 4 * peak


def test_real_files(shared_data: Path) -> None:
    counts = {
        "gsm8k_train.jsonl": 7473,
        "hh_harmless_500.jsonl.gz": 500,
        "self_instruct_seed_tasks.jsonl": 175,
        "tinyshakespeare.txt": 1,
    }
    for name, count in counts.items():
        assert sum(1 for _ in read_records(shared_data / name)) == count
