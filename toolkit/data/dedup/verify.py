"""Which candidate pairs are near duplicates: exact Jaccard similarity where the estimate doubts.

Sets of shingles are made again from the texts, shard by shard, of doubtful documents alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from toolkit.data.crew import resolve
from toolkit.data.dedup.arrays import Array, Folders, Ids, Layout, between, distinct, mapped, spans
from toolkit.data.dedup.buckets import (
    CODES,
    DOUBTFUL,
    SIMILARITIES,
    Pairs,
    doubts,
    split_codes,
)
from toolkit.data.dedup.config import NearDedupSettings
from toolkit.data.dedup.shingles import shingle
from toolkit.data.dedup.words import BATCH, Hashes
from toolkit.data.tasks import TaskOutput

SETS, BOUNDS, DOCUMENTS = "sets.bin", "bounds.bin", "documents.bin"
"""u64: the shingles of doubtful documents, each one's sorted; i64: where each one's begin, and
their end; u64: the ids of the documents, sorted."""
BLOCK = 1 << 14
"""Documents whose pairs are decided at once."""
GROUP = 1 << 18
"""Documents of one task."""
COMPARED = 1 << 20
"""Shingles that are compared at once."""
PAIR_BITS = 12
"""Of a 64-bit key, what tells pairs apart; the rest are bits of the shingle's hash."""


@dataclass(frozen=True)
class ShinglesTask:
    """The doubtful documents of one shard."""

    near: NearDedupSettings
    buckets: Folders
    """Folders of the tasks that found candidates."""
    texts: str
    """``"module:function"``: of ``source``, the shard's texts in their order."""
    source: Any
    start: int
    stop: int
    """Ids of the shard's documents."""


def write_sets(task: ShinglesTask, output: TaskOutput) -> dict[str, Any]:
    """Write the sets of shingles of the shard's doubtful documents; texts are read at need."""
    ids = [np.zeros(0, np.uint64)]
    for folder in task.buckets:
        doubtful = mapped(Path(folder, DOUBTFUL), np.uint64)
        ids.append(doubtful[between(doubtful, task.start, task.stop)])
    wanted = distinct(np.concatenate(ids))
    wanted.tofile(output.path(DOCUMENTS))
    counts = [0]
    with output.path(SETS).open("wb") as sets:
        if len(wanted):
            places = (wanted.astype(np.int64) - task.start).tolist()
            for batch in _batches(task, set(places)):
                counts += _write_batch(batch, task.near, sets)
    np.cumsum(counts).tofile(output.path(BOUNDS))
    assert len(counts) == len(wanted) + 1, "the shard has fewer texts than it had"
    return {"documents": len(wanted), "shingles": sum(counts)}


