"""Documents with one id: counted over all shards with flat memory, and named."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import xxhash

from toolkit.data.clean.config import CleanConfig
from toolkit.data.clean.shard import IDS
from toolkit.data.readers import RecordReader
from toolkit.data.tasks import Task, TaskResult
from toolkit.errors import DataError

logger = logging.getLogger(__name__)
RANGES = 256
"""Parts of the hashes' range that are looked at one after another."""
Hashes = npt.NDArray[np.uint64]


def check_ids(
    filtered: Sequence[TaskResult],
    tasks: Sequence[Task],
    config: CleanConfig,
    counts: dict[str, int],
) -> None:
    """Count documents whose id an earlier one has, into ``counts``; warn, or refuse.

    Raises:
        DataError: there are some, and ``duplicate_ids`` is ``error``.
    """
    shards = [_mapped(one) for one in filtered]
    number, first = 0, None
    for hashes in _ranges(shards):
        values, times = np.unique(hashes, return_counts=True)
        number += len(hashes) - len(values)
        if first is None and (times > 1).any():
            first = int(values[times > 1][0])
    counts["duplicate_ids"] = number
    if first is None:
        return
    if config.duplicate_ids == "error":
        holders = [t for t, hashes in zip(tasks, shards, strict=True) if _has(hashes, first)]
        places = [place for task in holders for place in _places(task, config, first)]
        raise DataError(
            f"{number} documents have an id that an earlier one has; one is that of "
            f"{' and '.join(places[:2])}",
            hint="give them ids of their own, or set duplicate_ids: allow",
        )
    logger.warning("%d documents have an id that an earlier one has", number)


def _mapped(result: TaskResult) -> Hashes:
    path = result.path(IDS)
    if path.stat().st_size == 0:
        return np.zeros(0, np.uint64)
    return np.memmap(path, np.uint64, mode="r")


def _ranges(shards: Sequence[Hashes]) -> Iterator[Hashes]:
    """The hashes of all shards, a part of their range at a time."""
    bounds = [np.uint64(part << 56) for part in range(1, RANGES)]
    cuts = [[0, *np.searchsorted(one, bounds).tolist(), len(one)] for one in shards]
    for part in range(RANGES):
        pieces = (s[c[part] : c[part + 1]] for s, c in zip(shards, cuts, strict=True))
        yield np.concatenate([np.zeros(0, np.uint64), *pieces])


def _has(hashes: Hashes, one: int) -> bool:
    place = int(np.searchsorted(hashes, np.uint64(one)))
    return place < len(hashes) and int(hashes[place]) == one


def _places(task: Task, config: CleanConfig, one: int) -> Iterator[str]:
    """Where the records of a shard with this id are."""
    key = config.id_key
    reader = RecordReader(
        task.payload.parts,
        lambda bad: None,
        sample_by=config.sample_by,
        text_key=config.text_key,
    )
    for record in reader:
        given = record.value.get(key)
        if given is not None and xxhash.xxh3_64_intdigest(str(given).encode()) == one:
            yield f"{record.where} (id {given})"
