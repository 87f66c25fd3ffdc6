"""The indexed dataset, with megatron-core's own builder and reader as the oracle."""

import errno
import struct
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from toolkit.data.indexed import (
    IndexedReader,
    IndexedWriter,
    bin_path,
    check_indexed,
    idx_path,
    token_dtype,
)
from toolkit.errors import DataError


@pytest.fixture(scope="module")
def megatron() -> ModuleType:
    from megatron.core.datasets import indexed_dataset

    return indexed_dataset


def documents(vocab_size: int, count: int = 300) -> list[np.ndarray[Any, np.dtype[np.uint32]]]:
    rng = np.random.default_rng(vocab_size)
    lengths = rng.integers(1, 200, count)
    found = [rng.integers(0, vocab_size, n, dtype=np.uint32) for n in lengths]
    found[7][0], found[8][-1] = 0, vocab_size - 1
    return found


def write(prefix: Path, vocab_size: int, batches: list[list[Any]]) -> Path:
    with IndexedWriter(prefix, vocab_size) as writer:
        for batch in batches:
            lengths = np.array([len(d) for d in batch], np.int64)
            writer.write(np.concatenate(batch), lengths)
    return prefix


@pytest.mark.parametrize("vocab_size", [2, 4096, 65499, 65500, 65536, 200_000])
def test_the_files_are_megatrons_byte_for_byte(
    tmp_path: Path, megatron: ModuleType, vocab_size: int
) -> None:
    import torch

    found = documents(vocab_size)
    ours = write(tmp_path / "v1.0_document", vocab_size, [found[:5], found[5:6], found[6:]])
    dtype = megatron.DType.optimal_dtype(vocab_size)
    builder = megatron.IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=dtype)
    for document in found:
        builder.add_document(torch.tensor(document.astype(np.int64)), [len(document)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    assert token_dtype(vocab_size) is dtype
    for path in (bin_path(ours), idx_path(ours)):
        assert path.read_bytes() == (tmp_path / f"theirs{path.suffix}").read_bytes()


def test_megatron_reads_what_we_write_and_we_read_the_same(
    tmp_path: Path, megatron: ModuleType
) -> None:
    found = documents(70_000)
    prefix = write(tmp_path / "text_document", 70_000, [found])
    theirs, ours = megatron.IndexedDataset(str(prefix)), IndexedReader(prefix)
    assert len(theirs) == len(ours) == len(found)
    for index, document in enumerate(found):
        assert np.array_equal(theirs[index], document)
        assert np.array_equal(ours[index], document)
    assert np.array_equal(theirs.document_indices, ours.document_indices)
    with pytest.raises(IndexError):
        ours[len(found)]


def test_a_multimodal_index_is_whole_too(tmp_path: Path, megatron: ModuleType) -> None:
    import torch

    path = str(tmp_path / "pictures.bin")
    builder = megatron.IndexedDatasetBuilder(path, dtype=np.uint16, multimodal=True)
    for mode in (0, 1, 1):
        builder.add_document(torch.tensor([1, 2, 3]), [3], [mode])
    builder.finalize(str(tmp_path / "pictures.idx"))
    assert check_indexed(tmp_path / "pictures").sequences == 3


def test_a_dataset_without_documents(tmp_path: Path) -> None:
    prefix = write(tmp_path / "none", 100, [])
    assert (check_indexed(prefix).sequences, len(IndexedReader(prefix))) == (0, 0)


@pytest.mark.parametrize(
    ("tokens", "vocab_size", "token", "document"),
    [
        ([1, 2, 3, 70_000, 4], 5000, 70_000, "c.jsonl:2"),  # 70000 wraps to 4464 in u16
        ([1, 5000, 3, 4, 4], 5000, 5000, "c.jsonl:1"),
        ([1, 2, 3, 4, 65_536], 65_000, 65_536, "c.jsonl:3"),
        ([1, 2, -3, 4, 4], 70_000, -3, "c.jsonl:2"),
    ],
)
def test_an_id_outside_the_vocabulary_is_refused_before_it_is_narrowed(
    tmp_path: Path, tokens: list[int], vocab_size: int, token: int, document: str
) -> None:
    names = ["c.jsonl:1", "c.jsonl:2", "c.jsonl:3"]
    pattern = rf"{document}: token id {token} is outside the vocabulary of {vocab_size}"
    with (
        pytest.raises(DataError, match=pattern),
        IndexedWriter(tmp_path / "text_document", vocab_size) as writer,
    ):
        writer.write(np.array(tokens, np.int64), np.array([2, 2, 1]), name=names.__getitem__)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    prefix = write(tmp_path / "text_document", 100, [documents(100)])
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(KeyboardInterrupt), IndexedWriter(prefix, 100) as writer:
        writer.write(np.array([1, 2]), np.array([2]))
        raise KeyboardInterrupt
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize("suffix", ["bin", "idx"])
def test_a_full_disk_leaves_nothing(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f".text_document.{suffix}.tmp").symlink_to("/dev/full")
    with (
        pytest.raises(OSError, match="No space left") as caught,
        IndexedWriter(tmp_path / "text_document", 100) as writer,
    ):
        writer.write(np.array([1, 2]), np.array([2]))
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def cut(path: Path, size: int) -> None:
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size + size)


def patch(path: Path, position: int, content: bytes) -> None:
    with path.open("r+b") as stream:
        stream.seek(position)
        stream.write(content)


def test_the_damage_that_is_found(tmp_path: Path) -> None:
    found = [np.arange(n) for n in (3, 4, 5)]
    size_idx = 34 + 12 * 3 + 8 * 4
    cases = {
        r"text_document\.bin: the file has 18 bytes, its index says 24: 6 missing": (
            lambda b, i: cut(b, -6)
        ),
        r"text_document\.bin: .* 0 bytes, its index says 24: 24 missing": (
            lambda b, i: cut(b, -24)
        ),
        r"text_document\.bin: .* 25 bytes, its index says 24: 1 too many": lambda b, i: cut(b, 1),
        r"text_document\.bin: no such file\n.*text_document\.idx is there": (
            lambda b, i: b.unlink()
        ),
        r"text_document\.idx: no such file\n.*text_document\.bin is there": (
            lambda b, i: i.unlink()
        ),
        rf"text_document\.idx: .* {size_idx - 1} bytes, its index says {size_idx}: 1 m": (
            lambda b, i: cut(i, -1)
        ),
        rf"text_document\.idx: .* {size_idx + 5} bytes, its index says {size_idx}: 5 too many": (
            lambda b, i: cut(i, 5)
        ),
        r"text_document\.idx: not an index": lambda b, i: patch(i, 0, b"PK"),
        r"text_document\.idx: not an index: ": lambda b, i: cut(i, 20 - size_idx),
        r"text_document\.idx: index version 2": lambda b, i: patch(i, 9, b"\2"),
        r"text_document\.idx: dtype code 9": lambda b, i: patch(i, 17, b"\x09"),
        r"text_document\.idx: the documents span sequences 1 to 3, there are 3": (
            lambda b, i: patch(i, 34 + 36, struct.pack("<q", 1))
        ),
        r"text_document\.bin: .* its index says 34: 10 missing": (
            lambda b, i: patch(i, 17, b"\4")  # the dtype of twice the size
        ),
    }
    for number, (message, damage) in enumerate(cases.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        prefix = write(folder / "text_document", 100, [found])
        assert check_indexed(prefix).documents == 3
        damage(bin_path(prefix), idx_path(prefix))
        with pytest.raises(DataError, match=message):
            check_indexed(prefix)
        with pytest.raises(DataError, match=message):
            IndexedReader(prefix)


def test_megatron_itself_does_not_notice_a_truncated_bin(
    tmp_path: Path, megatron: ModuleType
) -> None:
    """Why ``check_indexed`` exists; if this fails, megatron-core has learned to check."""
    prefix = write(tmp_path / "text_document", 100, [documents(100)])
    cut(bin_path(prefix), -600)
    assert len(megatron.IndexedDataset(str(prefix))) == 300
