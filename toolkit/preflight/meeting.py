"""Where ranks meet: a store that rank 0 holds, over the rendezvous of the job."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import TCPStore

from toolkit.errors import ToolkitError

PINGS = 3
"""Questions to each clock; the quickest answer counts."""


class Silence(ToolkitError):
    """Nobody said what was waited for, in time."""


class Meeting:
    """One rank's connection to the store."""

    def __init__(self, host: str, port: int, rank: int, seconds: float) -> None:
        """Hold the store (rank 0), or connect to it.

        Raises:
            Silence: rank 0's store could not be reached within ``seconds``, or its port is taken.
        """
        try:
            self.store = TCPStore(
                host,
                port,
                is_master=rank == 0,
                timeout=timedelta(seconds=max(1.0, seconds)),
                wait_for_workers=False,
            )
        except RuntimeError as error:
            said = str(error).splitlines()[0]
            raise Silence(f"no rendezvous at {host}:{port}: {said}") from error

    def say(self, key: str, what: Any) -> None:
        """Tell the others, as JSON."""
        self.store.set(key, json.dumps(what))

    def hear(self, key: str, seconds: float) -> Any:
        """What somebody says under a key; waits for it.

        Raises:
            Silence: nobody did within ``seconds``, or rank 0 is gone.
        """
        try:
            self.store.wait([key], timedelta(seconds=max(0.01, seconds)))
            return json.loads(self.store.get(key))
        except RuntimeError as error:
            raise Silence(f"no {key} within {seconds:.0f} s") from error

    def hear_all(self, keys: Iterable[str], deadline: float) -> dict[str, Any]:
        """What was said under each of the keys until ``deadline`` (by ``time.monotonic``)."""
        found = {}
        for key in keys:
            try:
                found[key] = self.hear(key, deadline - time.monotonic())
            except Silence:
                continue  # whoever is missing is the caller's to name
        return found

    def ask_clock(self, rank: int, seconds: float) -> float:
        """How many seconds another rank's clock is ahead of this one's.

        By Cristian's algorithm: the answer's time against the middle of question and answer; the
        error is half the quickest round trip at most.

        Raises:
            Silence: the rank gave no answer within ``seconds``.
        """
        best = (float("inf"), 0.0)
        for number in range(PINGS):
            started, asked = time.monotonic(), time.time()
            self.say(f"ask/{rank}/{number}", None)
            there = self.hear(f"clock/{rank}/{number}", seconds)
            trip = time.monotonic() - started
            best = min(best, (trip, there - asked - trip / 2))
        return best[1]

    def answer_clock(self, rank: int, seconds: float) -> None:
        """Answer ``ask_clock``.

        Raises:
            Silence: rank 0 did not ask within ``seconds``.
        """
        for number in range(PINGS):
            self.hear(f"ask/{rank}/{number}", seconds)
            self.say(f"clock/{rank}/{number}", time.time())
