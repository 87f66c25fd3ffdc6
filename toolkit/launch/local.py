"""Running a stage on this machine: one process per rank, watched, and never left behind."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from toolkit.artifacts import MANIFEST, now
from toolkit.attempt import ERRORS
from toolkit.errors import STOPPED, ExitCode, StageError
from toolkit.launch.spec import LaunchSpec
from toolkit.pipeline.state import Status, read_state, write_state
from toolkit.worker import DIES_WITH_PARENT

logger = logging.getLogger(__name__)
POLL = 0.1
"""Seconds between looks at the ranks."""
GRACE = 10.0
"""Seconds that the other ranks get after one has failed: they may hang in a collective."""
STOP_GRACE = 60.0
"""Seconds that the other ranks get after a stop signal once one of them has ended."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@dataclass(frozen=True)
class Result:
    """How a stage's processes ended."""

    code: ExitCode
    error: dict[str, Any] | None = None
    """message, where, hint; of the rank that failed first."""
    log: Path | None = None
    """The log of that rank."""


ONE_WISH = 2.0
"""Seconds within which stop signals count as one: ``timeout``, ``make`` and a terminal often send
the same wish twice, to a process and to its group."""


class Interrupt:
    """Counts the stop signals that this process got while it watches workers."""

    def __init__(self) -> None:
        self.count = 0
        self._last = float("-inf")
        self._stack = ExitStack()

    def __enter__(self) -> Interrupt:
        for number in STOP_SIGNALS:
            previous = signal.signal(number, self._handle)
            self._stack.callback(signal.signal, number, previous)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        moment = time.monotonic()
        if moment - self._last >= ONE_WISH:
            self._last = moment
            self.count += 1


def run_local(
    spec: LaunchSpec,
    interrupt: Interrupt,
    watch: Callable[[], None] = lambda: None,
) -> Result:
    """Start every rank of a stage, wait for all, and say how it went.

    The first stop signal is passed on as SIGTERM, and the ranks may save; a second one, some
    seconds later, kills them.
    When a rank fails, the others are ended.

    Args:
        spec: the job; all its nodes are this machine.
        interrupt: the stop signals seen so far.
        watch: called ten times a second while the ranks run.
    """
    logs = spec.folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(spec.folder / ERRORS, ignore_errors=True)  # the last attempt's reasons
    port = free_port()
    ranks = [_start(spec, rank, port, logs) for rank in range(spec.world_size)]
    try:
        failed = _wait(ranks, interrupt, watch)
    finally:
        for rank in ranks:
            _kill(rank)
    if failed is not None and (spec.folder / "artifact" / MANIFEST).is_file():
        return Result(ExitCode.OK)  # it was done, and ended by a signal on its way out
    if failed is not None and interrupt.count:
        forced = _forced(interrupt.count, ranks[failed].returncode)
        if forced:
            return _interrupted(spec.folder, forced)
    return _result(spec, ranks, failed)


