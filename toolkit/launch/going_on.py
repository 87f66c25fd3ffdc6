"""How a job went on, in its own word: what ``slurm/going_on.sh.j2`` notes in the stage's folder.

``STAGE_DIR/going-on/NAME.json`` is of one job, of all links of a chain, or (``NAME-3.json``) of one
task of an array; whoever submits the stage anew removes the folder.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

GOING_ON = "going-on"


@dataclass(frozen=True)
class GoingOn:
    """One such file."""

    job: str
    """Slurm's id, of an array's task such as ``100_3``; of a chain that of the link at it last."""
    link: int
    links: int
    """Of a chain: which of how many jobs was at it last; else 1 of 1."""
    restarts: int
    """How often it asked to be started again; what Slurm did by itself is not counted."""
    max_restarts: int
    step: int
    """Where it stood when it was last started again; -1: not yet, or it doesn't count steps."""
    ended: bool
    """Whether it will not go on: it is done, or ``reason`` says what stopped it."""
    reason: str
    """Why it ended, or was last started again by itself; empty where neither is so."""
    time: str
    """When it was noted: UTC, as in 2026-11-20T18:00:00Z."""


def read_going_on(folder: Path) -> dict[str, GoingOn]:
    """What the jobs of a stage noted, by the files' names without their ending.

    A file that is not whole, or of another version of the toolkit, is left out: it is a view.
    """
    found = {}
    for path in sorted((folder / GOING_ON).glob("*.json")):
        try:
            found[path.stem] = GoingOn(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            continue
    return found
