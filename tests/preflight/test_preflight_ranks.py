"""Whole preflights over gloo: processes that take themselves for ranks on several nodes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from toolkit.errors import ExitCode
from toolkit.launch.local import free_port
from toolkit.pipeline.state import read_state

pytestmark = pytest.mark.slow
PLAIN = ("-m", "toolkit.preflight")
SLOW_LINK = (
    "-c",
    """
import sys, time
from toolkit.preflight import reduce
from toolkit.preflight.__main__ import main
measure = reduce.AllReduce._measure
class Slow:
    def __init__(self, group): self.group = group
    def allreduce(self, tensors):
        time.sleep(0.7)
        return self.group.allreduce(tensors)
reduce.AllReduce._measure = lambda self, group, ranks: measure(self, Slow(group), ranks)
sys.exit(main(sys.argv[1:]))
""",
)
"""A rank whose all-reduces take 0.7 s more: 8 MiB at 0.016 GB/s."""
HANGING = (
    "-c",
    """
import sys, time
from toolkit.preflight import rank
from toolkit.preflight.__main__ import main
rank.GRACE = 2
rank.look_at_node = lambda *_: time.sleep(3600)
sys.exit(main(sys.argv[1:]))
""",
)
"""A rank that never comes to an end while it looks at its node."""
BROKEN = ("-c", "raise SystemExit(77)")
STOPPED = (
    "-c",
    """
import os, signal, sys
from toolkit.preflight import rank
from toolkit.preflight.__main__ import main
def stop(chair):
    chair.meeting.hear("report/1", 60)
    os.kill(os.getpid(), signal.SIGUSR1)
rank._lead = stop
sys.exit(main(sys.argv[1:]))
""",
)
"""Rank 0, told to stop when it has met the others."""
STOPPED_LATER = (
    "-c",
    """
import os, signal, sys, threading
from toolkit.preflight import rank
from toolkit.preflight.__main__ import main
follow = rank._follow
def told(*arguments):
    try:
        return follow(*arguments)
    finally:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGUSR1)).start()
rank._follow = told
sys.exit(main(sys.argv[1:]))
""",
)
"""A rank that hears of it when rank 0 has gone."""


def start(
    stage: Path, rank: int, size: int, port: int, settings: dict[str, Any], how: tuple[str, ...]
) -> subprocess.Popen[str]:
    place = {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": "0",
        "SLURMD_NODENAME": f"n{rank}",
        "SLURM_JOB_ID": "7",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, *how, str(stage), json.dumps(settings)]
    return subprocess.Popen(
        command, env=os.environ | place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run_ranks(
    stage: Path, settings: dict[str, Any], *ranks: tuple[str, ...]
) -> tuple[list[int], list[str]]:
    """Exit codes and logs."""
    folder = stage / "preflight" / "7-0"
    folder.mkdir(parents=True)
    (folder / "nodes").write_text("".join(f"n{i}\n" for i in range(len(ranks))))
    port = free_port()
    running = [start(stage, i, len(ranks), port, settings, how) for i, how in enumerate(ranks)]
    said = [process.communicate(timeout=120)[0] for process in running]
    return [process.returncode for process in running], said


def preflight(
    stage: Path, settings: dict[str, Any], *ranks: tuple[str, ...]
) -> tuple[list[int], str, dict[str, Any]]:
    """Exit codes, rank 0's log, and the summary."""
    codes, said = run_ranks(stage, settings, *ranks)
    summary = json.loads((stage / "preflight" / "7-0" / "summary.json").read_text())
    return codes, said[0], summary


def test_fit_nodes_are_measured_and_pass(tmp_path: Path) -> None:
    codes, log, summary = preflight(tmp_path, {}, PLAIN, PLAIN)
    assert codes == [0, 0] and "fit: 2 ranks on 2 nodes" in log
    assert summary["fit"] and set(summary["busbw_across"]) == {"n0", "n1"}
    assert all(speed > 0 for speed in summary["busbw_across"].values())
    assert read_state(tmp_path).unfit_nodes == []


def test_a_slow_link_and_a_floor_name_the_node(tmp_path: Path) -> None:
    codes, log, _ = preflight(tmp_path, {"min_busbw_across": 0.02}, PLAIN, SLOW_LINK, PLAIN)
    assert codes == [ExitCode.NODE_UNFIT] * 3
    assert "unfit: n1: all-reduce with every other node" in log
    (named,) = read_state(tmp_path).unfit_nodes
    assert (named["node"], named["job"]) == ("n1", "7")
    unfit = (tmp_path / "preflight" / "7-0" / "unfit").read_text()
    assert unfit.startswith("n1\tall-reduce with every other node: ") and unfit.count("\n") == 1


def test_nodes_that_do_not_come_or_hang_are_named_in_time(tmp_path: Path) -> None:
    codes, log, summary = preflight(tmp_path, {"timeout_seconds": 20}, PLAIN, BROKEN, HANGING)
    assert codes == [ExitCode.NODE_UNFIT, 77, 1]
    assert list(summary["unfit"]) == ["n1", "n2"] and "n1: start: no rank of it has begun" in log
    assert "n2: look: rank 2 began, and came to no end" in log


def test_a_floor_that_all_nodes_miss_is_the_user_s_to_mend(tmp_path: Path) -> None:
    codes, log, summary = preflight(tmp_path, {"min_free_disk": "9000T"}, PLAIN, PLAIN)
    assert codes == [ExitCode.USER_ERROR] * 2
    assert "no node's own fault: disk, on every node" in log and summary["unfit"] == {}


def test_ranks_that_are_told_to_stop_blame_no_node(tmp_path: Path) -> None:
    codes, said = run_ranks(tmp_path, {}, STOPPED, STOPPED_LATER)
    assert codes == [ExitCode.SAVED_AND_STOPPED] * 2, said
    left = {path.name for path in (tmp_path / "preflight" / "7-0").iterdir()}
    assert left == {"nodes", "rank-0.json", "rank-1.json"}
