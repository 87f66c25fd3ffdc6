"""Exact duplicates: 128-bit hashes of normalised texts, compared range by range.

xxh3-128 of n different texts collides with a probability of about n**2 / 2**129: for 10**12
documents 1.5e-15.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from toolkit.data.dedup.arrays import (
    KEPT,
    REMOVED,
    Ids,
    Layout,
    between,
    distinct,
    hash_range,
    mapped,
)
from toolkit.data.tasks import TaskOutput

HIGH, LOW, ORDER = "exact-high.bin", "exact-low.bin", "exact-order.bin"
"""A shard's hashes, sorted: u64 halves, and the u32 index of each one's document."""
ENTRIES = 1 << 22
"""Documents whose hashes one task compares: about 200 MB of memory."""


def normalise(text: str, lowercase: bool = False) -> str:
    """NFC, every run of Unicode white space one blank, none at the ends."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    text = " ".join(text.split())
    return text.lower() if lowercase else text


def digests(texts: Sequence[str], lowercase: bool) -> npt.NDArray[np.uint64]:
    """xxh3-128 of each normalised text; u64[texts, 2], the high half first."""
    found = [
        xxhash.xxh3_128_digest(normalise(t, lowercase).encode("utf-8", "surrogatepass"))
        for t in texts
    ]
    return np.frombuffer(b"".join(found), np.dtype(">u8")).reshape(-1, 2).astype(np.uint64)


def write_digests(folder: Path, found: npt.NDArray[np.uint64]) -> None:
    """Sort a shard's digests and write them into its folder."""
    order = np.lexsort((found[:, 1], found[:, 0]))
    found[order, 0].tofile(folder / HIGH)
    found[order, 1].tofile(folder / LOW)
    order.astype(np.uint32).tofile(folder / ORDER)


@dataclass(frozen=True)
class ExactTask:
    """One range of hashes, of all shards."""

    layout: Layout
    part: int
    parts: int


def exact_tasks(layout: Layout) -> list[ExactTask]:
    """Ranges so small that each one's hashes fit in memory."""
    parts = max(1, -(-layout.documents // ENTRIES))
    return [ExactTask(layout, part, parts) for part in range(parts)]


def find_duplicates(task: ExactTask, output: TaskOutput) -> dict[str, Any]:
    """Of documents with one hash, all but the first in the order of the sources."""
    high, low, ids = _read(task)
    order = np.lexsort((ids, low, high))
    high, low, ids = high[order], low[order], ids[order]
    repeats = np.zeros(len(ids), np.bool_)
    repeats[1:] = (high[1:] == high[:-1]) & (low[1:] == low[:-1])
    first = np.maximum.accumulate(np.where(repeats, 0, np.arange(len(ids))))
    removed, kept = ids[repeats], ids[first[repeats]]
    write_removed(output.folder, removed, kept)
    return {"removed": len(removed), "kept": len(distinct(kept))}


def write_removed(folder: Path, removed: Ids, kept: Ids) -> None:
    """Write what ``removed_between`` reads."""
    order = np.argsort(removed)
    removed[order].tofile(folder / REMOVED)
    kept[order].tofile(folder / KEPT)


def _read(task: ExactTask) -> tuple[Ids, Ids, Ids]:
    """The halves of the hashes in the task's range, and the ids of their documents."""
    nothing = np.zeros(0, np.uint64)
    columns: tuple[list[Ids], ...] = ([nothing], [nothing], [nothing])
    for shard, begin in enumerate(task.layout.starts[:-1]):
        high = mapped(task.layout.path(shard, HIGH), np.uint64)
        where = between(high, *hash_range(task.part, task.parts))
        columns[0].append(high[where])
        columns[1].append(mapped(task.layout.path(shard, LOW), np.uint64)[where])
        index = mapped(task.layout.path(shard, ORDER), np.uint32)[where]
        columns[2].append(index.astype(np.uint64) + np.uint64(begin))
    high, low, ids = (np.concatenate(column) for column in columns)
    return high, low, ids
