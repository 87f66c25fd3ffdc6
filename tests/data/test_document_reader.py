"""Texts under one key, a path of keys, or several keys; and what is counted as none."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from toolkit.data.documents import DocumentReader
from toolkit.data.readers import BadRecord
from toolkit.data.sources import expand
from toolkit.errors import DataError


def lines(folder: Path, *rows: Any) -> Path:
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_counts_add_up(tmp_path: Path) -> None:
    path = lines(
        tmp_path, {"text": "a"}, {"text": " \u2003\n"}, {"text": ""}, {"no": 1}, [], {"text": "b"}
    )
    bad: list[BadRecord] = []
    reader = DocumentReader(expand(path), on_bad=bad.append)
    assert [(d.text, d.texts, d.where) for d in reader] == [
        *(("a", ("a",), f"{path}:1"), ("b", ("b",), f"{path}:6")),
    ]
    assert (reader.read, reader.documents, reader.empty, reader.bad) == (6, 2, 2, 2)
    assert [b.where for b in bad] == [f"{path}:4", f"{path}:5"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"txet": "a"}, "there is no key 'text'; the keys are: 'txet'; did you mean 'text'|'txet'"),
        ({}, "there is no key 'text'; the keys are: none"),
        ({"text": None}, "the value of 'text' is null, not a text"),
        ({"text": 17}, "the value of 'text' is int '17', not a text"),
        ({"text": ["a"]}, "the value of 'text' is list .*, not a text"),
        ({"text": {"a": "b"}}, "the value of 'text' is dict .*, not a text"),
    ],
)
def test_a_record_without_a_text(tmp_path: Path, row: Any, reason: str) -> None:
    path = lines(tmp_path, {"text": "fine"}, row, {"text": "fine"})
    with pytest.raises(DataError, match=rf"a\.jsonl:2: {reason}"):
        list(DocumentReader(expand(path)))
    bad: list[BadRecord] = []
    assert len(list(DocumentReader(expand(path), "text", bad.append))) == 2
    assert [json.loads(b.raw) for b in bad] == [row]


def test_a_record_that_is_nested_too_deeply_to_be_written_again(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": ' + "[" * 300 + "]" * 300 + '}\n{"text": "fine"}\n')
    bad: list[BadRecord] = []
    reader = DocumentReader(expand(path), on_bad=bad.append)
    assert [document.text for document in reader] == ["fine"]
    assert (bad[0].where, reader.bad) == (f"{path}:1", 1)
    assert b"Recursion limit" in bad[0].raw


def test_a_path_of_keys(tmp_path: Path) -> None:
    rows = [
        {"meta": {"text": "within"}},
        {"meta.text": "by that name", "meta": {"text": "within"}},
        {"meta": {"txt": "near"}},
        {"meta": "a string"},
        {"meta": {"text": None}},
    ]
    path = lines(tmp_path, *rows)
    bad: list[BadRecord] = []
    reader = DocumentReader(expand(path), "meta.text", bad.append)
    assert [d.text for d in reader] == ["within", "by that name"]
    assert [b.reason for b in bad] == [
        "there is no key 'meta.text'; the keys are: 'meta.txt'; did you mean 'meta.txt'?",
        "there is no key 'meta.text'; the keys are: 'meta'; did you mean 'meta'?",
        "the value of 'meta.text' is null, not a text",
    ]


def test_several_keys(tmp_path: Path) -> None:
    rows = [
        {"title": "one", "body": {"text": "text one"}},
        {"title": "two"},
        {"title": None},
        {"title": "", "body": {"text": "only a text"}},
        {"title": " ", "body": {"text": ""}},
    ]
    path = lines(tmp_path, *rows)
    bad: list[BadRecord] = []
    reader = DocumentReader(expand(path), ["title", "body.text"], bad.append)
    assert [d.texts for d in reader] == [("one", "text one"), ("", "only a text")]
    assert (reader.documents, reader.empty, reader.bad) == (2, 1, 2)
    assert [b.where for b in bad] == [f"{path}:2", f"{path}:3"]
    assert "no key 'body.text'" in bad[0].reason
    assert "'title' is null" in bad[1].reason and "no key 'body.text'" in bad[1].reason


def table(folder: Path, suffix: str, columns: dict[str, Any]) -> Path:
    path = folder / f"a.{suffix}"
    rows = pa.table(columns)
    if suffix == "parquet":
        pq.write_table(rows, path)
    else:
        with pa.ipc.new_stream(path, rows.schema) as writer:
            writer.write_table(rows)
    return path


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_columns_of_several_types(tmp_path: Path, suffix: str) -> None:
    columns = {
        "id": [1, 2, 3],
        "text": pa.array(["a", None, "c"]).dictionary_encode(),
        "meta": [{"text": "x", "n": 1}, {"text": "y", "n": 2}, None],
        "large": pa.array(["a", "b", "c"], pa.large_string()),
        "nothing": [None, None, None],
        "bytes": [b"a", b"b", b"c"],
    }
    path = table(tmp_path, suffix, columns)
    found: dict[str, Any] = {}
    for key in ("text", "meta.text", "large", "nothing"):
        reader = DocumentReader(expand(path), key, on_bad=lambda bad: None)
        found[key] = [[d.text for d in reader], reader.bad]
    assert found == {
        "text": [["a", "c"], 1],
        "meta.text": [["x", "y"], 1],
        "large": [["a", "b", "c"], 0],
        "nothing": [[], 3],
    }
    both = DocumentReader(expand(path), ["large", "meta.text"], on_bad=lambda bad: None)
    assert [d.texts for d in both] == [("a", "x"), ("b", "y")]


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("id", "the column 'id' holds int64, not strings"),
        ("bytes", "the column 'bytes' holds binary, not strings"),
        ("meta", "the column 'meta' holds struct<.*>, not strings"),
        ("meta.txt", r"there is no key 'meta\.txt'; .*'meta\.text'.*did you mean 'meta\.text'"),
        ("id.text", r"there is no key 'id\.text'"),
    ],
)
def test_a_file_of_another_schema_is_an_error_in_either_case(
    tmp_path: Path, suffix: str, key: str, message: str
) -> None:
    path = table(tmp_path, suffix, {"id": [1], "bytes": [b"a"], "meta": [{"text": "x"}]})
    for on_bad in (None, lambda bad: None):
        with pytest.raises(DataError, match=rf"a\.{suffix}: {message}"):
            list(DocumentReader(expand(path), key, on_bad))
