"""What a dataset's ``artifact.json`` says of it: where it came from, and what became of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from toolkit.data.config import TokenizeConfig
from toolkit.data.examine.lengths import length_histogram
from toolkit.data.indexed import IndexedReader, token_dtype
from toolkit.data.tasks import TaskResult

if TYPE_CHECKING:
    from toolkit.data.tokenize_plan import Group, Plan

MOST_SOURCES = 1000
"""Entries of sources in ``artifact.json``."""
SOURCES = "sources.jsonl"
COUNTED = ("written", "empty", "tokens", "text_bytes")


def describe(
    config: TokenizeConfig,
    plan: Plan,
    done: Sequence[TaskResult],
    prefixes: Mapping[str, Sequence[str]],
    built: Path,
) -> dict[str, Any]:
    """The ``info`` of a tokenized dataset.

    Args:
        prefixes: of each group.
        built: the folder that has them.
    """
    names = [name for group in plan.groups for name in prefixes[group.name]]
    counts = count(config, done)
    info: dict[str, Any] = {
        "prefixes": names,
        "dtype": np.dtype(token_dtype(plan.recipe.vocab_size)).name,
        "vocab_size": plan.recipe.vocab_size,
        "eod_id": plan.recipe.eod_id,
        "tokenizer_sha256": plan.recipe.tokenizer_sha256,
        "counts": counts,
        "document_lengths": document_lengths([built / name for name in names]),
        "bytes_per_token": round(counts["text_bytes"] / counts["tokens"], 3),
        "per_source": per_source(plan, done),
        "sources": list_sources(done, built),
        "shards": [_shard(result) for result in done],
        "backend": plan.recipe.backend,
        "backend_reason": plan.reason,
    }
    if skipped := sum((Counter(result.info["skipped"]) for result in done), Counter()):
        info["skipped"] = dict(skipped)  # what web archives hold beside pages
    if any(group.weight for group in plan.groups):
        info["weights"] = weights(plan.groups, prefixes, built)
    return info


def list_sources(done: Sequence[TaskResult], built: Path) -> list[dict[str, Any]]:
    """What was read, with size, time and checksum; of very many files, the file that lists them."""
    found = [entry for result in done for entry in result.info["sources"]]
    if len(found) <= MOST_SOURCES:
        return found
    with (built / SOURCES).open("wb") as stream:
        for entry in found:
            stream.write(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))
    sizes = {entry["name"]: entry["size"] for entry in found}
    return [{"name": SOURCES, "files": len(sizes), "size": sum(sizes.values())}]


def count(config: TokenizeConfig, done: Sequence[TaskResult]) -> dict[str, int]:
    """What became of every record.

    ``read = written + empty + quarantined``; with several keys each record counts once for each.
    """
    keys = len(config.text_keys)
    total: Counter[str] = Counter({"read": 0, "quarantined": 0})
    for result in done:
        total["read"] += keys * int(result.info["read"])
        total["quarantined"] += keys * int(result.info["quarantined"])
        for counts in result.info["keys"].values():
            total.update({name: counts[name] for name in COUNTED})
    accounted = total["written"] + total["empty"] + total["quarantined"]
    assert total["read"] == accounted, f"records are unaccounted for: {total}"
    return {name: total[name] for name in ("read", "written", "empty", "quarantined", *COUNTED[2:])}


def per_source(plan: Plan, done: Sequence[TaskResult]) -> list[dict[str, Any]]:
    """Documents, tokens and bytes of text of each of the settings' sources."""
    found: dict[str, Counter[str]] = {}
    for result in done:
        total = found.setdefault(plan.owners[result.key][1], Counter())
        for counts in result.info["keys"].values():
            total.update(
                documents=counts["written"],
                tokens=counts["tokens"],
                text_bytes=counts["text_bytes"],
            )
    return [{"name": name, **total} for name, total in found.items()]


def weights(
    groups: Sequence[Group], prefixes: Mapping[str, Sequence[str]], built: Path
) -> list[float]:
    """The weight of each prefix: its group's, shared by the group's prefixes by their tokens."""
    found = []
    for group in groups:
        tokens = [_tokens(built / name) for name in prefixes[group.name]]
        found += [(group.weight or 1.0) * n / max(1, sum(tokens)) for n in tokens]
    return found


def document_lengths(prefixes: Sequence[Path]) -> dict[str, Any]:
    """Tokens of the documents: mean, median, 90th and 99th percentile, longest, a histogram."""
    lengths = np.concatenate([_document_lengths(IndexedReader(prefix)) for prefix in prefixes])
    median, p90, p99 = np.percentile(lengths, [50, 90, 99])
    return {
        "mean": round(float(lengths.mean()), 1),
        "median": round(float(median), 1),
        "p90": round(float(p90), 1),
        "p99": round(float(p99), 1),
        "max": int(lengths.max()),
        "histogram": length_histogram(lengths),
    }


def _document_lengths(reader: IndexedReader) -> Any:
    ends = np.concatenate([[0], np.cumsum(reader.lengths, dtype=np.int64)])
    return np.diff(ends[reader.document_indices])


def _tokens(prefix: Path) -> int:
    return int(IndexedReader(prefix).lengths.sum(dtype=np.int64))


def _shard(result: TaskResult) -> dict[str, Any]:
    """A shard's counts, and the checksums of its tokens before they were merged."""
    counts = result.info["keys"].values()
    return {
        "key": result.key,
        "documents": sum(c["written"] for c in counts),
        "tokens": sum(c["tokens"] for c in counts),
        "bin_xxh3": {
            name.removesuffix(".bin"): xxh3
            for name, xxh3 in result.checksums.items()
            if name.endswith(".bin")
        },
    }
