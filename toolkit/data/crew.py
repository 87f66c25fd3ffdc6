"""A crew of worker processes that do jobs: started clean, watched, and never left behind.

Each is ``python -m toolkit.data.crew FD``, on the other end of a pipe. ``multiprocessing``'s
``spawn`` would import the parent's main module again in every child, and its pools can't say
which job a killed process had in hand.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import logging
import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Protocol, Self

from toolkit.errors import StageError, ToolkitError

logger = logging.getLogger(__name__)
PR_SET_PDEATHSIG = 1
REPORT_INTERVAL = 0.2

Report = Callable[[int, dict[str, int]], None]
"""Takes how many bytes of a job's input are done, and its counts."""


class Job(Protocol):
    """Something to do in another process; picklable."""

    def __call__(self, report: Report, /) -> None:
        """Do it."""


@functools.cache
def resolve(name: str) -> Callable[..., Any]:
    """The function that ``"module:function"`` names."""
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


@dataclass
class _Member:
    process: subprocess.Popen[bytes]
    pipe: Connection
    key: str | None = None
    """The job in hand."""


class Crew:
    """Worker processes; leaving the context kills them.

    Args:
        size: how many.
        threads: of each, for the libraries that have thread pools.
        module: what each imports at its start.
    """

    def __init__(self, size: int, threads: int = 1, module: str = __name__) -> None:
        self._size, self._threads, self._module = size, threads, module
        self._members: list[_Member] = []

    def __enter__(self) -> Self:
        try:
            for _ in range(self._size):
                self._members.append(self._start())
        except BaseException:
            self._dismiss()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._dismiss()

    def work(
        self,
        jobs: Mapping[str, Any],
        report: Callable[[str, int, dict[str, int]], None],
        finished: Callable[[str], None],
    ) -> None:
        """Do all jobs, in order as processes get free.

        Args:
            jobs: by a key that ``report`` is given.
            report: called with what a job says of its progress.
            finished: called with the key of each job that is done.

        Raises:
            ToolkitError: what a job raised, as the first one.
            StageError: a process was killed, or a job failed by a bug (with its traceback).
        """
        waiting = iter(jobs.items())
        for member in self._members:
            self._give(member, waiting)
        while busy := [m for m in self._members if m.key is not None]:
            ready = set(wait([m.pipe for m in busy]))
            for member in busy:
                if member.pipe not in ready:
                    continue
                what, value = self._receive(member)
                assert member.key is not None
                if what == "report":
                    report(member.key, *value)
                elif what == "error":
                    raise value
                else:
                    finished(member.key)
                    self._give(member, waiting)

    def _start(self) -> _Member:
        ours, theirs = Pipe()
        threads = str(self._threads)
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": threads,
            "RAYON_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": "true" if self._threads > 1 else "false",
            "TOOLKIT_CREW_OF": str(os.getpid()),
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "toolkit.data.crew", str(theirs.fileno()), self._module],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env=environment,
        )
        theirs.close()
        return _Member(process, ours)

    def _give(self, member: _Member, waiting: Any) -> None:
        member.key, job = next(waiting, (None, None))
        if member.key is None:
            return
        try:
            member.pipe.send(job)
        except (BrokenPipeError, ConnectionResetError):
            raise self._lost(member) from None

    def _receive(self, member: _Member) -> tuple[str, Any]:
        try:
            found: tuple[str, Any] = member.pipe.recv()
        except (EOFError, ConnectionResetError):
            raise self._lost(member) from None
        return found

    def _lost(self, member: _Member) -> StageError:
        code = member.process.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        hint = "run the same command again: what is done stays done"
        if code == -signal.SIGKILL:
            hint = "SIGKILL is often the kernel's, out of memory (see dmesg); " + hint
        return StageError(f"the worker process of task {member.key} {how}", hint=hint)

    def _dismiss(self) -> None:
        for member in self._members:
            member.process.kill()
        for member in self._members:
            member.process.wait()
            member.pipe.close()


def serve(pipe: Connection) -> None:
    """Do jobs that come through the pipe, until it closes."""
    while True:
        try:
            job: Job = pipe.recv()
        except EOFError:
            return
        try:
            job(_throttled(pipe))
        except Exception as error:  # noqa: BLE001 - handed to the parent, whole
            pipe.send(("error", _portable(error)))
        else:
            pipe.send(("done", None))


def _throttled(pipe: Connection) -> Report:
    last = 0.0

    def report(size: int, counts: dict[str, int]) -> None:
        nonlocal last
        moment = time.monotonic()
        if moment - last >= REPORT_INTERVAL:
            last = moment
            pipe.send(("report", (size, counts)))

    return report


def _portable(error: Exception) -> Exception:
    """An error that survives the pipe; a bug's traceback becomes its text."""
    if isinstance(error, (ToolkitError, OSError)):
        try:
            copy: Exception = pickle.loads(pickle.dumps(error))
        except Exception:  # noqa: BLE001 - pickling runs the class's own code
            return StageError(str(error))
        return copy
    return StageError("".join(traceback.format_exception(error)))


def main(arguments: list[str]) -> None:
    """Serve the pipe whose descriptor is given; ends with the parent, whatever happens to it."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(os.environ["TOOLKIT_CREW_OF"]):
        return
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # the parent decides
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s",
                        datefmt="%H:%M:%S", stream=sys.stdout)  # fmt: skip
    with suppress(ImportError):  # a job that needs it will say so
        importlib.import_module(arguments[1])
    serve(Connection(int(arguments[0])))


if __name__ == "__main__":
    main(sys.argv[1:])
