"""Near deduplication: speed and quality, beside datasketch and datatrove, in one run.

    python benchmarks/dedup.py [--megabytes 60] [--sizes 25 250]

The corpus is real text of this machine; a part of its documents comes again with words replaced,
removed and put in, at rates that spread the true similarity from 0.5 to 1. The truth is the exact
Jaccard similarity of all pairs of documents (by prefix filtering, which misses none).

datasketch is a library: against it, from a list of texts to pairs (ours by way of the disk, and
verified). datatrove is a pipeline: against it, from JSON lines to JSON lines. Each run has a
process of its own, and one thread; peers that are not installed are left out. Ratios are of CPU
time, which other work on the machine moves less than the wall's.

It is held to: recall at the threshold >= 95 %, precision >= 99 %, at least 20 times datasketch,
faster than datatrove.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import xxhash
from corpus import build_corpus

from toolkit.context import StageContext
from toolkit.data.dedup.arrays import Folders
from toolkit.data.dedup.buckets import Pairs
from toolkit.data.dedup.config import VERIFY, NearDedupSettings, dedup_phases
from toolkit.data.dedup.hashes import DocumentHashes
from toolkit.data.dedup.phases import Dedup, HashedShard, Removals
from toolkit.data.dedup.shingles import shingle
from toolkit.data.dedup.words import BATCH, batches
from toolkit.data.documents import DocumentReader
from toolkit.data.shards import Shard, plan_shards
from toolkit.data.sources import expand
from toolkit.data.tasks import Task, TaskOutput, results, run_tasks

NEAR = NearDedupSettings()
SHARD_BYTES = 8 << 20
SHARE = 0.2
"""Documents that come again, edited."""
BINS = (0.8, 0.85, 0.9, 0.95, 1.0)
WORD = re.compile(r"[^\W_]+")


def texts_of(path: Path) -> list[str]:
    """All texts of a file of JSON lines."""
    with path.open("rb") as stream:
        return [orjson.loads(line)["text"] for line in stream]


def plant(path: Path, seed: int = 1) -> int:
    """Add edited copies of some documents, and shuffle all; returns the bytes of text."""
    rng = random.Random(seed)
    texts = texts_of(path)
    chosen = [text for text in texts if 30 <= len(text.split()) <= 20_000]
    for text in rng.sample(chosen, int(SHARE * len(texts))):
        texts.append(edit(text, rng.uniform(0.5, 1.0), rng))
    rng.shuffle(texts)
    with path.open("wb") as stream:
        for number, text in enumerate(texts):
            stream.write(orjson.dumps({"id": str(number), "text": text}) + b"\n")
    return sum(len(text.encode()) for text in texts)


def edit(text: str, similarity: float, rng: random.Random) -> str:
    """A copy whose n-grams are expected to have this Jaccard similarity with the text's."""
    kept = 2 * similarity / (1 + similarity)
    rate = 1 - kept ** (1 / NEAR.ngram)
    pieces = re.split(r"(\s+)", text)
    for index in range(0, len(pieces), 2):
        if rng.random() < rate:
            word = f"new{rng.randrange(10**6)}"
            pieces[index] = rng.choice([word, "", f"{pieces[index]} {word}"])
    return "".join(pieces)


def true_pairs(texts: list[str]) -> dict[tuple[int, int], float]:
    """All pairs of documents whose similarity reaches the threshold.

    Prefix filtering (Chaudhuri et al. 2006; Bayardo et al. 2007): with the shingles of all
    documents in one order, rare ones first, two sets of a similarity of at least t share one of
    the first n - ceil(t n) + 1.
    """
    sets = [found for batch in batches(texts) for found in shingle(batch, NEAR).sets()]
    sizes = np.array([len(found) for found in sets])
    _, dense, counts = np.unique(np.concatenate(sets), return_inverse=True, return_counts=True)
    owners = np.repeat(np.arange(len(sets)), sizes)
    order = np.lexsort((dense, counts[dense], owners))
    place = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    prefix = sizes - np.ceil(NEAR.threshold * sizes - 1e-9).astype(int) + 1
    rare = order[place < prefix[owners]]
    rare = rare[np.argsort(dense[rare], kind="stable")]
    met = set()
    for group in np.split(owners[rare], np.flatnonzero(np.diff(dense[rare])) + 1):
        for i, left in enumerate(group.tolist()):
            met.update((left, right) for right in group[i + 1 :].tolist())
    found = {}
    for left, right in met:
        if min(sizes[left], sizes[right]) >= NEAR.threshold * max(sizes[left], sizes[right]):
            both = len(np.intersect1d(sets[left], sets[right], assume_unique=True))
            similarity = both / (sizes[left] + sizes[right] - both)
            if similarity >= NEAR.threshold:
                found[min(left, right), max(left, right)] = float(similarity)
    return found


