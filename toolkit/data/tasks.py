"""Independent tasks of a stage: done once each, by any number of ranks and processes, at any time.

A task is a function of its payload that writes files. They are built in a folder under another
name, flushed to disk, and appear by one rename as ``work/PHASE/KEY/``, with a sidecar
(``task.json``) that has their sizes and checksums. Rank r of n takes every n-th task. A rerun
does only what is not there, so it doesn't matter when, where or how often work is killed.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import shutil
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from toolkit.artifacts import sync, write_json
from toolkit.context import StageContext
from toolkit.data.crew import Crew, Report, resolve
from toolkit.errors import StageError
from toolkit.stage import Resources

SIDECAR = "task.json"
BLOCK = 1 << 22
NAMED = 5
"""Missing tasks that an error names."""


@dataclass(frozen=True)
class Task:
    """A piece of work that needs no other piece of its phase."""

    key: str
    """Names its folder, such as ``00017``; unique in its phase, and the same in every rerun."""
    payload: Any
    """What the function gets: picklable, of plain values, so that its ``repr`` tells it apart."""
    size: int = 0
    """Bytes of input, for the progress line."""


@dataclass(frozen=True)
class TaskResult:
    """A finished task."""

    key: str
    folder: Path
    info: dict[str, Any]
    """What the function returned."""
    checksums: dict[str, str] = field(default_factory=dict)
    """xxh3-64 of each file, in hexadecimal."""

    def path(self, name: str) -> Path:
        """One of its files."""
        return self.folder / name

    @property
    def files(self) -> dict[str, Path]:
        """All of its files, by name."""
        return {name: self.folder / name for name in self.checksums}


class TaskOutput:
    """Where a task's function puts its files, and says how far it is."""

    def __init__(self, folder: Path, report: Report) -> None:
        self.folder = folder
        """A folder of its own; every file in it becomes a file of the task."""
        self._report = report

    def path(self, name: str) -> Path:
        """Where to write the file ``name``."""
        return self.folder / name

    def progress(self, size: int, **counts: int) -> None:
        """Say how many bytes of input are done, and counts such as ``tokens``: of this task."""
        self._report(size, counts)


Function = Callable[[Any, TaskOutput], dict[str, Any]]


@dataclass(frozen=True)
class Job:
    """A task as it is handed to a process: all that it takes to do it."""

    function: str
    task: Task
    folder: Path
    """The phase's folder."""
    fingerprint: str

    def __call__(self, report: Report) -> None:
        """Do the task, and make its folder appear when it is whole.

        Raises:
            Exception: the function's own; nothing of the task is left then.
        """
        building = self.folder / f".{self.task.key}.{socket.gethostname()}.{os.getpid()}"
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        try:
            info = resolve(self.function)(self.task.payload, TaskOutput(building, report))
            self._seal(building, info)
            self._appear(building)
        finally:
            shutil.rmtree(building, ignore_errors=True)

    def _seal(self, building: Path, info: dict[str, Any]) -> None:
        files = {}
        for path in sorted(building.iterdir()):
            sync(path)
            files[path.name] = {"size": path.stat().st_size, "xxh3": checksum(path)}
        record = {"fingerprint": self.fingerprint, "files": files, "info": info}
        write_json(building / SIDECAR, record)
        sync(building)

    def _appear(self, building: Path) -> None:
        """Rename; where another process was faster its folder, of the same content, stays."""
        target = self.folder / self.task.key
        if target.exists() and read_result(target, self.fingerprint) is None:
            shutil.rmtree(target)
        try:
            building.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        sync(self.folder)


def run_tasks(
    phase: str,
    function: str,
    tasks: Sequence[Task],
    context: StageContext,
    *,
    workers: int,
    crew: Crew | None = None,
) -> None:
    """Do this rank's share of the tasks that are not done yet.

    Args:
        phase: names the folder under ``context.work``.
        function: ``"module:name"``, called as ``function(payload, output)``; what it returns
            (plain JSON values) is kept as the result's ``info``.
        tasks: all of the phase's, in the same order on every rank.
        context: whose share is ``tasks[rank::world_size]``, and whose progress is told.
        workers: processes; with one, or one task to do, this process does the work.
        crew: from ``start_crew``, where the processes could be started before the tasks were known.

    Raises:
        ToolkitError: what a task raised; the others that were in hand are dropped.
        StageError: a worker process was killed.
    """
    share = tasks[context.rank :: context.world_size]
    folder = context.work / phase
    folder.mkdir(parents=True, exist_ok=True)
    prints = {task.key: _fingerprint(context, phase, task) for task in share}
    todo = [task for task in share if read_result(folder / task.key, prints[task.key]) is None]
    if not todo:
        return
    _sweep(folder, {task.key for task in todo})
    board = _Board(context, share, todo)
    jobs = {task.key: Job(function, task, folder, prints[task.key]) for task in todo}
    if crew is None and min(workers, len(jobs)) == 1:
        for key, job in jobs.items():
            job(functools.partial(board.report, key))
            board.finished(key)
        return
    with nullcontext(crew) if crew else start_crew(function, len(jobs), workers) as hands:
        hands.work(jobs, board.report, board.finished)


