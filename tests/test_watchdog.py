"""The watchdog: a rank that takes no step writes its stacks and ends; one that does, goes on."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys, time
from pathlib import Path
from toolkit.context import StageContext
context = StageContext("base", "pretrain", Path(sys.argv[1]), "f", watchdog={watchdog})

def waits_for_the_others():
    time.sleep(30)

for _ in range(4):
    context.alive()
    time.sleep(0.2)
{then}
"""


def run(folder: Path, watchdog: float | None, then: str) -> subprocess.CompletedProcess[str]:
    program = PROGRAM.format(watchdog=watchdog, then=then)
    command = [sys.executable, "-c", program, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=25, check=False)


def test_a_rank_that_hangs_writes_its_stacks_and_ends(tmp_path: Path) -> None:
    done = run(tmp_path, 0.6, "waits_for_the_others()")
    assert done.returncode == 1
    assert "Timeout" in done.stderr and "waits_for_the_others" in done.stderr


def test_steps_and_their_absence_without_a_watchdog_are_let_be(tmp_path: Path) -> None:
    assert run(tmp_path, 5.0, "").returncode == 0
    assert run(tmp_path, None, "time.sleep(0.5)").returncode == 0
