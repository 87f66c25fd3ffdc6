"""Metrics and progress of one stage, on disk: ``metrics.jsonl`` and ``progress.json``."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from toolkit.artifacts import own_temporary, write_text

METRICS = "metrics.jsonl"
PROGRESS = "progress.json"


class Tracker:
    """Appends metrics to ``metrics.jsonl``, from where ``Senders`` pass them on.

    Only one rank of a stage should log. Each row is one JSON object, such as
    ``{"step": 10, "time": 1763.2, "loss": 3.21}``; a value that is not finite is written as null.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / METRICS
        self._mended = False

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one row, flushed, so that a reader sees it at once."""
        finite = {k: _plain(v) for k, v in values.items()}
        row = {"step": step, "time": round(time.time(), 3), **finite}
        self._mend()
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")

    def _mend(self) -> None:
        """Before the first row: drop a last one that a crash cut off."""
        if self._mended:
            return
        self._mended = True
        if self._path.exists() and not self._path.read_bytes().endswith(b"\n"):
            self._rewrite(read_metrics(self.folder))

    def _rewrite(self, rows: Iterable[Mapping[str, Any]]) -> None:
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in rows))

    def rewind(self, step: int) -> None:
        """Drop the rows after ``step``: training goes on from a checkpoint made there."""
        if self._path.exists():
            self._rewrite(r for r in read_metrics(self.folder) if r["step"] <= step)


def _plain(value: Any) -> Any:
    if isinstance(value, (bool, str)) or value is None:
        return value
    number = float(value)
    if not math.isfinite(number):
        return None
    return int(number) if isinstance(value, int) else number


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of a stage's ``metrics.jsonl``; a last row cut off by a crash is left out."""
    path = folder / METRICS
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


class Progress:
    """Writes ``progress.json`` for whoever watches: this machine's terminal, or another node's.

    Written at most five times a second, atomically, and without flushing to disk: it is a view,
    not a record.
    """

    INTERVAL = 0.2

    def __init__(self, folder: Path) -> None:
        self._path = folder / PROGRESS
        self._started = time.monotonic()
        self._first: float | None = None
        self._unit = ""
        self._last = 0.0

    def __call__(
        self, done: float, total: float | None = None, *, unit: str = "", **shown: Any
    ) -> None:
        """Say how far the stage is. Another ``unit`` begins a new count, with a rate of its own.

        Args:
            done: how much is done, in ``unit``.
            total: how much there is, where known.
            unit: what is counted: ``iterations``, ``documents``, ``MB``.
            shown: further figures for the line, such as ``loss=3.21``.
        """
        moment = time.monotonic()
        if self._first is None or unit != self._unit:
            self._first, self._unit, self._started = done, unit, moment
        if moment - self._last < self.INTERVAL and done != total:
            return
        self._last = moment
        elapsed = moment - self._started
        rate = (done - self._first) / elapsed if elapsed > 0 else 0.0
        left = (total - done) / rate if total is not None and rate > 0 else None
        record = {
            "done": done,
            "total": total,
            "unit": unit,
            "rate": rate,
            "seconds_left": left,
            "shown": {k: _plain(v) for k, v in shown.items()},
            "time": time.time(),
        }
        temporary = own_temporary(self._path)
        temporary.write_text(json.dumps(record), encoding="utf-8")
        temporary.replace(self._path)
