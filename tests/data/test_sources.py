"""What ``sources:`` may name, in which order it is read, and what is refused."""

import logging
import os
from pathlib import Path

import pytest

from toolkit.data.sources import expand
from toolkit.errors import DataError


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files at several depths, hidden ones, and ones that aren't data."""
    for name in (
        *("b.jsonl", "a.txt", "c/2.parquet", "c/10.jsonl.gz", "c/d/x.JSONL.ZST", "with space.txt"),
        *(".hidden.jsonl", ".git/x.jsonl", "_SUCCESS", "_delta_log/0.json", "README.md", "LICENSE"),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


IN_ORDER = ["a.txt", "b.jsonl", "c/10.jsonl.gz", "c/2.parquet", "c/d/x.JSONL.ZST", "with space.txt"]


def names(*sources: str | Path) -> list[str]:
    return [source.name for source in expand(sources)]


def test_a_folder_is_its_data_files_sorted(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert names(tree) == [str(tree / name) for name in IN_ORDER]
    assert caplog.messages == [
        f"folder {tree}: passed over files of unknown formats: 1 x .md, 1 x no suffix"
    ]


def test_formats_and_sizes(tree: Path) -> None:
    found = {s.name: (s.format, s.compression, s.size) for s in expand(["c", "sample:python-docs"])}
    assert found == {
        "c/10.jsonl.gz": ("jsonl", "gz", 1),
        "c/2.parquet": ("parquet", "", 1),
        "c/d/x.JSONL.ZST": ("jsonl", "zst", 1),
        "sample:python-docs": ("sample", "", 0),
    }


def test_sources_keep_the_order_they_are_given_in(tree: Path) -> None:
    assert names("c/2.parquet", "b.jsonl", "sample:python-docs/held-out", "a.txt") == [
        *("c/2.parquet", "b.jsonl", "sample:python-docs/held-out", "a.txt"),
    ]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.txt", ["a.txt", "with space.txt"]),
        ("c/*", ["c/10.jsonl.gz", "c/2.parquet", "c/d/x.JSONL.ZST"]),
        ("c/[0-9].parquet", ["c/2.parquet"]),
        ("**/*.gz", ["c/10.jsonl.gz"]),
        ("**/[a-b].*", ["a.txt", "b.jsonl"]),
    ],
)
def test_patterns(tree: Path, pattern: str, found: list[str]) -> None:
    assert names(pattern) == found
    assert names(tree / pattern) == [str(tree / name) for name in found]


def test_a_file_whose_name_looks_like_a_pattern(tree: Path) -> None:
    (tree / "data[1].jsonl").write_bytes(b"x")
    (tree / "data1.jsonl").write_bytes(b"x")
    assert names("data[1].jsonl") == ["data[1].jsonl"]


def test_home_is_expanded(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tree))
    assert names("~/a.txt") == [str(tree / "a.txt")]


def test_links_are_followed_and_a_loop_ends(tree: Path) -> None:
    elsewhere = tree.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "far.jsonl").write_bytes(b"x")
    data = tree / "data"
    data.mkdir()
    (data / "linked").symlink_to(elsewhere)
    (data / "up").symlink_to(data)
    (data / "one.txt").symlink_to(tree / "a.txt")
    assert names("data") == ["data/linked/far.jsonl", "data/one.txt"]


@pytest.mark.parametrize(
    "sources",
    [
        ["b.jsonl", "b.jsonl"],
        ["b.jsonl", "./b.jsonl"],
        ["c", "c/*.gz"],
        ["c", "c/d"],
        ["b.jsonl", "link.jsonl"],
        ["sample:python-docs", "sample:python-docs"],
    ],
)
def test_nothing_is_read_twice(tree: Path, sources: list[str]) -> None:
    (tree / "link.jsonl").symlink_to("b.jsonl")
    with pytest.raises(DataError, match=r"would be read twice: .* and .* both name it"):
        expand(sources)


def test_hard_links_and_equal_content_are_files_of_their_own(tree: Path) -> None:
    os.link(tree / "b.jsonl", tree / "hard.jsonl")
    assert len(names("b.jsonl", "hard.jsonl")) == 2


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("c/missing.jsonl", r"c/missing\.jsonl: no such file or folder\n  .*/c exists; .*missing"),
        ("nowhere/*.jsonl", r"nowhere/\*\.jsonl: no file matches this pattern"),
        ("*.csv", "no file matches"),
        ("*.md", r"no file that can be read in the pattern \*\.md; it has: 1 x \.md\n.*\.parquet"),
        ("README.md", r"README\.md: the file's suffix names no known format\n.*\.jsonl.*\.gz"),
        ("LICENSE", "LICENSE: the file's suffix names no known format"),
        ("empty", r"in the folder empty; it is empty"),
        ("hidden-only", r"in the folder hidden-only; it is empty"),
        ("empty.jsonl", r"empty\.jsonl: the file is empty \(0 bytes\)"),
        ("dangling.jsonl", r"dangling\.jsonl: can't be read: No such file"),
        ("pipe.jsonl", r"pipe\.jsonl: not a regular file"),
        ("sample:python-dogs", r"no sample is called 'python-dogs'\n.*sample:python-docs"),
        ("sample:", r"no sample is called ''"),
    ],
)
def test_what_is_refused(tree: Path, source: str, message: str) -> None:
    (tree / "empty").mkdir()
    (tree / "hidden-only").mkdir()
    (tree / "hidden-only" / ".a.jsonl").write_bytes(b"x")
    (tree / "empty.jsonl").touch()
    (tree / "dangling.jsonl").symlink_to("nothing")
    os.mkfifo(tree / "pipe.jsonl")
    with pytest.raises(DataError, match=message):
        expand(source)


def test_no_sources() -> None:
    with pytest.raises(DataError, match="no sources"):
        expand([])