def free_port() -> int:
    """A TCP port on the loopback address that nobody listens on now.

    It lies below the ports that the kernel hands out by itself (from 32768 on Linux): the ranks
    meet there only when their imports are done, and until then no connection must take it.
    """
    for port in random.sample(range(20_000, 32_768), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise StageError("no free TCP port between 20000 and 32767 on 127.0.0.1")


def log_path(folder: Path, rank: int) -> Path:
    """Where a rank of a stage writes what it has to say."""
    return folder / "logs" / f"rank-{rank}.log"


def _start(spec: LaunchSpec, rank: int, port: int, logs: Path) -> subprocess.Popen[bytes]:
    threads = spec.cpus_per_task or max(1, (os.cpu_count() or 1) // spec.world_size)
    environment = {
        "OMP_NUM_THREADS": str(threads),
        # Waiting threads sleep: where cores are shared, spinning ones make small steps 5x slower.
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false",
        "RAYON_NUM_THREADS": str(threads),
        **os.environ,
        **spec.environment,
        "PYTHONUNBUFFERED": "1",
        "RANK": str(rank),
        "WORLD_SIZE": str(spec.world_size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(spec.world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        DIES_WITH_PARENT: str(os.getpid()),
    }
    with log_path(logs.parent, rank).open("ab") as log:
        log.write(f"--- {now()} rank {rank} of {spec.world_size}\n".encode())
        log.flush()
        return subprocess.Popen(
            spec.argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on
        )


def _wait(
    ranks: Sequence[subprocess.Popen[bytes]],
    interrupt: Interrupt,
    watch: Callable[[], None],
) -> int | None:
    """Wait for every rank; returns the rank that failed first, if one did."""
    seen = 0
    failed: int | None = None
    deadline = float("inf")
    while any(rank.poll() is None for rank in ranks):
        watch()
        if interrupt.count > seen:
            seen = interrupt.count
            _signal_all(ranks, signal.SIGTERM if seen == 1 else signal.SIGKILL)
        if failed is None:
            failed = _failed(ranks)
            if failed is not None and not seen:
                _signal_all(ranks, signal.SIGTERM)
                deadline = time.monotonic() + GRACE
        if seen and deadline == float("inf") and any(rank.poll() is not None for rank in ranks):
            deadline = time.monotonic() + STOP_GRACE
        if time.monotonic() > deadline:
            _signal_all(ranks, signal.SIGKILL)
        time.sleep(POLL)
    watch()
    return failed if failed is not None else _failed(ranks)


def _failed(ranks: Sequence[subprocess.Popen[bytes]]) -> int | None:
    codes = [rank.poll() for rank in ranks]
    return next((i for i, c in enumerate(codes) if c not in (None, 0, *STOPPED)), None)


def _signal_all(ranks: Sequence[subprocess.Popen[bytes]], number: signal.Signals) -> None:
    for rank in ranks:
        if rank.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(rank.pid, number) if number == signal.SIGKILL else rank.send_signal(
                    number
                )


def _kill(rank: subprocess.Popen[bytes]) -> None:
    """End a rank and whatever it started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(rank.pid, signal.SIGKILL)
    rank.wait()


def _forced(wishes: int, code: int) -> str | None:
    """Why a rank ended by a signal's default action after a wish to stop; None: it failed."""
    if code in (-signal.SIGTERM, -signal.SIGINT):
        return "stopped before it had begun to work"
    if code == -signal.SIGKILL:
        how = "by a second interrupt" if wishes > 1 else f"{STOP_GRACE:.0f} s after the first rank"
        return f"killed {how}, without saving"
    return None


def _interrupted(folder: Path, message: str) -> Result:
    error = {"message": message, "where": None, "hint": None}
    _record(folder, "interrupted", error)
    return Result(ExitCode.INTERRUPTED, error, log_path(folder, 0))


def _result(
    spec: LaunchSpec, ranks: Sequence[subprocess.Popen[bytes]], failed: int | None
) -> Result:
    if failed is None:
        codes = [ExitCode(rank.returncode) for rank in ranks]
        return Result(max(codes))
    log = log_path(spec.folder, failed)
    code = ranks[failed].returncode
    error = _read_error(spec.folder, failed) or _silent_end(code)
    if code == ExitCode.USER_ERROR:  # refused before the stage began: nothing to record
        return Result(ExitCode.USER_ERROR, error, log)
    _record(spec.folder, "failed", error)
    return Result(ExitCode.STAGE_FAILED, error, log)


def _read_error(folder: Path, rank: int) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(
            (folder / ERRORS / f"rank-{rank}.json").read_text(encoding="utf-8")
        )
    except (OSError, ValueError):
        return None
    return found


def _silent_end(code: int) -> dict[str, Any]:
    if code >= 0:
        return {"message": f"the worker ended with exit code {code}", "where": None, "hint": None}
    name = signal.Signals(-code).name
    hint = "run the same command again: it goes on from what was saved"
    if code == -signal.SIGKILL:
        hint = "SIGKILL is often the kernel's, out of memory (see dmesg); " + hint
    return {"message": f"the worker was killed by {name}", "where": None, "hint": hint}


def _record(folder: Path, status: Status, error: dict[str, Any]) -> None:
    """Write into ``state.json`` what rank 0 could not: it was killed, or another rank failed."""
    state = read_state(folder)
    if state.status == "complete":
        return
    state.status, state.error = status, {k: error.get(k) for k in ("message", "where", "hint")}
    for attempt in state.attempts[-1:]:
        attempt |= {"status": status, "ended": now()}
    try:
        write_state(folder, state)
    except OSError as problem:  # a full disk, perhaps: the error itself is shown all the same
        logger.warning("can't write the state of %s: %s", folder, problem.strerror)


def tail(path: Path, lines: int = 15) -> list[str]:
    """The last lines of a log, without its progress noise."""
    try:
        with path.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - 64 * 1024))
            text = stream.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-lines:]
