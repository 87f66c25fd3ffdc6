"""TensorBoard's event files, in the stage's ``tensorboard/``; no torch is loaded."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from toolkit.tracking.job import Ending, Job
from toolkit.tracking.tail import Step

FOLDER = "tensorboard"
FILES = "events.out.tfevents.*"


class TensorBoardEvents:
    """Scalars, in one file that every attempt writes anew from ``metrics.jsonl``.

    So nothing that was buffered when a node was lost is missing. Where training goes back to a
    checkpoint, TensorBoard is told to forget what it has read from there on (``SessionLog.START``,
    the ``purge_step`` of torch's writer).
    """

    def __init__(self, job: Job) -> None:
        self._folder: Path = job.folder / FOLDER
        self._last = 0
        self._writer: EventFileWriter | None = None

    def begin(self) -> int:
        """Begin a new file in place of the last attempt's; every step is wanted."""
        old = list(self._folder.glob(FILES))
        self._writer = EventFileWriter(str(self._folder))
        self._forget_from(0)
        for path in old:
            path.unlink()
        return -1

    def rewound(self, last: int, sent: int) -> int:
        """Forget what came after ``last``."""
        self._forget_from(last + 1)
        return min(last, sent)

    def log(self, steps: list[Step]) -> None:
        """Write and flush a scalar for each value, at the time at which it was logged."""
        for step in steps:
            self._write(step.step, step.time, step.values)
        if self._writer is not None:
            self._writer.flush()

    def finish(self, end: Ending, results: Mapping[str, float | str]) -> None:
        """Write the results that are numbers under ``results/``, at the last step."""
        numbers = {f"results/{k}": v for k, v in results.items() if not isinstance(v, str)}
        self._write(self._last, time.time(), numbers)
        if self._writer is not None:
            self._writer.close()

    def _forget_from(self, step: int) -> None:
        self._add(Event(wall_time=time.time(), step=step, session_log=SessionLog(status=1)))

    def _write(self, step: int, moment: float, values: Mapping[str, float]) -> None:
        self._last = step
        scalars = [Summary.Value(tag=k, simple_value=float(v)) for k, v in values.items()]
        if scalars:
            self._add(Event(wall_time=moment, step=step, summary=Summary(value=scalars)))

    def _add(self, event: Event) -> None:
        if self._writer is not None:
            self._writer.add_event(event)
