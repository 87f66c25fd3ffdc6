"""Shards: the sources cut and put together into pieces of work of about equal size.

A large file whose format allows it is cut into parts, small files are put together, and what can't
be cut (compressed files, ``.json`` arrays, whole-file documents) stays whole. Reading the parts of
all shards in order gives exactly the records of the sources, however they are cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from toolkit.data.config import SampleBy
from toolkit.data.files import Part, Source

__all__ = ["Part", "Shard", "plan_shards"]

SHARD_BYTES = 128 << 20


@dataclass(frozen=True, slots=True)
class Shard:
    """Parts that one task reads, one after another."""

    index: int
    parts: tuple[Part, ...]
    size: int
    """Bytes on disk."""


def plan_shards(
    sources: Sequence[Source],
    shard_bytes: int = SHARD_BYTES,
    *,
    sample_by: SampleBy = "document",
) -> list[Shard]:
    """Cut and group the sources into shards of about ``shard_bytes``; order is kept.

    The same sources give the same shards. A shard holds one source at least, so that one file that
    can't be cut makes a shard of its size. Each file of a data set of the hub is a shard.

    Args:
        sources: from ``expand``.
        shard_bytes: bytes on disk of a shard, about.
        sample_by: what one document is in a ``.txt`` file; whole files are not cut.

    Raises:
        DataError: a parquet or arrow file that can't be read, or a hub that can't be reached.
    """
    shards: list[Shard] = []
    parts: list[Part] = []
    size = 0
    for part in (part for source in sources for part in cut(source, shard_bytes, sample_by)):
        alone = part.source.format == "hub"  # of unknown size: each of its files is a shard
        if parts and (size + part.size > shard_bytes or alone):
            shards.append(Shard(len(shards), tuple(parts), size))
            parts, size = [], 0
        parts.append(part)
        size += part.size
    if parts:
        shards.append(Shard(len(shards), tuple(parts), size))
    return shards


def cut(source: Source, shard_bytes: int, sample_by: SampleBy = "document") -> list[Part]:
    """The parts of one source, each of at most about ``shard_bytes``, equal in size."""
    if source.format == "hub":
        from toolkit.data.hub_stream import count_files  # datasets takes seconds to import

        files = count_files(source.name, source.etag)
        return list(_parts(source, files, files))
    count = -(-source.size // shard_bytes)
    if count <= 1 or source.compression or not source.seekable:
        return [Part.of(source)]
    if source.format == "jsonl" or (source.format == "txt" and sample_by != "document"):
        return list(_parts(source, source.size, count))
    if source.format in ("parquet", "arrow"):
        from toolkit.data.read_columns import units  # pyarrow takes a while to import

        return list(_parts(source, units(source), count))
    return [Part.of(source)]


def _parts(source: Source, units: int, count: int) -> Iterator[Part]:
    """``count`` parts of ``units`` bytes or row groups, or as many as there are units."""
    count = max(1, min(count, units))
    for index in range(count):
        start, stop = index * units // count, (index + 1) * units // count
        size = source.size * stop // units - source.size * start // units if units else source.size
        yield Part(source, start, stop if index < count - 1 else None, size)
