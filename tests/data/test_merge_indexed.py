"""Merging: the bytes of all parts, in their order, as if one writer had written them."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from toolkit.data import merge
from toolkit.data.indexed import IndexedReader, IndexedWriter, bin_path, idx_path
from toolkit.data.merge import merge_indexed
from toolkit.errors import DataError

Documents = list[list[list[int]]]
"""Documents of sequences of tokens."""
PARTS: list[Documents] = [
    [[[1, 2, 3]], [[4], [5, 6]]],
    [],
    [[[7, 8, 9, 10], [11]], [[12]]],
]


def write(prefix: Path, documents: Documents, vocab_size: int = 100) -> Path:
    with IndexedWriter(prefix, vocab_size) as writer:
        for document in documents:
            tokens = np.array([t for sequence in document for t in sequence], np.uint32)
            lengths = np.array([len(sequence) for sequence in document])
            writer.write(tokens, lengths, sequences=np.array([len(document)]))
    return prefix


def both(prefix: Path) -> tuple[bytes, bytes]:
    return bin_path(prefix).read_bytes(), idx_path(prefix).read_bytes()


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    return [write(tmp_path / f"part-{n}", documents) for n, documents in enumerate(PARTS)]


def test_it_is_what_one_writer_writes(tmp_path: Path, parts: list[Path]) -> None:
    merge_indexed(parts, tmp_path / "all")
    whole = write(tmp_path / "whole", [document for part in PARTS for document in part])
    assert both(tmp_path / "all") == both(whole)
    assert IndexedReader(tmp_path / "all").document_indices.tolist() == [0, 1, 3, 5, 6]
    assert not list(tmp_path.glob(".*"))


def test_a_file_system_that_can_not_copy_ranges(
    tmp_path: Path, parts: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    merge_indexed(parts, tmp_path / "kernel")
    copied: list[int] = []
    write_all = os.write

    def refuse(source: int, target: int, size: int) -> int:
        copied.append(size)
        if len(copied) == 1:  # some file systems give in half way
            return write_all(target, os.read(source, 2))
        raise OSError(errno.EXDEV, "no")

    monkeypatch.setattr(merge.os, "copy_file_range", refuse)
    monkeypatch.setattr(merge.os, "write", lambda file, data: write_all(file, data[:3]))
    merge_indexed(parts, tmp_path / "memory")
    assert both(tmp_path / "memory") == both(tmp_path / "kernel")
    assert len(copied) > 1


def test_a_full_disk_leaves_the_old_result(
    tmp_path: Path, parts: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = write(tmp_path / "all", PARTS[0])
    before = both(target)

    def full(source: int, target: int, size: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(merge.os, "copy_file_range", full)
    with pytest.raises(OSError, match="No space left"):
        merge_indexed(parts, target)
    assert both(target) == before
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("nothing", "there is nothing to merge"),
        ("another dtype", r"large: the tokens are int32, those of .*part-0 are uint16"),
        ("cut off", r"part-2\.bin: the file has 10 bytes, its index says 12"),
        ("itself", r"part-0: the result would overwrite a part of it"),
    ],
)
def test_what_can_not_be_merged(tmp_path: Path, parts: list[Path], case: str, message: str) -> None:
    target = tmp_path / "all"
    if case == "nothing":
        parts = []
    elif case == "another dtype":
        parts.append(write(tmp_path / "large", PARTS[0], 100_000))
    elif case == "cut off":
        os.truncate(bin_path(parts[2]), 10)
    else:
        target = parts[0]
    with pytest.raises(DataError, match=message):
        merge_indexed(parts, target)
    assert case == "itself" or not bin_path(target).exists()
