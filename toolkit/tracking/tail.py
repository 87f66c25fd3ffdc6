"""Reads ``metrics.jsonl`` while it is written, whole steps at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OF_THE_ROW = ("step", "time")


@dataclass
class Step:
    """All that was logged of one step."""

    step: int
    time: float
    """Seconds since 1970, of its first row."""
    values: dict[str, float] = field(default_factory=dict)
    """Numbers alone: what is null or a text is left out."""


class Tail:
    """Follows one file.

    A step is known to be whole when a row of a later one is there: training logs its loss before it
    evaluates. Until then it is held back, lest a restart send the rest of it too late for a sink
    that takes each step once.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None
        self._offset = 0
        self._held: Step | None = None
        self.last = -1
        """The last step that the file has, whole or not."""

    def steps(self) -> tuple[bool, list[Step]]:
        """Whether the file was written anew (training went back to a checkpoint), and the steps
        that are whole since the last look; all of the file's when it was written anew."""
        anew, rows = self._read()
        if anew:
            self._held, self.last = None, -1
        whole = []
        for row in rows:
            step = int(row["step"])
            if self._held is not None and self._held.step != step:
                whole.append(self._held)
                self._held = None
            if self._held is None:
                self._held = Step(step, float(row["time"]))
            self._held.values |= _numbers(row)
            self.last = step
        return anew, whole

    def held(self) -> list[Step]:
        """The last step, when no more of it is to come."""
        last, self._held = self._held, None
        return [] if last is None else [last]

    def _read(self) -> tuple[bool, list[Mapping[str, Any]]]:
        try:
            stream = self._path.open("rb")
        except FileNotFoundError:
            return False, []
        with stream:
            status = os.fstat(stream.fileno())
            anew = self._file not in (None, status.st_ino) or status.st_size < self._offset
            self._file, self._offset = status.st_ino, 0 if anew else self._offset
            stream.seek(self._offset)
            text = stream.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        return anew, list(_rows(whole))


def _rows(text: bytes) -> Iterator[Mapping[str, Any]]:
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue  # cut off by a crash; the tracker drops it before it writes its next row


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {
        key: value
        for key, value in row.items()
        if key not in OF_THE_ROW and isinstance(value, (int, float)) and not isinstance(value, bool)
    }
