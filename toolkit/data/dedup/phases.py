"""Deduplication of hashed shards, phase by phase: what each needs, and what comes out.

============== ============================ =====================================================
phase          one task each                what it does
============== ============================ =====================================================
exact          range of hashes              of equal documents, all but the first
near-buckets   bands, or a range of keys    candidate pairs, with estimates of their similarity
near-shingles  shard                        sets of shingles of doubtful documents, from the texts
near-verify    range of documents           the pairs that are near duplicates
near-clusters  (one task)                   of each cluster, all but one
============== ============================ =====================================================

Exact duplicates take no part in what comes after. Documents have ids: their places in the order
of all shards. Every phase's result is the same for any number of workers and ranks.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from toolkit.context import StageContext
from toolkit.data.dedup.arrays import KEPT, REMOVED, Folders, Ids, Layout, mapped, removed_between
from toolkit.data.dedup.buckets import bucket_tasks
from toolkit.data.dedup.clusters import ClusterTask
from toolkit.data.dedup.config import (
    BUCKETS,
    CLUSTERS,
    EXACT,
    SHINGLES,
    VERIFY,
    ExactDedupSettings,
    NearDedupSettings,
)
from toolkit.data.dedup.exact import exact_tasks
from toolkit.data.dedup.lsh import probability
from toolkit.data.dedup.verify import ShinglesTask, verify_tasks
from toolkit.data.tasks import Task, TaskResult, results, run_tasks
from toolkit.errors import DataError

logger = logging.getLogger(__name__)

PACKAGE = "toolkit.data.dedup"
FUNCTIONS = {
    EXACT: f"{PACKAGE}.exact:find_duplicates",
    BUCKETS: f"{PACKAGE}.buckets:find_candidates",
    SHINGLES: f"{PACKAGE}.verify:write_sets",
    VERIFY: f"{PACKAGE}.verify:decide",
    CLUSTERS: f"{PACKAGE}.clusters:find_clusters",
}
EXACT_BYTES, BAND_BYTES, VERIFY_BYTES = 20, 12, 500
"""About what is read of a document in a phase, for the progress line."""
WORTH_PROCESSES = 32 << 20
"""Bytes that a phase reads from which on processes are started for it, which takes a while."""
CURVE = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
"""Similarities at which the S-curve is reported, beside the threshold."""
LEAST_FOUND = 0.8
"""Of pairs at the threshold: below, there is a warning."""


@dataclass(frozen=True)
class HashedShard:
    """A shard whose documents went through ``DocumentHashes``."""

    folder: str
    """Where the hashes are."""
    documents: int
    texts: Any
    """What the function that reads the shard's texts again is called with."""
    size: int = 0
    """Bytes of its texts, for the progress line."""


@dataclass(frozen=True)
class Removal:
    """A document that is a duplicate."""

    index: int
    """Its place in its shard."""
    reason: Literal["exact_duplicate", "near_duplicate"]
    kept_shard: int
    """Of the document that stays in its stead: shard, and place in it."""
    kept_index: int


@dataclass(frozen=True)
class Removals:
    """Where the duplicates of all shards are written: small enough to hand to each task."""

    layout: Layout
    exact: Folders
    near: Folders

    def of(self, shard: int) -> list[Removal]:
        """The duplicates in a shard, by their place."""
        start, stop = self.layout.starts[shard : shard + 2].tolist()
        removed, kept = removed_between(self.exact, start, stop)
        found = self._removals(start, "exact_duplicate", removed, self._final(kept))
        found += self._removals(start, "near_duplicate", *removed_between(self.near, start, stop))
        return sorted(found, key=lambda removal: removal.index)

    def _final(self, kept: Ids) -> Ids:
        """The documents that stay in the end: a first of equals may have gone as a near one."""
        for folder in self.near:
            removed = mapped(Path(folder, REMOVED), np.uint64)
            if not len(removed):
                continue
            places = np.minimum(np.searchsorted(removed, kept), len(removed) - 1)
            gone = removed[places] == kept
            kept[gone] = mapped(Path(folder, KEPT), np.uint64)[places[gone]]
        return kept

    def _removals(
        self,
        start: int,
        reason: Literal["exact_duplicate", "near_duplicate"],
        removed: Ids,
        kept: Ids,
    ) -> list[Removal]:
        starts = self.layout.starts
        shards = np.searchsorted(starts, kept.astype(np.int64), side="right") - 1
        places = kept.astype(np.int64) - starts[shards]
        index = removed.astype(np.int64) - start
        rows = zip(index.tolist(), shards.tolist(), places.tolist(), strict=True)
        return [Removal(i, reason, shard, place) for i, shard, place in rows]


