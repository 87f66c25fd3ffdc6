"""Whatever bytes an ``.idx`` has: a DataError, or tokens that lie in the ``.bin``; no crash."""

import struct
import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from planted import documents, write

from toolkit.data.examine.doctor import examine
from toolkit.data.examine.inspection import inspect
from toolkit.data.examine.locate import Dataset
from toolkit.data.indexed import DTYPES, HEADER, IndexedReader, bin_path, idx_path
from toolkit.errors import DataError

HOSTILE = (0, 1, -1, 2**31 - 1, -(2**31), 2**32, 2**62, 2**63 - 1, -(2**63), 2**64 - 1)
"""Numbers that overflow something."""
property_test = settings(
    deadline=None,
    max_examples=300,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of twelve documents, whose index the tests overwrite."""
    return write(tmp_path_factory.mktemp("fuzz") / "text_document", documents(1, count=12))


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The index as it was written."""
    same = write(tmp_path_factory.mktemp("valid") / "text_document", documents(1, count=12))
    return idx_path(same).read_bytes()


def read(prefix: Path) -> None:
    """Read all that a reader gives, and compare it with what the bytes say."""
    index, data = idx_path(prefix).read_bytes(), bin_path(prefix).read_bytes()
    try:
        reader = IndexedReader(prefix)
    except DataError:
        return
    assert len(index) >= reader.header.size
    for number in range(min(len(reader), 40)):
        expected = slow(index, data, number)
        try:
            tokens = reader[number]
        except DataError:
            assert expected is None
            continue
        assert expected is not None, "tokens from outside the file"
        assert tokens.tobytes() == expected


def slow(index: bytes, data: bytes, number: int) -> bytes | None:
    """A sequence's bytes as the format's text has it; None where they aren't in the file."""
    _, _, code, sequences, _ = HEADER.unpack_from(index)
    (length,) = struct.unpack_from("<i", index, 34 + 4 * number)
    (offset,) = struct.unpack_from("<q", index, 34 + 4 * sequences + 8 * number)
    itemsize = np.dtype(DTYPES[code]).itemsize
    whole = length >= 0 and offset >= 0 and offset + length * itemsize <= len(data)
    return data[offset : offset + length * itemsize] if whole and not offset % itemsize else None


def is_sound(index: bytes, data: bytes) -> bool:
    """What ``doctor`` must say, number by number."""
    if len(index) < 34:
        return False
    magic, version, code, sequences, boundaries = HEADER.unpack_from(index)
    if magic != b"MMIDIDX\0\0" or version != 1 or code not in DTYPES or not boundaries:
        return False
    whole = 34 + 12 * sequences + 8 * boundaries
    if len(index) not in (whole, whole + sequences):
        return False
    lengths = struct.unpack_from(f"<{sequences}i", index, 34)
    offsets = struct.unpack_from(f"<{sequences}q", index, 34 + 4 * sequences)
    edges = struct.unpack_from(f"<{boundaries}q", index, 34 + 12 * sequences)
    end = 0
    for length, offset in zip(lengths, offsets, strict=True):
        if length < 0 or offset != end:
            return False
        end += length * np.dtype(DTYPES[code]).itemsize
    rising = all(a <= b for a, b in pairwise(edges))
    if end != len(data) or edges[0] != 0 or edges[-1] != sequences or not rising:
        return False
    plain = boundaries - 1 == sequences
    return (not plain or list(edges) == list(range(boundaries))) and min(
        index[whole:], default=0
    ) < 128 > max(index[whole:], default=0)


def diagnose(prefix: Path) -> None:
    index, data = idx_path(prefix).read_bytes(), bin_path(prefix).read_bytes()
    (found,) = examine([Dataset(prefix)], lambda _: None)
    assert (found.failure is None) == is_sound(index, data), found
    if found.failure is not None:
        assert found.failure.place is not None
        with pytest.raises(DataError):
            inspect([Dataset(prefix)])
    elif DTYPES[index[17]] not in (np.float32, np.float64):
        assert inspect([Dataset(prefix)]).lengths.tokens * np.dtype(
            DTYPES[index[17]]
        ).itemsize == len(data)


@property_test
@given(raw=st.binary(max_size=200), headed=st.booleans())
def test_any_bytes(prefix: Path, raw: bytes, headed: bool) -> None:
    idx_path(prefix).write_bytes((b"MMIDIDX\0\0" + struct.pack("<Q", 1) if headed else b"") + raw)
    read(prefix)
    diagnose(prefix)


@property_test
@given(
    code=st.sampled_from([*DTYPES, 0, 9, 255]),
    sequences=st.one_of(st.integers(0, 30), st.sampled_from([2**31, 2**32, 2**62, 2**64 - 1])),
    boundaries=st.one_of(st.integers(0, 30), st.sampled_from([2**31, 2**61, 2**63, 2**64 - 1])),
    size=st.integers(0, 400),
)
def test_any_header(
    prefix: Path, valid: bytes, code: int, sequences: int, boundaries: int, size: int
) -> None:
    head = struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, code, sequences, boundaries)
    idx_path(prefix).write_bytes(head + (valid[34:] * 2)[:size])
    tracemalloc.start()
    read(prefix)
    assert tracemalloc.get_traced_memory()[1] < 2e6
    tracemalloc.stop()
    diagnose(prefix)


mutation = st.one_of(
    st.tuples(st.just("byte"), st.integers(0, 400), st.integers(0, 255)),
    st.tuples(st.just("i32"), st.integers(0, 11), st.sampled_from(HOSTILE)),
    st.tuples(st.just("i64"), st.integers(0, 24), st.sampled_from(HOSTILE)),
    st.tuples(st.just("small"), st.integers(0, 24), st.integers(-8, 8)),
    st.tuples(st.just("cut"), st.integers(0, 400), st.just(0)),
    st.tuples(st.just("modes"), st.integers(0, 16), st.integers(0, 255)),
)


@property_test
@given(mutations=st.lists(mutation, min_size=1, max_size=3))
def test_a_valid_index_with_some_numbers_changed(
    prefix: Path, valid: bytes, mutations: list[tuple[str, int, int]]
) -> None:
    content = bytearray(valid)
    for kind, at, value in mutations:
        change(content, kind, at, value)
    idx_path(prefix).write_bytes(content)
    read(prefix)
    diagnose(prefix)


def change(content: bytearray, kind: str, at: int, value: int) -> None:
    if kind == "cut":
        del content[at:]
    elif kind == "modes":
        content.extend([value] * at)
    elif kind == "byte" and at < len(content):
        content[at] = value
    elif kind == "i32" and 34 + 4 * at + 4 <= len(content):
        struct.pack_into("<I", content, 34 + 4 * at, value & 0xFFFFFFFF)
    elif kind in ("i64", "small") and 82 + 8 * at + 8 <= len(content):
        (old,) = struct.unpack_from("<Q", content, 82 + 8 * at)
        new = value if kind == "i64" else old + value
        struct.pack_into("<Q", content, 82 + 8 * at, new & (2**64 - 1))


def test_the_fuzzed_dataset_is_sound_when_nothing_is_changed(prefix: Path, valid: bytes) -> None:
    idx_path(prefix).write_bytes(valid)
    assert is_sound(valid, bin_path(prefix).read_bytes())
    diagnose(prefix)
