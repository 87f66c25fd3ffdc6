"""Clusters: what near-duplicate pairs connect, and the one document of each that stays."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from toolkit.data.dedup.arrays import Array, Folders, Ids, Layout, distinct, mapped
from toolkit.data.dedup.buckets import CODES, split_codes
from toolkit.data.dedup.exact import write_removed
from toolkit.data.dedup.hashes import LENGTHS
from toolkit.data.tasks import TaskOutput

Parents = npt.NDArray[np.uint32]

EDGES = 1 << 22
"""Pairs that are joined at once."""
SIZES = (2, 3, 5, 10, 100, 1000)
"""Where the histogram of cluster sizes is cut."""


@dataclass(frozen=True)
class ClusterTask:
    """All pairs of all documents."""

    layout: Layout
    keep: Literal["first", "longest"]
    verified: Folders
    """Folders of the tasks that decided on pairs."""


def find_clusters(task: ClusterTask, output: TaskOutput) -> dict[str, Any]:
    """Of each cluster all documents but one; memory is 4 bytes a document."""
    parents = np.arange(task.layout.documents, dtype=np.uint32)
    for left, right in _edges(task):
        join(parents, left, right)
    members, clusters = _members(parents)
    order = np.lexsort((members, *_preference(task, members), clusters))
    members, clusters = members[order], clusters[order]
    begins = np.flatnonzero(np.diff(clusters, prepend=np.uint64(2**64 - 1)))
    sizes = np.diff(np.append(begins, len(members)))
    kept = np.repeat(members[begins], sizes)
    gone = members != kept
    write_removed(output.folder, members[gone], kept[gone])
    return {"clusters": len(begins), "removed": int(gone.sum()), "sizes": _histogram(sizes)}


def join(parents: Parents, left: Array, right: Array) -> None:
    """Connect documents in place: each cluster's root (its own parent) is its least id.

    All at once, in rounds: roots are hooked to the least root that they have an edge to (after
    Shiloach and Vishkin, 1982), until no edge connects two roots.
    """
    while len(left):
        first, second = find(parents, left), find(parents, right)
        apart = first != second
        left, right, first, second = left[apart], right[apart], first[apart], second[apart]
        np.minimum.at(parents, np.maximum(first, second), np.minimum(first, second))


def find(parents: Parents, nodes: Array) -> Parents:
    """The roots of documents; they are their parents from now on."""
    roots = parents[nodes]
    while ((above := parents[roots]) != roots).any():
        roots = above
    parents[nodes] = roots
    return roots


def _members(parents: Parents) -> tuple[Ids, Ids]:
    """The ids of all documents in clusters of two or more, and their clusters' roots."""
    found, roots = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)]
    for start in range(0, len(parents), EDGES):
        nodes = np.arange(start, min(start + EDGES, len(parents)), dtype=np.uint64)
        nodes = nodes[parents[nodes] != nodes]
        found.append(nodes)
        roots.append(find(parents, nodes).astype(np.uint64))
    clusters = np.concatenate(roots)
    firsts = distinct(clusters)
    return np.concatenate((firsts, *found)), np.concatenate((firsts, clusters))


def _edges(task: ClusterTask) -> Iterator[tuple[Ids, Ids]]:
    for folder in task.verified:
        codes = mapped(Path(folder, CODES), np.uint64)
        for start in range(0, len(codes), EDGES):
            yield split_codes(np.asarray(codes[start : start + EDGES]), task.layout.documents)


def _preference(task: ClusterTask, members: Ids) -> Sequence[Array]:
    """A key that sorts the document that stays to the front; of equals the first stays."""
    if task.keep == "first":
        return ()
    return (-task.layout.gather(members, LENGTHS, np.uint32)[:, 0].astype(np.int64),)


def _histogram(sizes: Array) -> dict[str, int]:
    """Clusters by size: ``{"2": 17, "3-4": 5, ..., "1000+": 0}``."""
    counts, _ = np.histogram(sizes, [*SIZES, np.iinfo(np.int64).max])
    names = [str(a) if b == a + 1 else f"{a}-{b - 1}" for a, b in itertools.pairwise(SIZES)]
    names.append(f"{SIZES[-1]}+")
    return dict(zip(names, counts.tolist(), strict=True))