class Dedup:
    """The phases over some shards; see ``config.dedup_phases`` for which there are.

    Args:
        context: of the stage; outputs go to ``context.work``.
        shards: in the order of the sources.
        exact: settings that ``DocumentHashes`` was given.
        near: settings that ``DocumentHashes`` was given.
        texts: ``"module:function"``: called with ``HashedShard.texts``, gives the texts that the
            shard's hashes were made of, in their order.
        workers: processes for this rank's tasks.

    Raises:
        DataError: 2**32 documents or more.
    """

    def __init__(
        self,
        context: StageContext,
        shards: Sequence[HashedShard],
        exact: ExactDedupSettings | None,
        near: NearDedupSettings | None,
        *,
        texts: str,
        workers: int,
    ) -> None:
        self._context, self._shards, self._texts, self._workers = context, shards, texts, workers
        self._exact, self._near = exact, near
        self._done: dict[str, list[TaskResult]] = {}
        self._named: dict[str, Folders] = {}
        folders = Folders(shard.folder for shard in shards)
        self.layout = Layout(folders, tuple(shard.documents for shard in shards))
        if self.layout.documents >= 1 << 32:
            raise DataError(
                f"{self.layout.documents:,} documents are more than deduplication can number",
                hint="at most 4,294,967,295 at once: give each part a stage of its own",
            )

    def run(self, phase: str) -> None:
        """Do this rank's tasks of a phase; those before it must be done, by all ranks."""
        if phase == BUCKETS and self._near and self._context.rank == 0:
            _announce(self._near)
        tasks = self._tasks(phase)
        small = sum(task.size for task in tasks) < WORTH_PROCESSES
        workers = 1 if small else self._workers
        run_tasks(phase, FUNCTIONS[phase], tasks, self._context, workers=workers)

    def removals(self) -> Removals:
        """What all phases found."""
        exact = self._folders(EXACT) if self._exact else Folders()
        return Removals(self.layout, exact, self._folders(CLUSTERS) if self._near else Folders())

    def info(self) -> dict[str, Any]:
        """Settings that were chosen, and counts, for the artifact."""
        found: dict[str, Any] = {}
        if self._exact:
            found["exact"] = _total(self._results(EXACT))
        if self._near:
            found["near"] = {
                **self._settings(self._near),
                "pairs": _total(self._results(VERIFY)),
                **self._results(CLUSTERS)[0].info,
            }
        return found

    @staticmethod
    def _settings(near: NearDedupSettings) -> dict[str, Any]:
        bands, rows = near.banding()
        points = sorted({*CURVE, near.threshold})
        curve = {f"{s:g}": round(probability(s, bands, rows), 4) for s in points}
        chosen = {"bands": bands, "rows": rows, "candidate_probability": curve}
        return {"threshold": near.threshold, "ngram": near.ngram, "unit": near.unit, **chosen}

    def _tasks(self, phase: str) -> list[Task]:
        sized = self._payloads(phase)
        return [Task(f"{i:05d}", payload, size) for i, (payload, size) in enumerate(sized)]

    def _payloads(self, phase: str) -> list[tuple[Any, int]]:
        """What the phase's tasks are called with, and about how many bytes each reads."""
        if phase == EXACT:
            exact = exact_tasks(self.layout)
            return [(task, EXACT_BYTES * self.layout.documents // task.parts) for task in exact]
        assert self._near is not None, f"phase {phase} without settings"
        if phase == BUCKETS:
            size = BAND_BYTES * self.layout.documents
            folders = self._folders(EXACT) if self._exact else Folders()
            buckets = bucket_tasks(self.layout, self._near, folders)
            return [(task, size * len(task.bands) // task.parts) for task in buckets]
        if phase == SHINGLES:
            return [(self._shingles(number), s.size) for number, s in enumerate(self._shards)]
        if phase == VERIFY:
            before = self._folders(BUCKETS), self._folders(SHINGLES)
            verify = verify_tasks(self.layout, self._near, *before)
            return [(task, VERIFY_BYTES * (task.stop - task.start)) for task in verify]
        return [(ClusterTask(self.layout, self._near.keep, self._folders(VERIFY)), 0)]

    def _shingles(self, shard: int) -> ShinglesTask:
        assert self._near is not None
        start, stop = self.layout.starts[shard : shard + 2].tolist()
        source, folders = self._shards[shard].texts, self._folders(BUCKETS)
        return ShinglesTask(self._near, folders, self._texts, source, start, stop)

    def _folders(self, phase: str) -> Folders:
        """Of a phase's tasks; one object for all that name it, whose digest is made once."""
        if phase not in self._named:
            self._named[phase] = Folders(str(result.folder) for result in self._results(phase))
        return self._named[phase]

    def _results(self, phase: str) -> list[TaskResult]:
        """Of a phase that is done; asked once."""
        if phase not in self._done:
            self._done[phase] = results(phase, self._tasks(phase), self._context)
        return self._done[phase]


def _announce(near: NearDedupSettings) -> None:
    bands, rows = near.banding()
    curve = ", ".join(f"{s:g}: {probability(s, bands, rows):.1%}" for s in CURVE)
    logger.info(
        "near duplicates from a similarity of %g on: %d bands of %d rows; pairs that are "
        "compared, by similarity: %s",
        *(near.threshold, bands, rows, curve),
    )
    found = probability(near.threshold, bands, rows)
    if found < LEAST_FOUND:
        logger.warning(
            "%d bands of %d rows find only %.0f %% of the pairs at the threshold %g; more bands, "
            "or fewer rows, find more",
            *(bands, rows, 100 * found, near.threshold),
        )


def _total(found: Sequence[TaskResult]) -> dict[str, int]:
    """The counts of a phase's tasks, added up."""
    total: Counter[str] = Counter()
    for result in found:
        total.update(result.info)
    return dict(total)
