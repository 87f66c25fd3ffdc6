"""What became of the documents of a ``clean`` stage: the artifact's info, and the log's lines."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.data.clean.config import CleanConfig
from toolkit.data.clean.settings import SAFE_HARBOR_LIMITS
from toolkit.data.dedup.decontaminate import load_index
from toolkit.data.dedup.phases import Dedup
from toolkit.data.tasks import TaskResult

logger = logging.getLogger(__name__)
COUNTS = ("read", "empty", "quarantined", "characters_read", "characters_written")


def describe(
    config: CleanConfig,
    owners: Mapping[str, str],
    filtered: Sequence[TaskResult],
    written: Sequence[TaskResult],
    dedup: Dedup | None,
    evaluations: Path | None,
) -> dict[str, Any]:
    """The artifact's info. Counts add up: read = written + removed + empty + quarantined.

    Args:
        config: the stage's.
        owners: the source of each task, as the settings have it.
        filtered: of the first phase, in order.
        written: of the last phase, in the same order; none without deduplication.
        dedup: how duplicates were found.
        evaluations: the folder of the evaluations' index.
    """
    drops = _sum(one.info["drops"] for one in (*filtered, *written))
    languages = _sum(one.info["languages"] for one in filtered)
    languages.subtract(_sum(one.info["languages"] for one in written))
    counts = {name: sum(int(one.info[name]) for one in filtered) for name in COUNTS}
    counts["characters_written"] -= sum(int(one.info["characters"]) for one in written)
    counts["removed"] = sum(drops.values())
    counts["written"] = sum(int(one.info["written"]) for one in filtered)
    counts["written"] -= sum(sum(one.info["drops"].values()) for one in written)
    accounted = sum(counts[n] for n in ("written", "removed", "empty", "quarantined"))
    assert counts["read"] == accounted, f"documents are unaccounted for: {counts}"
    info: dict[str, Any] = {
        "counts": counts,
        "drops": dict(drops.most_common()),
        "changed": dict(_sum(one.info["changed"] for one in filtered)),
        "languages": {name: n for name, n in languages.most_common() if n},
        "pii": dict(_sum(one.info["pii"] for one in filtered).most_common()),
        "per_source": _per_source(config.sources, owners, filtered, written),
        "format": config.output_format,
        "text_key": "text",
    }
    if config.pii and config.pii.preset:
        info["pii_limits"] = SAFE_HARBOR_LIMITS
    if dedup:
        info["dedup"] = dedup.info()
    if evaluations:
        items = {item for one in filtered for item in one.info["contaminated_items"]}
        info["decontamination"] = load_index(evaluations).report(sorted(items))
    return info


def _sum(parts: Iterable[Mapping[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return total


def _per_source(
    sources: Sequence[str],
    owners: Mapping[str, str],
    filtered: Sequence[TaskResult],
    written: Sequence[TaskResult],
) -> list[dict[str, Any]]:
    rows = {name: Counter[str]() for name in sources}
    for one in filtered:
        row = rows[owners[one.key]]
        row.update({name: int(one.info[name]) for name in (*COUNTS, "written")})
        row["removed"] += sum(one.info["drops"].values())
    for one in written:
        duplicates = sum(one.info["drops"].values())
        row = rows[owners[one.key]]
        row["written"] -= duplicates
        row["characters_written"] -= int(one.info["characters"])
        row["removed"] += duplicates
    return [{"name": name, **row} for name, row in rows.items()]


def show(info: Mapping[str, Any], seconds: float) -> None:
    """Say in the log what became of the documents."""
    counts, drops = info["counts"], info["drops"]
    megabytes = counts["characters_read"] / 1e6
    reasons = ", ".join(f"{reason} {number:,}" for reason, number in drops.items())
    logger.info(
        "%s of %s documents stay; removed %s%s; %s empty, %s bad; %.1f M characters in %.1f s "
        "(%.1f M/s)",
        *(f"{counts[name]:,}" for name in ("written", "read", "removed")),
        f" ({reasons})" if reasons else "",
        *(f"{counts[name]:,}" for name in ("empty", "quarantined")),
        *(megabytes, seconds, megabytes / max(seconds, 1e-9)),
    )
    if info["pii"]:
        found = ", ".join(f"{kind} {number:,}" for kind, number in info["pii"].items())
        logger.info("personal data replaced: %s", found)
    if counts["quarantined"]:
        logger.warning("%d records are set aside in quarantine.jsonl", counts["quarantined"])
