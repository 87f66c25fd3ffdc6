"""Candidate pairs: documents that share a band of their signatures, each with its estimate.

A task takes a few bands, or a range of one band's keys, of all shards: memory is bounded whatever
the number of documents (but for a single key that millions of documents share).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.data.dedup.arrays import (
    Folders,
    Ids,
    Layout,
    between,
    distinct,
    hash_range,
    is_marked,
    mapped,
    removed_bits,
)
from toolkit.data.dedup.config import NearDedupSettings
from toolkit.data.dedup.hashes import KEYS, ORDER, SIGNATURES
from toolkit.data.dedup.minhash import estimate
from toolkit.data.tasks import TaskOutput

CODES, SIMILARITIES, DOUBTFUL = "codes.bin", "similarities.bin", "doubtful.bin"
"""u64, sorted: pairs; f4: their estimates; u64, sorted: ids of documents in doubtful pairs."""
ENTRIES = 1 << 21
"""Documents x bands of one task: about 100 MB of memory, 500 MB where all are near duplicates."""
SHARES = 8
"""Tasks that there are at least (as far as there are bands), so that workers share them."""
WINDOW = 8
"""Each document of a bucket is paired with so many before it, and with the bucket's first: all
pairs of buckets up to ``WINDOW + 1``, a connected graph of larger ones, at a cost that is linear.
"""
PAIRS = 1 << 14
"""Pairs whose signatures are compared at once."""
ERRORS = 3.0
"""Standard errors of the estimate about the threshold that leave a doubt: of the pairs beyond, at
most 1 in 700 is decided wrongly."""


def pair_codes(left: Ids, right: Ids, documents: int) -> Ids:
    """Pairs as numbers that sort as they do; ``documents`` is at most 2**32."""
    return left * np.uint64(documents) + right


def split_codes(codes: Ids, documents: int) -> tuple[Ids, Ids]:
    """The pairs that codes stand for."""
    left, right = np.divmod(codes, np.uint64(documents))
    return left, right


def doubts(near: NearDedupSettings) -> tuple[float, float]:
    """Estimates from the first to below the second leave a doubt; lower are no duplicates."""
    if near.verify == "signatures":
        return near.threshold, near.threshold
    margin = ERRORS * float(np.sqrt(near.threshold * (1 - near.threshold) / near.num_perm))
    return near.threshold - margin, near.threshold + margin


@dataclass(frozen=True)
class BucketTask:
    """Some bands, and a range of their keys."""

    layout: Layout
    near: NearDedupSettings
    exact: Folders
    """Folders of the tasks that found exact duplicates, which take no part any more."""
    bands: tuple[int, ...]
    part: int
    parts: int


def bucket_tasks(layout: Layout, near: NearDedupSettings, exact: Folders) -> list[BucketTask]:
    """Tasks of at most ``ENTRIES`` keys each, if they are spread as hashes should be."""
    bands, _ = near.banding()
    at_once = min(max(1, ENTRIES // max(layout.documents, 1)), -(-bands // SHARES))
    groups = [tuple(range(b, min(b + at_once, bands))) for b in range(0, bands, at_once)]
    parts = max(1, -(-layout.documents // ENTRIES))
    return [BucketTask(layout, near, exact, g, p, parts) for g in groups for p in range(parts)]


def find_candidates(task: BucketTask, output: TaskOutput) -> dict[str, Any]:
    """Write the pairs that may be near duplicates, with the estimates of their similarity."""
    low, high = doubts(task.near)
    documents = task.layout.documents
    gone = removed_bits(task.exact, documents)
    found = [_pairs(*_read(task, band, gone), documents) for band in task.bands]
    codes = distinct(np.concatenate(found))
    doubtful: list[Ids] = [np.zeros(0, np.uint64)]
    candidates = 0
    with (
        output.path(CODES).open("wb") as pairs,
        output.path(SIMILARITIES).open("wb") as similarities,
    ):
        for start in range(0, len(codes), PAIRS):
            chunk = codes[start : start + PAIRS]
            left, right = split_codes(chunk, documents)
            estimates = _estimates(task, left, right)
            kept = estimates >= low
            pairs.write(chunk[kept].tobytes())
            similarities.write(estimates[kept].tobytes())
            unsure = kept & (estimates < high)
            doubtful.append(distinct(np.concatenate((left[unsure], right[unsure]))))
            candidates += int(kept.sum())
    distinct(np.concatenate(doubtful)).tofile(output.path(DOUBTFUL))
    return {"compared": len(codes), "candidates": candidates}


def _pairs(keys: Ids, ids: Ids, documents: int) -> Ids:
    """The pairs of documents that share a key: see ``WINDOW``."""
    order = np.argsort(keys, kind="stable")
    keys, ids = keys[order], ids[order]
    repeats = np.zeros(len(keys) + 1, np.bool_)
    repeats[1:-1] = keys[1:] == keys[:-1]
    shared = repeats[1:] | repeats[:-1]
    keys, ids, repeats = keys[shared], ids[shared], repeats[:-1][shared]
    found = [np.zeros(0, np.uint64)]
    for distance in range(1, WINDOW + 1):
        same = keys[distance:] == keys[:-distance]
        if not same.any():
            break
        found.append(pair_codes(ids[:-distance][same], ids[distance:][same], documents))
    place = np.arange(len(keys))
    first = np.maximum.accumulate(np.where(repeats, 0, place))
    far = place - first > WINDOW
    found.append(pair_codes(ids[first[far]], ids[far], documents))
    return np.concatenate(found)


def _read(task: BucketTask, band: int, gone: npt.NDArray[np.uint8]) -> tuple[Ids, Ids]:
    """The keys of a band in the task's range, and the ids of their documents.

    Args:
        task: which range, and of which shards.
        band: its number.
        gone: the bits of documents that are left out.
    """
    bands, _ = task.near.banding()
    keys, ids = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)]
    for shard, begin in enumerate(task.layout.starts[:-1].tolist()):
        row = mapped(task.layout.path(shard, KEYS), np.uint64).reshape(bands, -1)[band]
        where = between(row, *hash_range(task.part, task.parts))
        order = mapped(task.layout.path(shard, ORDER), np.uint32).reshape(bands, -1)[band][where]
        keys.append(row[where])
        ids.append(order.astype(np.uint64) + np.uint64(begin))
    all_keys, all_ids = np.concatenate(keys), np.concatenate(ids)
    stays = ~is_marked(gone, all_ids)
    return all_keys[stays], all_ids[stays]


def _estimates(task: BucketTask, left: Ids, right: Ids) -> npt.NDArray[np.float32]:
    width = task.near.num_perm
    ids, places = np.unique(np.concatenate((left, right)), return_inverse=True)
    rows = task.layout.gather(ids, SIGNATURES, np.uint16, width)
    return estimate(rows[places[: len(left)]], rows[places[len(left) :]])


class Pairs:
    """The pairs that tasks wrote, opened."""

    def __init__(self, folders: Folders) -> None:
        self._files = [
            (mapped(Path(folder, CODES), np.uint64), mapped(Path(folder, SIMILARITIES), np.float32))
            for folder in folders
            if Path(folder, CODES).stat().st_size
        ]

    def between(self, start: int, stop: int) -> tuple[Ids, npt.NDArray[np.float32]]:
        """The pairs of codes from ``start`` to below ``stop``, each once, and their similarity."""
        codes, similarities = [np.zeros(0, np.uint64)], [np.zeros(0, np.float32)]
        for written, estimates in self._files:
            where = between(written, start, stop)
            codes.append(written[where])
            similarities.append(estimates[where])
        unique, first = np.unique(np.concatenate(codes), return_index=True)
        return unique, np.concatenate(similarities)[first]
