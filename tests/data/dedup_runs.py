"""Shards of texts through all phases of deduplication, as ``clean`` does it."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from toolkit.context import StageContext
from toolkit.data.dedup.config import ExactDedupSettings, NearDedupSettings, dedup_phases
from toolkit.data.dedup.hashes import DocumentHashes
from toolkit.data.dedup.phases import Dedup, HashedShard

Shards = Sequence[Sequence[str]]


def read_texts(path: str) -> Iterator[str]:
    """The texts of a shard that ``hash_shards`` wrote."""
    yield from json.loads(Path(path).read_text())


def hash_shards(
    folder: Path,
    shards: Shards,
    exact: ExactDedupSettings | None,
    near: NearDedupSettings | None,
    batch: int = 100,
) -> list[HashedShard]:
    """Write each shard's texts and hashes into a folder of its own."""
    hashed = []
    for number, texts in enumerate(shards):
        target = folder / f"{number:05d}"
        target.mkdir(parents=True)
        (target / "texts.json").write_text(json.dumps(texts))
        with DocumentHashes(target, exact, near) as hashes:
            for start in range(0, len(texts), batch):
                hashes.add(texts[start : start + batch])
        hashed.append(HashedShard(str(target), len(texts), str(target / "texts.json")))
    return hashed


def dedup(
    folder: Path,
    hashed: list[HashedShard],
    exact: ExactDedupSettings | None,
    near: NearDedupSettings | None,
    workers: int = 1,
    ranks: int = 1,
) -> Dedup:
    """Run all phases, each on all ranks before the next."""
    runs = []
    for rank in range(ranks):
        context = StageContext("clean", "clean", folder, "test", rank=rank, world_size=ranks)
        texts = "dedup_runs:read_texts"
        runs.append(Dedup(context, hashed, exact, near, texts=texts, workers=workers))
    for phase in dedup_phases(exact, near):
        for run in runs:
            run.run(phase)
    return runs[0]
