"""Training that is disturbed, on a real Slurm: it comes back, and ends with the same weights."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from jobs import TRAINING, slurm, step, toolkit, until, wait, weights, worker_of

from toolkit.launch.submissions import sent_jobs

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.usefixtures("slurm")]


@pytest.mark.parametrize("launch", ["srun", "torchrun"])
def test_training_told_to_stop_goes_on_in_the_same_job_and_ends_the_same(
    folder: Path, trained: dict[str, str], launch: str
) -> None:
    with (folder / "c.yaml").open("a") as stream:
        stream.write(f"launch: {launch}\n")
    toolkit("submit", "p.yaml", "--cluster", "c.yaml")
    run = folder / "runs" / "training"
    number = sent_jobs(run)["base"]["id"]
    until(lambda: step(run) >= 15, "the fifteenth step")
    slurm("scancel", "--signal=USR1", number)  # as Slurm does ahead of a time limit
    state = run / "base" / "state.json"
    until(lambda: json.loads(state.read_text())["status"] == "interrupted", "a save", 120)
    wait(run)
    assert "Restarts=1" in slurm("scontrol", "show", "job", number)
    attempts = json.loads(state.read_text())["attempts"]
    assert [a["status"] for a in attempts] == ["interrupted", "complete"]
    assert weights(run) == trained


def test_training_cancelled_and_resubmitted_ends_the_same(
    folder: Path, trained: dict[str, str]
) -> None:
    toolkit("submit", "p.yaml", "--cluster", "c.yaml")
    run = folder / "runs" / "training"
    first = sent_jobs(run)["base"]["id"]
    until(lambda: step(run) >= 15, "the fifteenth step")
    assert "base" in toolkit("cancel", "runs/training")
    wait(run)
    assert "interrupted" in toolkit("status", "runs/training")
    os.chdir("/")  # from anywhere
    output = toolkit("resubmit", str(run))
    assert "base" in output and "corpus" not in output.partition("after")[2].split("base")[0]
    assert sent_jobs(run)["base"]["id"] != first
    wait(run)
    assert weights(run) == trained


def test_a_requeued_job_resumes_and_ends_the_same(folder: Path, trained: dict[str, str]) -> None:
    toolkit("submit", "p.yaml", "--cluster", "c.yaml", "stages.base.save_interval=10")
    run = folder / "runs" / "training"
    number = sent_jobs(run)["base"]["id"]
    until(lambda: step(run) >= 15, "the fifteenth step")
    slurm("scontrol", "requeue", number)
    wait(run)
    assert "Restarts=1" in slurm("scontrol", "show", "job", number)
    assert weights(run) == trained


@pytest.mark.parametrize("what", [signal.SIGKILL, signal.SIGSTOP])
def test_training_comes_back_after_a_rank_that_dies_or_hangs(
    folder: Path, trained: dict[str, str], what: signal.Signals
) -> None:
    with (folder / "c.yaml").open("a") as stream:
        stream.write("watchdog_seconds: 60\n")
    toolkit("submit", "p.yaml", "--cluster", "c.yaml", "stages.base.save_interval=10")
    run = folder / "runs" / "training"
    number = sent_jobs(run)["base"]["id"]
    until(lambda: step(run) >= 15, "the fifteenth step")
    os.kill(worker_of(run), what)
    wait(run)
    assert "Restarts=1" in slurm("scontrol", "show", "job", number)
    logs = "".join(path.read_text() for path in (run / "base" / "logs").glob("*.log"))
    assert "goes on from the last checkpoint" in logs
    assert ("Timeout (0:01:00)!" in logs) == (what == signal.SIGSTOP)
    assert weights(run) == trained


def test_a_crash_that_repeats_at_one_step_is_not_started_again(folder: Path) -> None:
    (folder / "p.yaml").write_text(TRAINING)
    crashing = folder / "python"
    crashing.write_text(
        f'#!/bin/bash\n[[ ${{TOOLKIT_WATCHDOG-}} ]] && exit 77\nexec {sys.executable} "$@"\n'
    )
    crashing.chmod(0o755)
    with (folder / "c.yaml").open("a") as stream:
        stream.write(f"python: {crashing}\n")
    toolkit("submit", "p.yaml", "--cluster", "c.yaml")
    run = folder / "runs" / "training"
    number = sent_jobs(run)["base"]["id"]
    wait(run)
    shown = slurm("scontrol", "show", "job", number)
    assert "Restarts=1" in shown and "JobState=FAILED" in shown
    logs = (run / "base" / "logs" / f"slurm-{number}.log").read_text()
    assert "no further than before (step 0): not started again" in logs
    assert "failed" in toolkit("status", str(run))


def test_training_comes_back_after_a_preemption(folder: Path, trained: dict[str, str]) -> None:
    partitions = slurm("sinfo", "-h", "-o", "%R").split()
    if "preemptible" not in partitions:
        pytest.skip("this Slurm has no partition named preemptible, which batch evicts")
    profile = (folder / "c.yaml").read_text()
    (folder / "c.yaml").write_text(profile.replace("partition: batch", "partition: preemptible"))
    toolkit("submit", "p.yaml", "--cluster", "c.yaml", "stages.base.save_interval=10")
    run = folder / "runs" / "training"
    number = sent_jobs(run)["base"]["id"]
    until(lambda: step(run) >= 15, "the fifteenth step")
    slurm("sbatch", "--partition=batch", "-N4", "--exclusive", "-o/dev/null", "--wrap=sleep 3")
    until(lambda: "Restarts=1" in slurm("scontrol", "show", "job", number), "an eviction")
    wait(run)
    assert "JobState=COMPLETED" in slurm("scontrol", "show", "job", number)
    assert weights(run) == trained


def test_training_comes_back_after_a_node_is_lost(folder: Path, trained: dict[str, str]) -> None:
    node = Path(os.environ.get("SLURM_CONF", "/none")).parent.parent / "node.sh"
    if not node.is_file():
        pytest.skip("this Slurm is not the lab's: no node of it can be crashed")
    toolkit("submit", "p.yaml", "--cluster", "c.yaml", "stages.base.save_interval=10")
    run = folder / "runs" / "training"
    number = sent_jobs(run)["base"]["id"]
    until(lambda: step(run) >= 15, "the fifteenth step")
    names = slurm("squeue", "-h", "-j", number, "-o", "%N").strip()
    name = slurm("scontrol", "show", "hostnames", names).split()[-1]
    crashed = name.removeprefix("node")
    try:
        slurm(str(node), "down", crashed)
        until(lambda: "Restarts=1" in slurm("scontrol", "show", "job", number), "a requeue")
        wait(run)
    finally:
        slurm(str(node), "up", crashed)
    assert "JobState=COMPLETED" in slurm("scontrol", "show", "job", number)
    assert weights(run) == trained
