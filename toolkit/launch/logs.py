"""The logs of a submitted stage: finding them, and following them while it runs."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from toolkit.errors import ToolkitError
from toolkit.launch.watching import run_status
from toolkit.pipeline.problems import unknown
from toolkit.pipeline.run import read_run
from toolkit.pipeline.state import read_state

ASK_SLURM = 10.0
"""Seconds between questions to Slurm of one who follows a log."""


def log_of(run: Path, stage: str, rank: int | None = None) -> Path:
    """The log of a stage's rank, or the newest log of its jobs' own scripts.

    Args:
        run: the run's folder.
        stage: a stage of it.
        rank: whose; None: the script's own, which says how the job began and ended.

    Raises:
        ToolkitError: no such stage or rank.
        FileNotFoundError: it has written nothing yet.
    """
    stages = read_run(run)
    if stage not in stages:
        raise ToolkitError(unknown("stage", stage, stages), where=str(run))
    logs = run / stage / "logs"
    for path in () if rank is None else (logs / f"rank-{rank}.log", logs / f"node-{rank}.log"):
        if path.is_file():
            return path
    ranks = sorted(int(m[1]) for p in logs.glob("*.log") if (m := re.match(r"rank-(\d+)", p.name)))
    if ranks and rank is not None and rank > ranks[-1]:
        raise ToolkitError(f"no log of rank {rank}; there are {ranks[0]} to {ranks[-1]}")
    jobs = sorted(logs.glob("slurm-*.log"), key=lambda path: path.stat().st_mtime)
    if not jobs:
        raise FileNotFoundError(str(logs))
    return jobs[-1]


def stage_ended(run: Path, stage: str) -> Callable[[], bool]:
    """A question that may be asked often: whether a stage neither waits nor runs any more.

    Slurm is asked at most every ``ASK_SLURM`` seconds, or as soon as the stage itself says that
    it has ended.
    """
    asked = float("-inf")
    own = ""

    def ended() -> bool:
        nonlocal asked, own
        status = read_state(run / stage).status
        if status == "complete":
            return True
        if time.monotonic() - asked < ASK_SLURM and (status == own or status == "running"):
            return False
        asked, own = time.monotonic(), status
        row = next(row for row in run_status(run) if row.name == stage)
        return not row.job or row.state.status not in ("running", "pending")

    return ended


def appears(find: Callable[[], Path], ended: Callable[[], bool], poll: float = 0.5) -> Path | None:
    """Wait for a log; None where ``ended`` says that none will come."""
    while True:
        over = ended()
        try:
            return find()
        except FileNotFoundError:
            if over:
                return None
        time.sleep(poll)


def follow(path: Path, ended: Callable[[], bool], lines: int, poll: float = 0.5) -> Iterator[str]:
    """The last lines of a log and what it gets until ``ended`` says so, a piece at a time."""
    with path.open(encoding="utf-8", errors="replace") as stream:
        yield "".join(deque(stream, maxlen=lines))
        over = False
        while True:
            text = stream.read()
            if text:
                yield text
            elif over:
                return
            over = ended()
            time.sleep(0 if text else poll)