def read_shard(shard: Shard) -> Iterator[str]:
    """The texts of a shard, for the sets of doubtful documents."""
    for document in DocumentReader(shard.parts):
        yield document.text


def run_library(path: Path, folder: Path) -> dict[str, Any]:
    """From texts in memory to verified pairs."""
    KNOWN.extend(texts_of(path))
    clock = Clock()
    with DocumentHashes(folder, None, NEAR) as hashes:
        hashes.add(KNOWN)
    clock.lap("sign")
    context = StageContext("clean", "clean", folder, "benchmark")
    hashed = [HashedShard(str(folder), len(KNOWN), None)]
    run = Dedup(context, hashed, None, NEAR, texts="__main__:known_texts", workers=1)
    for phase in dedup_phases(None, NEAR):
        run.run(phase)
        clock.lap(phase.removeprefix("near-"))
    return {**clock.read(), "pairs": _pairs(folder, len(KNOWN))}


KNOWN: list[str] = []


def known_texts(source: None) -> list[str]:
    """The texts of ``run_library``'s one shard."""
    return KNOWN


def run_pipeline(path: Path, folder: Path, workers: int = 1) -> dict[str, Any]:
    """From a file to a file: read, hash, all phases, and write what stays."""
    clock = Clock()
    context = StageContext("clean", "clean", folder, "benchmark")
    shards = plan_shards(expand([path]), SHARD_BYTES)
    tasks = [Task(f"{shard.index:05d}", shard, shard.size) for shard in shards]
    run_tasks("sign", "dedup:sign", tasks, context, workers=workers)
    signed = zip(shards, results("sign", tasks, context), strict=True)
    hashed = [HashedShard(str(r.folder), r.info["documents"], shard) for shard, r in signed]
    clock.lap("read and sign")
    run = Dedup(context, hashed, None, NEAR, texts="dedup:read_shard", workers=workers)
    for phase in dedup_phases(None, NEAR):
        run.run(phase)
        clock.lap(phase.removeprefix("near-"))
    removals = run.removals()
    writing = [Task(task.key, (task.payload, removals)) for task in tasks]
    run_tasks("write", "dedup:write", writing, context, workers=workers)
    clock.lap("write")
    return {**clock.read(), "removed": run.info()["near"]["removed"]}


def run_workers(path: Path, folder: Path) -> dict[str, Any]:
    """``run_pipeline`` in two processes."""
    return run_pipeline(path, folder, workers=2)


def _pairs(folder: Path, documents: int) -> list[tuple[int, int]]:
    folders = Folders(str(path) for path in sorted((folder / "work" / VERIFY).iterdir()))
    codes, _ = Pairs(folders).between(0, documents**2)
    return [divmod(code, documents) for code in codes.tolist()]


def sign(shard: Shard, output: TaskOutput) -> dict[str, Any]:
    """A task of ``run_pipeline``: hash the documents of a shard."""
    texts: list[str] = []
    size = 0
    with DocumentHashes(output.folder, None, NEAR) as hashes:
        for text in read_shard(shard):
            texts.append(text)
            size += len(text)
            if size >= BATCH:
                hashes.add(texts)
                texts, size = [], 0
        hashes.add(texts)
    return {"documents": hashes.documents}


def write(payload: tuple[Shard, Removals], output: TaskOutput) -> dict[str, Any]:
    """A task of ``run_pipeline``: write the documents of a shard that stay."""
    shard, removals = payload
    gone = {removal.index for removal in removals.of(shard.index)}
    with output.path("kept.jsonl").open("wb") as stream:
        for index, text in enumerate(read_shard(shard)):
            if index not in gone:
                stream.write(orjson.dumps({"text": text}) + b"\n")
    return {"removed": len(gone)}


