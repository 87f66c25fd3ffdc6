"""Locks, states and fingerprints."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from toolkit.artifacts import MANIFEST
from toolkit.errors import BusyError, ToolkitError
from toolkit.pipeline.state import (
    StageState,
    is_locked,
    locked,
    read_stage_file,
    read_state,
    write_state,
)

HOLD = """
import sys, time
from pathlib import Path
from toolkit.pipeline.state import locked
with locked(Path(sys.argv[1]), "run"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_and_told_who_holds_the_lock(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert is_locked(tmp_path)
        with pytest.raises(BusyError, match=f"pid {holder.pid} on "), locked(tmp_path, "run"):
            pass
        threading.Timer(1.5, holder.kill).start()
        with locked(tmp_path, "run", patience=60):  # longer than a moment: it is waited for
            assert holder.wait() < 0
    assert not is_locked(tmp_path)
    with locked(tmp_path, "run"):
        assert is_locked(tmp_path)


def test_a_state_that_says_running_without_a_lock_is_a_dead_worker(tmp_path: Path) -> None:
    write_state(tmp_path, StageState(status="running"))
    state = read_state(tmp_path)
    assert state.status == "failed"
    assert state.error is not None
    assert "died without a word" in state.error["message"]
    with locked(tmp_path, "stage"):
        assert read_state(tmp_path).status == "running"


def test_a_finished_artifact_makes_a_stage_complete_whatever_the_state_says(tmp_path: Path) -> None:
    write_state(tmp_path, StageState(status="running"))
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / MANIFEST).write_text("{}")
    assert read_state(tmp_path).status == "complete"


def test_damaged_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(ToolkitError, match=r"state\.json"):
        read_state(tmp_path)
    (tmp_path / "stage.yaml").write_text("a: [")
    with pytest.raises(ToolkitError, match=r"stage\.yaml"):
        read_stage_file(tmp_path)


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ToolkitError, match="can't write"), locked(tmp_path, "run"):
        pass
