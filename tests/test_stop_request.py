"""Stop signals: where they end a process, what holds them, and what hears them afterwards."""

import signal
import subprocess
import sys
from pathlib import Path

IN_AN_IMPORT = """
import os, signal, sys
from toolkit.context import StopRequest
stop = StopRequest()
stop.install()
try:
    with stop.heeded():
        exec("os.kill(os.getpid(), signal.SIGUSR1)\\nfor _ in range(100): pass")
except KeyboardInterrupt:
    sys.exit(85)
"""
HELD = """
import multiprocessing, os, signal, sys
from toolkit.context import StopRequest, signals_held
if __name__ == "__main__":
    stop = StopRequest()
    stop.install()
    with stop.deferred():
        with signals_held():
            manager = multiprocessing.get_context("spawn").Manager()
            queue = manager.Queue()
            os.kill(os.getpid(), signal.SIGUSR1)
            print("held", stop.requested)
        print("heard", stop.requested)
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            os.kill(manager._process.pid, number)
        queue.put("alive")
        print(queue.get())
"""


def run(folder: Path, program: str) -> subprocess.CompletedProcess[str]:
    (folder / "program.py").write_text(program)
    command = [sys.executable, "-m", "program"]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, cwd=folder
    )


def test_a_stop_in_the_middle_of_an_import_ends_with_the_process_s_own_code(tmp_path: Path) -> None:
    done = run(tmp_path, IN_AN_IMPORT)
    assert done.returncode == 85, f"{done.returncode} (-{signal.SIGINT:d}: by a signal)"


def test_processes_started_while_signals_are_held_outlive_them(tmp_path: Path) -> None:
    done = run(tmp_path, HELD)
    assert done.stdout.split() == ["held", "False", "heard", "True", "alive"], done.stderr
