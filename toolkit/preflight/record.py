"""What a preflight leaves in the stage's folder, for a script, for people, and for ``state.json``.

``STAGE_DIR/preflight/JOB-RESTART/``: ``nodes`` (the job's, by its script), ``rank-N.json``
(reports), ``summary.json``, and ``unfit``: a line ``NODE<TAB>REASON`` for each reason, which a
script without Python reads, or writes where no rank could.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from toolkit.artifacts import write_json, write_text
from toolkit.errors import BusyError
from toolkit.pipeline.state import (
    PREFLIGHT,
    UNFIT,
    locked,
    read_state,
    unfit_nodes,
    write_state,
)
from toolkit.preflight.links import Links
from toolkit.preflight.report import Report, read_report
from toolkit.preflight.verdict import Verdict

logger = logging.getLogger("toolkit.preflight")
NODES = "nodes"
SUMMARY = "summary.json"


def attempt_folder(stage: Path) -> Path:
    """The folder of this start of this job; ``by-hand`` outside of Slurm."""
    job = os.environ.get("SLURM_JOB_ID")
    restart = os.environ.get("SLURM_RESTART_COUNT", "0")
    return stage / PREFLIGHT / (f"{job}-{restart}" if job else "by-hand")


def leave_word(folder: Path, report: Report) -> None:
    """Write a rank's report, whole or not at all."""
    write_text(folder / f"rank-{report.rank}.json", report.text() + "\n")


def read_words(folder: Path) -> list[Report]:
    """What ranks have left so far, by rank; one that is cut short counts as none."""
    found = []
    for path in folder.glob("rank-*.json"):
        try:
            found.append(read_report(path.read_text(encoding="utf-8")))
        except ValueError:
            continue  # its node went down while it wrote
    return sorted(found, key=lambda report: report.rank)


def listed_nodes(folder: Path) -> list[str]:
    """The job's nodes, where a script has written them down."""
    path = folder / NODES
    return path.read_text(encoding="utf-8").split() if path.is_file() else []


def write_verdict(
    folder: Path,
    verdict: Verdict,
    links: Links,
    reports: Sequence[Report],
    skews: Mapping[str, float],
) -> None:
    """Write ``summary.json``, and ``unfit`` where there is a node to name."""
    nodes = {report.node: {"ranks": 0, "findings": [], "versions": {}} for report in reports}
    for report in reports:
        entry: dict[str, Any] = nodes[report.node]
        entry["ranks"] += 1
        entry["findings"] += [asdict(finding) for finding in report.findings]
        entry["versions"] |= report.versions
        entry["seconds"] = round(max(report.seconds, entry.get("seconds", 0.0)), 2)
    summary = {
        "fit": verdict.fit,
        "unfit": verdict.unfit,
        "common": verdict.common,
        "clock_skew": skews,
        "busbw_within": links.within,
        "busbw_across": links.across,
        "nodes": nodes,
    }
    lines = [
        f"{node}\t{' '.join(reason.split())}\n"
        for node, reasons in verdict.unfit.items()
        for reason in reasons
    ]
    if lines:
        write_text(folder / UNFIT, "".join(lines))
    write_json(folder / SUMMARY, summary)


def note_unfit(stage: Path) -> None:
    """Write the nodes that were named, now and before, into ``state.json``.

    Where the end of the job before still holds the stage, that is left to the worker, which reads
    them anyway: the verdict stands.
    """
    if unfit_nodes(stage):
        try:
            with locked(stage, "stage"):
                write_state(stage, read_state(stage))
        except BusyError as error:
            logger.warning("%s", error)