def start_crew(function: str, tasks: int, workers: int) -> Crew:
    """Processes for so many tasks, which load the function's module while this one goes on."""
    size = max(1, min(workers, tasks))
    return Crew(size, threads=workers // size, module=function.partition(":")[0])


def results(phase: str, tasks: Sequence[Task], context: StageContext) -> list[TaskResult]:
    """The results of all tasks of a phase, of all ranks, in the order of ``tasks``.

    Raises:
        StageError: some are missing, or were made with other settings.
    """
    folder = context.work / phase
    found = [read_result(folder / t.key, _fingerprint(context, phase, t)) for t in tasks]
    missing = [task.key for task, result in zip(tasks, found, strict=True) if result is None]
    if missing:
        named = ", ".join(missing[:NAMED]) + (", ..." if len(missing) > NAMED else "")
        raise StageError(
            f"{len(missing)} of {len(tasks)} tasks of phase {phase!r} are not done: {named}",
            where=str(folder),
            hint="run their ranks again; what is done stays done",
        )
    return [result for result in found if result is not None]


def read_result(folder: Path, fingerprint: str) -> TaskResult | None:
    """A task's result, or None where it is not there, not whole, or of other work."""
    try:
        record = json.loads((folder / SIDECAR).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if record.get("fingerprint") != fingerprint:
        return None
    for name, entry in record["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != entry["size"]:
            return None
    checksums = {name: entry["xxh3"] for name, entry in record["files"].items()}
    return TaskResult(folder.name, folder, record["info"], checksums)


def checksum(path: Path) -> str:
    """xxh3-64 of a file's bytes, in hexadecimal: some GB/s, against accidents alone."""
    digest = xxhash.xxh3_64()
    with path.open("rb", buffering=0) as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def worker_count(resources: Resources, context: StageContext) -> int:
    """Processes for this rank: ``cpus_per_task``, or its part of the cores that it may use."""
    if resources.cpus_per_task:
        return resources.cpus_per_task
    return max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cores() -> int:
    """Cores that this process may use: its affinity, and a container's quota where one is set."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = CGROUP_QUOTA.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def _fingerprint(context: StageContext, phase: str, task: Task) -> str:
    whole = repr((context.fingerprint, phase, task.key, task.payload))
    return hashlib.sha256(whole.encode()).hexdigest()


def _sweep(folder: Path, keys: set[str]) -> None:
    """Remove what a crash left of these tasks, half made or of other settings."""
    for path in folder.iterdir():
        if path.name in keys or path.name.removeprefix(".").partition(".")[0] in keys:
            shutil.rmtree(path, ignore_errors=True)


class _Board:
    """Adds up what the processes say, for the stage's progress line."""

    INTERVAL = 0.2

    def __init__(self, context: StageContext, share: Sequence[Task], todo: Sequence[Task]) -> None:
        self._context = context
        self._total = sum(task.size for task in share)
        self._before = self._total - sum(task.size for task in todo)
        self._whole = {task.key: task.size for task in todo}
        self._sizes: dict[str, int] = {}
        self._counts: dict[str, dict[str, int]] = {}
        self._started, self._shown = time.monotonic(), 0.0

    def report(self, key: str, size: int, counts: dict[str, int]) -> None:
        self._sizes[key], self._counts[key] = size, counts
        self._show()

    def finished(self, key: str) -> None:
        self._sizes[key] = self._whole[key]
        self._show()

    def _show(self) -> None:
        moment = time.monotonic()
        whole = self._before + sum(self._sizes.values())
        if moment - self._shown < self.INTERVAL and whole < self._total:
            return
        self._shown = moment
        counts: Counter[str] = Counter()
        for shown in self._counts.values():
            counts.update(shown)
        seconds = max(moment - self._started, 1e-9)
        rates = {}
        if "tokens" in counts:
            rates["tokens_per_second"] = round(counts["tokens"] / seconds)
        if not self._total:  # embedded samples and streams have no size
            self._context.progress(counts.pop("documents", 0), unit="documents", **counts, **rates)
            return
        self._context.progress(whole / 1e6, self._total / 1e6, unit="MB", **counts, **rates)
