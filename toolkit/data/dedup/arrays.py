"""Arrays on disk, and documents numbered over all shards.

Files are plain little-endian arrays without a header, so that they can be appended to while their
length is not known yet, and mapped into memory after.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

Array = npt.NDArray[Any]
Ids = npt.NDArray[np.uint64]


def mapped(path: str | Path, dtype: npt.DTypeLike) -> Array:
    """The array in a file, read as it is used; ``reshape`` it where it has rows."""
    if Path(path).stat().st_size == 0:
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="r")


def distinct(values: Ids) -> Ids:
    """As ``np.unique``, which takes ten times as long on many values (it hashes, then sorts)."""
    values = np.sort(values)
    first = np.ones(len(values), np.bool_)
    np.not_equal(values[1:], values[:-1], out=first[1:])
    return values[first]


def between(values: Array, start: int, stop: int) -> slice:
    """Where a sorted u64 array has its values from ``start`` to below ``stop`` (up to 2**64)."""
    first = np.searchsorted(values, np.uint64(start))
    if stop > np.iinfo(np.uint64).max:
        return slice(int(first), len(values))
    return slice(int(first), int(np.searchsorted(values, np.uint64(stop))))


def spans(counts: Array, starts: Array) -> npt.NDArray[np.int64]:
    """The indices of ragged rows: ``counts[i]`` of them from ``starts[i]`` on, one row after
    another."""
    begins = np.cumsum(counts) - counts
    index: npt.NDArray[np.int64] = np.repeat(starts - begins, counts)
    index += np.arange(len(index))
    return index


def hash_range(part: int, parts: int) -> tuple[int, int]:
    """The ``part``-th of ``parts`` equal ranges of 64-bit hashes: first, and first of the next."""
    return (part << 64) // parts, ((part + 1) << 64) // parts


class Folders(tuple[str, ...]):
    """Paths of folders, of which there may be thousands; in a task's ``repr`` they are a digest."""

    @cached_property
    def digest(self) -> str:
        """xxh3-128 of all paths, in hexadecimal."""
        return xxhash.xxh3_128_hexdigest("\0".join(self).encode())

    def __repr__(self) -> str:
        return f"Folders({len(self)}, {self.digest})"


@dataclass(frozen=True, repr=False)
class Layout:
    """The shards of a run in the order of their sources: document ids count through all of them."""

    folders: Folders
    """Where ``DocumentHashes`` wrote each shard's files."""
    counts: tuple[int, ...]
    """Documents of each shard."""

    def __repr__(self) -> str:
        return self._shown

    @cached_property
    def _shown(self) -> str:
        counts = xxhash.xxh3_128_hexdigest(self.starts.tobytes())
        return f"Layout({self.folders!r}, {counts})"

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """The id of each shard's first document, and the number of all documents."""
        return np.cumsum([0, *self.counts])

    @property
    def documents(self) -> int:
        """Documents of all shards."""
        return sum(self.counts)

    def path(self, shard: int, name: str) -> Path:
        """A file of a shard."""
        return Path(self.folders[shard], name)

    def by_shard(self, ids: Ids) -> list[tuple[int, slice]]:
        """For sorted ids: each shard that has some of them, and which."""
        cuts = np.searchsorted(ids, self.starts.astype(np.uint64)).tolist()
        pairs = enumerate(itertools.pairwise(cuts))
        return [(shard, slice(a, b)) for shard, (a, b) in pairs if a < b]

    def gather(self, ids: Ids, name: str, dtype: npt.DTypeLike, width: int = 1) -> Array:
        """Rows of a file that has one row of ``width`` values for each document, in any order."""
        unique, inverse = np.unique(ids, return_inverse=True)
        rows = np.empty((len(unique), width), dtype)
        for shard, where in self.by_shard(unique):
            index = unique[where].astype(np.int64) - self.starts[shard]
            rows[where] = mapped(self.path(shard, name), dtype).reshape(-1, width)[index]
        return rows[inverse]


def removed_between(folders: Sequence[str | Path], start: int, stop: int) -> tuple[Ids, Ids]:
    """What tasks removed of the ids from ``start`` to below ``stop``: ids, sorted, and for each the
    document that is kept in its stead."""
    removed, kept = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)]
    for folder in folders:
        ids = mapped(Path(folder, REMOVED), np.uint64)
        where = between(ids, start, stop)
        removed.append(ids[where])
        kept.append(mapped(Path(folder, KEPT), np.uint64)[where])
    ids = np.concatenate(removed)
    order = np.argsort(ids)
    return ids[order], np.concatenate(kept)[order]


def removed_bits(folders: Sequence[str | Path], documents: int) -> npt.NDArray[np.uint8]:
    """What tasks removed, one bit for each document: see ``is_marked``."""
    bits = np.zeros(-(-documents // 8), np.uint8)
    for folder in folders:
        ids = mapped(Path(folder, REMOVED), np.uint64)
        for start in range(0, len(ids), CHUNK):
            some = ids[start : start + CHUNK]
            np.bitwise_or.at(bits, some >> np.uint64(3), _bit(some))
    return bits


def is_marked(bits: npt.NDArray[np.uint8], ids: Ids) -> npt.NDArray[np.bool_]:
    """Whether the bits of these ids are set."""
    marked: npt.NDArray[np.bool_] = bits[ids >> np.uint64(3)] & _bit(ids) != 0
    return marked


def _bit(ids: Ids) -> npt.NDArray[np.uint8]:
    return np.left_shift(np.uint8(1), (ids & np.uint64(7)).astype(np.uint8))


CHUNK = 1 << 20
REMOVED, KEPT = "removed.bin", "kept.bin"
"""u64: ids of removed documents, sorted, and of those that stay in their stead."""