def run_datasketch(path: Path, folder: Path) -> dict[str, Any]:
    """MinHash (as it comes, with SHA-1) and MinHashLSH of the same number of values and bands."""
    from datasketch import MinHash, MinHashLSH

    texts = texts_of(path)
    clock = Clock()
    shingles = []
    for text in texts:
        words = WORD.findall(text.lower())
        ends = range(max(1, len(words) - NEAR.ngram + 1)) if words else ()
        shingles.append({" ".join(words[i : i + NEAR.ngram]).encode() for i in ends})
    clock.lap("shingle")
    hashes = MinHash.bulk(shingles, num_perm=NEAR.num_perm)
    clock.lap("MinHash")
    lsh = MinHashLSH(NEAR.threshold, NEAR.num_perm, params=NEAR.banding())
    pairs = []
    for number, value in enumerate(hashes):
        if shingles[number]:
            pairs += [(other, number) for other in lsh.query(value)]
            lsh.insert(number, value)
    clock.lap("LSH")
    return {**clock.read(), "pairs": pairs}


def run_datatrove(path: Path, folder: Path) -> dict[str, Any]:
    """The four steps of its MinHash pipeline, as they come: 14 buckets of 8, threshold 0.72."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter
    from loguru import logger

    logger.remove()
    logger.add(sys.stderr, level="WARNING")
    signature = MinhashDedupSignature(f"{folder}/1")
    # its own function hands strings to xxhash, which takes bytes alone from 4.0 on
    signature._hash_func = lambda text: xxhash.xxh64_intdigest(text.encode())
    steps: dict[str, tuple[list[Any], int]] = {
        "signatures": ([_reader(JsonlReader, path), signature], 1),
        "buckets": ([MinhashDedupBuckets(f"{folder}/1", f"{folder}/2")], 14),
        "clusters": ([MinhashDedupCluster(f"{folder}/2", f"{folder}/3")], 1),
        "filter": (
            [
                _reader(JsonlReader, path),
                MinhashDedupFilter(f"{folder}/3"),
                JsonlWriter(f"{folder}/4", compression=None),
            ],
            1,
        ),
    }
    clock = Clock()
    for name, (pipeline, tasks) in steps.items():
        executor = LocalPipelineExecutor(
            pipeline, tasks=tasks, workers=1, logging_dir=f"{folder}/logs-{name}"
        )
        executor.run()
        clock.lap(name)
    documents = sum(1 for _ in path.open("rb"))
    kept = sum(1 for file in Path(f"{folder}/4").glob("*.jsonl") for _ in file.open("rb"))
    return {**clock.read(), "removed": documents - kept}


def _reader(kind: Any, path: Path) -> Any:
    return kind(str(path.parent), glob_pattern=path.name)


class Clock:
    """Seconds between calls, and CPU seconds of this process and its children."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last, self._cpu = time.perf_counter(), _cpu_seconds()

    def lap(self, name: str) -> None:
        """What was done since the last lap has this name."""
        moment = time.perf_counter()
        self.laps[name], self._last = moment - self._last, moment

    def read(self) -> dict[str, Any]:
        """All laps, and their sums."""
        seconds = sum(self.laps.values())
        return {"laps": self.laps, "seconds": seconds, "cpu": _cpu_seconds() - self._cpu}


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


LIBRARIES = {"toolkit": run_library, "datasketch": run_datasketch}
PIPELINES = {
    "toolkit": run_pipeline,
    "toolkit, 2 workers": run_workers,
    "datatrove": run_datatrove,
}


