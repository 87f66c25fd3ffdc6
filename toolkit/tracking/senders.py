"""Starts and ends the processes that pass a stage's metrics on to its sinks.

A sink lives in a process of its own, ``python -m toolkit.tracking``, because W&B's and MLflow's
libraries block, retry for minutes, hook into exit and start threads. Stop signals are blocked in
that process: Slurm sends them to every process of a step, and the rank alone shall heed them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from toolkit.tracking.job import End, Job

logger = logging.getLogger(__name__)
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
PATIENCE: dict[End, float] = {"complete": 30.0, "interrupted": 10.0, "failed": 5.0}
"""Seconds that the senders get at most when the stage has ended. Stopped near a time limit there is
little left; where a rank failed, the launcher kills the others after 10 s."""
POLL = 0.05


class Sender:
    """One running sender; its words go to this process's log, its library's to a log file."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._ended = False
        with log_path(job.folder, job.sink).open("ab") as log:
            held = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # the child inherits it
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "toolkit.tracking"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    start_new_session=True,
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, held)
        self._say(job.to_json())
        self._relay = threading.Thread(target=self._pass_on, daemon=True)
        self._relay.start()

    @property
    def running(self) -> bool:
        """Whether it still has something to send."""
        return self._process.poll() is None

    def end(self, end: End) -> None:
        """Say that the stage has ended; it then sends the rest, and ends itself."""
        self._ended = True
        self._say(end)

    def close(self) -> bool:
        """End it now if it has not ended by itself; returns whether it has sent everything."""
        if self.running:
            logger.warning("tracking.%s: the rest was not sent in time", self.job.sink)
            os.killpg(self._process.pid, signal.SIGKILL)
        code = self._process.wait()
        self._relay.join(timeout=1)  # its last words
        return code == 0

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended; `_pass_on` says so
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()

    def _pass_on(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            level, _, message = line.decode(errors="replace").rstrip("\n").partition(" ")
            logger.log(logging.getLevelNamesMapping().get(level, logging.INFO), "%s", message)
        if not self._ended:
            log = log_path(self.job.folder, self.job.sink)
            logger.warning("tracking.%s: its process ended by itself; see %s", self.job.sink, log)


class Senders:
    """All the senders of one stage."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._senders = [Sender(job) for job in jobs]

    def end(
        self,
        end: End,
        patience: float | None = None,
        hurry: Callable[[], bool] = lambda: False,
    ) -> list[str]:
        """Let them send the rest, and kill those that don't end in time.

        Args:
            end: how the stage ended.
            patience: seconds; by default by how it ended.
            hurry: whether a stop signal came: then they get no more than at a stop.

        Returns:
            The sinks that did not get all of it.
        """
        for sender in self._senders:
            sender.end(end)
        left = PATIENCE[end] if patience is None else patience
        late: list[str] = []
        try:
            left -= self._wait(left, until=hurry)
            self._wait(min(left, PATIENCE["interrupted"]))
        finally:
            late += [sender.job.sink for sender in self._senders if not sender.close()]
        return late

    def _wait(self, seconds: float, until: Callable[[], bool] = lambda: False) -> float:
        """Wait until all have ended, at most so long; returns the seconds that it took."""
        began = time.monotonic()
        while (passed := time.monotonic() - began) < seconds and not until():
            if not any(sender.running for sender in self._senders):
                break
            time.sleep(POLL)
        return passed


def log_path(folder: Path, sink: str) -> Path:
    """Where the library of a sink of the stage in ``folder`` writes what it has to say."""
    path = folder / "logs" / f"tracking-{sink}.log"
    path.parent.mkdir(exist_ok=True)
    return path
