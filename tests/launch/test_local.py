"""The local launcher: ranks with a rendezvous, first failures, signals, and no orphans."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from toolkit.errors import ExitCode
from toolkit.launch.local import Interrupt, Result, log_path, run_local, tail
from toolkit.launch.spec import LaunchSpec
from toolkit.pipeline.state import StageState, read_state, write_state


def spec(folder: Path, program: str, ranks: int = 1) -> LaunchSpec:
    return LaunchSpec("x", folder, (sys.executable, "-c", program), ntasks_per_node=ranks)


def launch(folder: Path, program: str, ranks: int = 1) -> Result:
    with Interrupt() as interrupt:
        return run_local(spec(folder, program, ranks), interrupt)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie whose parent is gone answers too, until init reaps it.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def gone(pid: int, seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while alive(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_every_rank_knows_its_place_and_logs_to_its_own_file(tmp_path: Path) -> None:
    program = (
        "import os; e = os.environ;"
        "print(e['RANK'], e['WORLD_SIZE'], e['LOCAL_RANK'], e['MASTER_ADDR'], e['MASTER_PORT'])"
    )
    assert launch(tmp_path, program, ranks=2).code == ExitCode.OK
    words = [log_path(tmp_path, rank).read_text().splitlines()[-1].split() for rank in (0, 1)]
    assert [w[:4] for w in words] == [["0", "2", "0", "127.0.0.1"], ["1", "2", "1", "127.0.0.1"]]
    assert words[0][4] == words[1][4]


def test_the_first_rank_to_fail_ends_the_others_and_is_named(tmp_path: Path) -> None:
    program = (
        "import os, sys, time\n"
        "if os.environ['RANK'] == '1': sys.exit('rank one gives up')\n"
        "time.sleep(60)"
    )
    started = time.monotonic()
    result = launch(tmp_path, program, ranks=2)
    assert time.monotonic() - started < 30
    assert result.code == ExitCode.STAGE_FAILED
    assert result.log == log_path(tmp_path, 1)
    assert "rank one gives up" in tail(result.log)[-1]


def test_a_rank_that_ignores_sigterm_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolkit.launch.local.GRACE", 0.5)
    program = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "if os.environ['RANK'] == '0': time.sleep(0.3); sys.exit(3)\n"
        "time.sleep(60)"
    )
    started = time.monotonic()
    assert launch(tmp_path, program, ranks=2).code == ExitCode.STAGE_FAILED
    assert time.monotonic() - started < 20


def test_death_by_signal_is_said_and_recorded(tmp_path: Path) -> None:
    write_state(tmp_path, StageState(status="running", attempts=[{"status": "running"}]))
    result = launch(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert result.error is not None
    assert "SIGKILL" in result.error["message"]
    state = read_state(tmp_path)
    assert state.status == "failed"
    assert state.error is not None
    assert "SIGKILL" in state.error["message"]


STUBBORN = """
import os, signal, sys, time
def save(*_):
    print("saving", flush=True); time.sleep(0.3); sys.exit(85)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
time.sleep(60)
"""


def interrupt_soon(path: Path, word: str, times: int = 1) -> threading.Thread:
    def act() -> None:
        for _ in range(200):
            if path.exists() and word in path.read_text():
                break
            time.sleep(0.05)
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)

    thread = threading.Thread(target=act)
    thread.start()
    return thread


def test_ctrl_c_lets_the_ranks_save(tmp_path: Path) -> None:
    thread = interrupt_soon(log_path(tmp_path, 0), "ready")
    result = launch(tmp_path, STUBBORN)
    thread.join()
    assert result.code == ExitCode.SAVED_AND_STOPPED
    assert "saving" in log_path(tmp_path, 0).read_text()


def test_two_signals_at_once_are_one_wish(tmp_path: Path) -> None:
    thread = interrupt_soon(log_path(tmp_path, 0), "ready", times=2)
    assert launch(tmp_path, STUBBORN.replace("0.3", "1.0")).code == ExitCode.SAVED_AND_STOPPED
    thread.join()


def test_a_second_ctrl_c_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.launch.local.ONE_WISH", 0.1)
    write_state(tmp_path, StageState(status="running", attempts=[{"status": "running"}]))
    program = STUBBORN.replace("time.sleep(0.3)", "time.sleep(60)")
    thread = interrupt_soon(log_path(tmp_path, 0), "ready", times=2)
    started = time.monotonic()
    result = launch(tmp_path, program)
    thread.join()
    assert time.monotonic() - started < 20
    assert result.code == ExitCode.INTERRUPTED
    assert read_state(tmp_path).status == "interrupted"


def test_a_stop_before_the_worker_listens_is_an_interrupt(tmp_path: Path) -> None:
    write_state(tmp_path, StageState(status="running", attempts=[{"status": "running"}]))
    thread = interrupt_soon(log_path(tmp_path, 0), "ready")
    result = launch(tmp_path, "import time; print('ready', flush=True); time.sleep(60)")
    thread.join()
    assert result.code == ExitCode.INTERRUPTED
    assert read_state(tmp_path).status == "interrupted"


def test_a_rank_that_hangs_after_a_stop_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolkit.launch.local.STOP_GRACE", 0.5)
    program = (
        "import os, signal, sys, time\n"
        "one = os.environ['RANK'] == '1'\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN if one else lambda *_: sys.exit(130))\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    thread = interrupt_soon(log_path(tmp_path, 1), "ready")
    started = time.monotonic()
    assert launch(tmp_path, program, ranks=2).code == ExitCode.INTERRUPTED
    thread.join()
    assert time.monotonic() - started < 20


def test_the_last_attempts_reasons_are_forgotten(tmp_path: Path) -> None:
    (tmp_path / "errors").mkdir()
    (tmp_path / "errors" / "rank-0.json").write_text('{"message": "an old story"}')
    result = launch(tmp_path, "raise SystemExit(1)")
    assert result.error is not None
    assert "old story" not in result.error["message"]


LAUNCHER = """
import sys
from pathlib import Path
from toolkit.launch.local import Interrupt, run_local
from toolkit.launch.spec import LaunchSpec
folder = Path(sys.argv[1])
program = (
    "import time; from toolkit.worker import _die_with_parent; _die_with_parent();"
    "import os; open(os.environ['OUT'], 'w').write(str(os.getpid())); time.sleep(60)"
)
spec = LaunchSpec("x", folder, (sys.executable, "-c", program), {"OUT": str(folder / "pid")})
with Interrupt() as interrupt:
    run_local(spec, interrupt)
"""


def test_no_worker_outlives_a_launcher_that_was_killed(tmp_path: Path) -> None:
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, str(tmp_path)])
    pid_file = tmp_path / "pid"
    deadline = time.monotonic() + 20
    while not (pid_file.exists() and pid_file.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    pid = int(pid_file.read_text())
    launcher.kill()
    launcher.wait()
    assert gone(pid)
