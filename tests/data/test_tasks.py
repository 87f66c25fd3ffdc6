"""Tasks: done once each by any number of ranks and processes, whatever kills them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from toolkit.context import StageContext
from toolkit.data import tasks as tasks_module
from toolkit.data.tasks import Task, results, run_tasks, usable_cores
from toolkit.errors import DataError, StageError

HERE = Path(__file__).resolve().parent
TASKS = [Task(f"{n:05d}", n, size=1) for n in range(7)]


@pytest.fixture
def context(
    stage_context: Callable[..., StageContext], monkeypatch: pytest.MonkeyPatch
) -> StageContext:
    """A context whose worker processes can import ``task_functions``."""
    monkeypatch.setenv("PYTHONPATH", f"{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    return stage_context("numbers", "tokenize")


def work(context: StageContext, function: str = "square", workers: int = 1) -> None:
    run_tasks("work", f"task_functions:{function}", TASKS, context, workers=workers)


def values(context: StageContext) -> list[int]:
    found = results("work", TASKS, context)
    assert [int(r.path("square.txt").read_text()) for r in found] == [
        r.info["value"] for r in found
    ]
    return [result.info["value"] for result in found]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_results_come_in_the_order_of_the_tasks(context: StageContext, workers: int) -> None:
    work(context, workers=workers)
    assert values(context) == [0, 1, 4, 9, 16, 25, 36]
    pids = {result.info["pid"] for result in results("work", TASKS, context)}
    assert (pids == {os.getpid()}) == (workers == 1)
    progress = json.loads((context.folder / "progress.json").read_text())
    assert progress["done"] == progress["total"]


@pytest.mark.parametrize("ranks", [2, 3, 7, 9])
def test_ranks_share_the_tasks_and_need_not_meet(context: StageContext, ranks: int) -> None:
    for rank in reversed(range(ranks)):
        one = replace(context, rank=rank, world_size=ranks)
        with pytest.raises(StageError, match=r"tasks of phase 'work' are not done: 0000"):
            results("work", TASKS, one)
        work(one)
    assert values(context) == [n**2 for n in range(7)]


def test_what_is_done_stays_done(context: StageContext) -> None:
    work(context)
    before = (context.work / "work" / "00002" / "task.json").stat().st_mtime_ns
    shutil.rmtree(context.work / "work" / "00004")
    (context.work / "work" / "00005" / "square.txt").write_text("2")  # cut off
    (context.work / "work" / ".00004.host.1").mkdir()
    work(context)
    assert values(context) == [n**2 for n in range(7)]
    assert (context.work / "work" / "00002" / "task.json").stat().st_mtime_ns == before
    assert not list((context.work / "work").glob(".*"))


def test_other_settings_or_payloads_are_other_work(context: StageContext) -> None:
    work(context)
    other = replace(context, fingerprint="another")
    with pytest.raises(StageError, match="7 of 7 tasks"):
        results("work", TASKS, other)
    with pytest.raises(StageError, match="1 of 7 tasks of phase 'work' are not done: 00006"):
        results("work", [*TASKS[:6], Task("00006", 99)], context)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_a_task_is_the_stages(context: StageContext, workers: int) -> None:
    with pytest.raises(DataError, match="numbers:3: three is refused\n  leave it out"):
        work(context, "refuse_three", workers)
    assert not (context.work / "work" / "00003").exists()
    assert not list((context.work / "work").glob(".00003*"))


def test_a_bug_in_a_process_keeps_its_traceback(context: StageContext) -> None:
    with pytest.raises(StageError, match=r"(?s)task_functions\.py.*ZeroDivisionError"):
        work(context, "break_down", workers=2)


def test_a_killed_process_is_named_and_the_rest_is_done_later(context: StageContext) -> None:
    with pytest.raises(StageError, match=r"process of task 00003 was killed by SIGKILL\n.*memory"):
        work(context, "die_at_three", workers=2)
    work(context, workers=2)
    assert values(context) == [n**2 for n in range(7)]


def test_processes_end_when_their_parent_is_killed(context: StageContext) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from toolkit.context import StageContext\n"
        "from toolkit.data.tasks import Task, run_tasks\n"
        "c = StageContext('a', 'b', Path(sys.argv[1]), 'f')\n"
        "run_tasks('work', 'task_functions:slow', [Task('0', 0), Task('1', 1)], c, workers=2)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(context.folder)])
    children = _wait_for(lambda: len(_children(parent.pid)) == 2 and _children(parent.pid))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert _wait_for(lambda: not any(Path(f"/proc/{c}").exists() for c in children))


def test_a_signal_ends_the_processes_too(context: StageContext) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest-xdist ignores it
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            work(context, "slow", workers=2)
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)
    assert not _children(os.getpid())


def test_two_ranks_that_do_the_same_task_agree(context: StageContext) -> None:
    work(context)
    job = tasks_module.Job(
        "task_functions:square",
        TASKS[1],
        context.work / "work",
        tasks_module._fingerprint(context, "work", TASKS[1]),
    )
    job(lambda size, counts: None)  # as a rank that was requeued while it still ran
    assert values(context) == [n**2 for n in range(7)]


def test_a_container_s_quota_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(tasks_module, "CGROUP_QUOTA", quota)
    every = len(os.sched_getaffinity(0))
    assert usable_cores() == every
    for text, cores in [("100000 100000", 1), ("max 100000", every), ("50000 100000", 1)]:
        quota.write_text(text)
        assert usable_cores() == cores


def _children(pid: int) -> list[str]:
    tasks = Path(f"/proc/{pid}/task/{pid}/children")
    found = tasks.read_text().split() if tasks.exists() else []
    return [c for c in found if b"toolkit.data.crew" in Path(f"/proc/{c}/cmdline").read_bytes()]


def _wait_for(condition: Callable[[], object]) -> object:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    return condition()
