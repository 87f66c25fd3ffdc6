"""The watchdog of a rank: one that takes no step says why, writes its stacks, and ends."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable

LINGER = 10.0
"""Seconds between a rank's word and its end: whoever started the ranks ends the others with the
first, and they are to reach their own deadlines before, and write their stacks, too."""


class Watchdog:
    """Ends this process, with 1, when ``seconds`` pass from one step to the next.

    A thread of its own looks at the clock, which works while the others wait in a collective: they
    hold no GIL there. For a process whose GIL is held, a timer in C (faulthandler's) stands behind
    it: stacks in the log and the end, but no ``report``.
    """

    def __init__(
        self, seconds: float, report: Callable[[str], None], linger: float = LINGER
    ) -> None:
        """Nothing is watched yet: the first ``step`` begins it.

        Args:
            seconds: from one step to the next.
            report: is told why, before the end; it may fail, or hang.
            linger: see ``LINGER``.
        """
        self.seconds, self.report, self.linger = seconds, report, linger
        self._deadline = 0.0
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()

    def step(self) -> None:
        """Say that a step was taken; the next must follow in time, unless ``stop`` was called."""
        if self._stopped.is_set():
            return
        faulthandler.dump_traceback_later(self.seconds + 2 * self.linger, exit=True)
        self._deadline = time.monotonic() + self.seconds
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """No step is to follow: whatever comes now may take any time."""
        self._stopped.set()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while not self._stopped.wait(max(self._deadline - time.monotonic(), 0.0)):
            if time.monotonic() >= self._deadline:
                self._end()

    def _end(self) -> None:
        message = f"no step within {self.seconds:g} s"
        sys.stderr.write(f"{message}; the stacks of all threads:\n")
        faulthandler.dump_traceback(all_threads=True)
        try:
            self.report(message)
        finally:
            time.sleep(self.linger)
            os._exit(1)