def measure(kind: str, path: Path, folder: Path) -> dict[str, Any]:
    """Run a function of this module in a process of its own."""
    command = [sys.executable, __file__, "--run", kind, str(path), str(folder)]
    here = str(Path(__file__).resolve().parent)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": here}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def one_run(function: str, path: Path, folder: Path) -> None:
    """What ``measure`` starts: print the result as JSON."""
    folder.mkdir(parents=True)
    found = globals()[function](path, folder)
    peak = int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0])
    peak = max(peak, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
    print(json.dumps({**found, "peak": peak / 1024}))


def quality(pairs: list[list[int]], truth: dict[tuple[int, int], float]) -> str:
    """Recall, overall and in percent by similarity, and precision."""
    found = {(min(pair), max(pair)) for pair in pairs}
    right = found & set(truth)
    parts = []
    for low, high in zip(BINS, (*BINS[1:], 1.01), strict=True):
        here = {pair for pair, similarity in truth.items() if low <= similarity < high}
        name = f"{low:g}-{high:g}" if high <= 1 else "1"
        parts.append(f"{name}: {100 * len(here & found) / max(len(here), 1):.1f}")
    recall, precision = len(right) / len(truth), len(right) / max(len(found), 1)
    by_similarity = ", ".join(parts)
    return f"recall {recall:.2%} (by similarity: {by_similarity}), precision {precision:.2%}"


def compare(folder: Path, megabytes: float, repeats: int) -> None:
    """The tables of speed and quality."""
    path = folder / "data" / "corpus.jsonl"
    path.parent.mkdir()
    build_corpus(path, megabytes)
    size = plant(path) / 1e6
    texts = texts_of(path)
    truth = true_pairs(texts)
    bands, rows = NEAR.banding()
    print(f"{len(texts):,} documents, {size:.1f} MB, {len(truth):,} pairs of Jaccard similarity")
    print(f">= {NEAR.threshold} ({NEAR.ngram}-grams of words); {bands} bands of {rows} rows")
    found = table("texts to pairs", LIBRARIES, path, size, repeats)
    print()
    for name, run in found.items():
        print(f"{name}: {quality(run['pairs'], truth)}")
    table("file to file", PIPELINES, path, size, repeats)


def table(
    title: str, runs: dict[str, Any], path: Path, size: float, repeats: int
) -> dict[str, dict[str, Any]]:
    """Measure, print a table, and give the results; ours is the best of some runs."""
    print(f"\n| {title} | s | CPU s | MB/s | CPU, to ours | peak MB | where |")
    print("|---|---|---|---|---|---|---|", flush=True)
    found: dict[str, dict[str, Any]] = {}
    for name, function in runs.items():
        ours = name.startswith("toolkit")
        if not ours and importlib.util.find_spec(name) is None:
            print(f"| {name} | not installed |")
            continue
        again = [
            measure(function.__name__, path, path.parent / f"{function.__name__}-{n}")
            for n in range(repeats if ours else 1)
        ]
        run = found[name] = min(again, key=lambda run: run["seconds"])
        laps = ", ".join(f"{lap} {took:.2f}" for lap, took in run["laps"].items())
        ratio = run["cpu"] / found["toolkit"]["cpu"]
        speed = f"{run['seconds']:.2f} | {run['cpu']:.2f} | {size / run['seconds']:.1f}"
        print(f"| {name} | {speed} | {ratio:.1f}x | {run['peak']:.0f} | {laps} |", flush=True)
    return found


def scale(folder: Path, sizes: list[float]) -> None:
    """The table of ours by size: time in proportion, memory flat."""
    print("\n| MB | documents | s | CPU s | MB per CPU s | peak MB | removed |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for megabytes in sizes:
        path = folder / f"{megabytes:g}.jsonl"
        build_corpus(path, megabytes)
        size = plant(path) / 1e6
        documents = sum(1 for _ in path.open("rb"))
        run = measure("run_pipeline", path, folder / f"toolkit-{megabytes:g}")
        speed = f"{run['seconds']:.2f} | {run['cpu']:.2f} | {size / run['cpu']:.1f}"
        figures = f"{speed} | {run['peak']:.0f}"
        print(f"| {size:.0f} | {documents:,} | {figures} | {run['removed']:,} |", flush=True)


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=float, default=60)
    parser.add_argument("--sizes", type=float, nargs="*", default=[25, 250])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        function, data, folder = options.run
        one_run(function, Path(data), Path(folder))
        return
    with tempfile.TemporaryDirectory() as scratch:
        compare(Path(scratch), options.megabytes, options.repeats)
        scale(Path(scratch), options.sizes)


if __name__ == "__main__":
    main()