def _batches(task: ShinglesTask, wanted: set[int]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for index, text in enumerate(resolve(task.texts)(task.source)):
        if index in wanted:
            batch.append(text)
            size += len(text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _write_batch(texts: list[str], near: NearDedupSettings, sets: BinaryIO) -> list[int]:
    found = shingle(texts, near).sets()
    for hashes in found:
        sets.write(hashes.tobytes())
    return [len(hashes) for hashes in found]


@dataclass(frozen=True)
class VerifyTask:
    """The pairs whose first document's id is from ``start`` to below ``stop``."""

    layout: Layout
    near: NearDedupSettings
    buckets: Folders
    shingles: Folders
    """Folders of the shards' sets, in the order of the shards."""
    start: int
    stop: int


def verify_tasks(
    layout: Layout, near: NearDedupSettings, buckets: Folders, shingles: Folders
) -> list[VerifyTask]:
    """Ranges of ``GROUP`` documents."""
    starts = range(0, max(layout.documents, 1), GROUP)
    return [
        VerifyTask(layout, near, buckets, shingles, s, min(s + GROUP, layout.documents))
        for s in starts
    ]


def decide(task: VerifyTask, output: TaskOutput) -> dict[str, Any]:
    """Write the pairs that are near duplicates, with their similarity (exact, or the estimate)."""
    _, high = doubts(task.near)
    documents = task.layout.documents
    candidates = Pairs(task.buckets)
    counts = {"candidates": 0, "compared": 0, "duplicates": 0}
    with (
        output.path(CODES).open("wb") as pairs,
        output.path(SIMILARITIES).open("wb") as similarities,
    ):
        for start in range(task.start, task.stop, BLOCK):
            stop = min(start + BLOCK, task.stop)
            codes, found = candidates.between(start * documents, stop * documents)
            unsure = found < high
            left, right = split_codes(codes[unsure], documents)
            found[unsure] = _jaccard(task, left, right)
            kept = found >= task.near.threshold
            pairs.write(codes[kept].tobytes())
            similarities.write(found[kept].tobytes())
            counts["candidates"] += len(codes)
            counts["compared"] += int(unsure.sum())
            counts["duplicates"] += int(kept.sum())
    return counts


def _jaccard(task: VerifyTask, left: Ids, right: Ids) -> npt.NDArray[np.float32]:
    """The exact similarity of pairs, from the sets that ``write_sets`` wrote."""
    if not len(left):
        return np.zeros(0, np.float32)
    ids, places = np.unique(np.concatenate((left, right)), return_inverse=True)
    shelf = _Shelf(task, ids)
    first, second = places[: len(left)], places[len(left) :]
    sizes = np.cumsum(shelf.counts[first] + shelf.counts[second])
    result = np.zeros(len(left), np.float32)
    start = 0
    while start < len(left):
        reach = COMPARED + (sizes[start - 1] if start else 0)
        stop = min(int(np.searchsorted(sizes, reach)) + 1, start + (1 << PAIR_BITS), len(left))
        one, other = shelf.read(first[start:stop]), shelf.read(second[start:stop])
        result[start:stop] = jaccard(*one, *other)
        start = stop
    return result


def jaccard(
    left: Hashes, left_counts: Array, right: Hashes, right_counts: Array
) -> npt.NDArray[np.float32]:
    """The similarity of pairs of sets, at most 2**PAIR_BITS pairs.

    Args:
        left: the first sets, one after another; of each the elements are different.
        left_counts: how many elements each has.
        right: the second sets.
        right_counts: how many elements each has.
    """
    shift = np.uint64(64 - PAIR_BITS)
    pairs = np.arange(len(left_counts), dtype=np.uint64) << shift
    keys = np.concatenate((left, right)) >> np.uint64(PAIR_BITS)
    keys |= np.concatenate((np.repeat(pairs, left_counts), np.repeat(pairs, right_counts)))
    keys.sort()
    both = (keys[1:][keys[1:] == keys[:-1]] >> shift).astype(np.int64)
    shared = np.bincount(both, minlength=len(left_counts))
    return (shared / (left_counts + right_counts - shared)).astype(np.float32)


class _Shelf:
    """Sets of documents, found on disk and read at need."""

    def __init__(self, task: VerifyTask, ids: Ids) -> None:
        self.counts = np.zeros(len(ids), np.int64)
        self._starts = np.zeros(len(ids), np.int64)
        self._shards = np.zeros(len(ids), np.int64)
        self._folders = task.shingles
        for shard, where in task.layout.by_shard(ids):
            folder = Path(task.shingles[shard])
            bounds = mapped(folder / BOUNDS, np.int64)
            rows = np.searchsorted(mapped(folder / DOCUMENTS, np.uint64), ids[where])
            self._starts[where], self._shards[where] = bounds[rows], shard
            self.counts[where] = bounds[rows + 1] - bounds[rows]

    def read(self, places: Array) -> tuple[Hashes, Array]:
        """The sets of some documents, one after another, and their sizes."""
        counts = self.counts[places]
        result = np.empty(counts.sum(), np.uint64)
        begins = np.cumsum(counts) - counts
        for shard in np.unique(self._shards[places]).tolist():
            mine = np.flatnonzero(self._shards[places] == shard)
            sets = mapped(Path(self._folders[shard], SETS), np.uint64)
            source = spans(counts[mine], self._starts[places[mine]])
            result[spans(counts[mine], begins[mine])] = sets[source]
        return result, counts
