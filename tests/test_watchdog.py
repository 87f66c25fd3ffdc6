"""The watchdog: a rank that takes no step says why, writes its stacks, and ends."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.context import WATCHDOG
from toolkit.worker import _watchdog

PROGRAM = """
import re, sys, time
from pathlib import Path
from toolkit.context import StageContext
from toolkit.watchdog import Watchdog
told = Path(sys.argv[1], "told")
watchdog = Watchdog({seconds}, told.write_text, linger=0.3) if {seconds} else None
context = StageContext("base", "pretrain", told.parent, "f", watchdog=watchdog)

def waits_for_the_others():
    time.sleep(30)

def holds_the_lock():
    re.match("(a+)+$", "a" * 50 + "b")

for _ in range(4):
    context.alive()
    time.sleep(0.2)
{then}
"""


def run(folder: Path, seconds: float | None, then: str) -> subprocess.CompletedProcess[str]:
    program = PROGRAM.format(seconds=seconds, then=then)
    command = [sys.executable, "-c", program, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=25, check=False)


def test_a_rank_that_hangs_says_why_and_writes_its_stacks_and_ends(tmp_path: Path) -> None:
    done = run(tmp_path, 0.6, "waits_for_the_others()")
    assert done.returncode == 1
    assert (tmp_path / "told").read_text() == "no step within 0.6 s"
    assert "no step within 0.6 s" in done.stderr and "waits_for_the_others" in done.stderr


def test_a_rank_that_cannot_run_python_ends_too(tmp_path: Path) -> None:
    done = run(tmp_path, 0.6, "holds_the_lock()")
    assert done.returncode == 1
    assert "Timeout" in done.stderr and "holds_the_lock" in done.stderr
    assert not (tmp_path / "told").exists()


def test_steps_and_their_absence_without_a_watchdog_are_let_be(tmp_path: Path) -> None:
    assert run(tmp_path, 5.0, "").returncode == 0
    last = "context.all_steps_taken(); context.alive(); time.sleep(1)"
    assert run(tmp_path, 0.6, last).returncode == 0
    assert run(tmp_path, None, "time.sleep(0.5)").returncode == 0
    assert not (tmp_path / "told").exists()


def test_a_worker_s_watchdog_leaves_its_reason_with_the_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(WATCHDOG, raising=False)
    assert _watchdog(tmp_path, 3) is None
    monkeypatch.setenv(WATCHDOG, "30")
    watchdog = _watchdog(tmp_path, 3)
    assert watchdog is not None and watchdog.seconds == 30
    watchdog.report("no step within 30 s")
    record = json.loads((tmp_path / "errors" / "rank-3.json").read_text())
    assert record["message"] == "no step within 30 s" and "log of rank 3" in record["hint"]
    assert "watchdog_seconds" in record["hint"]
