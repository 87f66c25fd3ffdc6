"""Training that is disturbed, on a real Slurm: it comes back, and ends with the same weights.

One run shows several disturbances in turn; the two that wait for a real time limit train slowly, on
a node of their own, while the others are looked at.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from jobs import (
    DATA,
    TRAINING,
    lay_out,
    queued,
    slurm,
    step,
    toolkit,
    until,
    wait,
    weights,
    worker_of,
)

from toolkit.launch.going_on import GoingOn, read_going_on
from toolkit.launch.submissions import sent_jobs

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.usefixtures("slurm")]

BASE = TRAINING[TRAINING.index("  base:") :]
PACE = """\
import os, pathlib, time
import toolkit.context, toolkit.megatron.checkpoint as checkpoint
alive, commit = toolkit.context.StageContext.alive, checkpoint.commit

def slow_step(self):
    time.sleep({seconds})
    alive(self)

def slow_commit(root, iteration, keep_last):
    flag = pathlib.Path({flag!r})
    if flag.exists() and flag.read_text() in ("", os.environ["SLURM_JOB_NAME"]):
        flag.with_name("saving").touch()
        time.sleep(300)
    return commit(root, iteration, keep_last)

toolkit.context.StageContext.alive = slow_step
checkpoint.commit = slow_commit
"""
"""What a rank's Python runs first: a wait in each step, and a long one in a save where that is
asked for. So a step, or a save, is there to be hit, and takes no core from the others."""


@dataclass(frozen=True)
class Undisturbed:
    """A run that nothing happened to."""

    corpus: Path
    weights: dict[str, str]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    place = lay_out(tmp_path_factory.mktemp("undisturbed"), TRAINING)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        toolkit("run", "p.yaml")
    run = place / "runs" / "training"
    found = weights(run)
    assert len(found) > 1
    return Undisturbed(run / "corpus" / "artifact", found)


@pytest.fixture(scope="module")
def nodes(request: pytest.FixtureRequest) -> list[str]:
    """The nodes' names: the first is for the runs with a time limit alone."""
    request.getfixturevalue("slurm")
    found = sorted(set(slurm("sinfo", "-h", "-N", "-o", "%N").split()))
    if len(found) < 3:
        pytest.skip(f"needs three nodes; here are {', '.join(found)}")
    return found


def prepare(
    place: Path, undisturbed: Undisturbed, seconds: float, profile: str, more: str = ""
) -> Path:
    """A pipeline of the training alone, and a profile whose Python takes its time; the run."""
    training = BASE.replace("data: corpus", f"data: {undisturbed.corpus}\n    save_interval: 5")
    lay_out(place, f"name: training\ntracking: {{tensorboard: false}}\nstages:\n{training}{more}")
    (place / "sitecustomize.py").write_text(PACE.format(seconds=seconds, flag=str(place / "slow")))
    python = place / "python"
    path = f'export PYTHONPATH="{place}:$PYTHONPATH"'
    python.write_text(f'#!/bin/bash\n{path}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    with (place / "c.yaml").open("a") as stream:
        stream.write(f"python: {python}\n{profile}")
    return place / "runs" / "training"


def shown(number: str) -> str:
    return slurm("scontrol", "show", "job", number)


def noted(run: Path) -> GoingOn:
    return read_going_on(run / "base")["base"]


def state_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "base" / "state.json").read_text())
    return found


@pytest.fixture(scope="module", autouse=True)
def limited(
    undisturbed: Undisturbed, nodes: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Path]]:
    """Two runs under way that a time limit will stop, on the first node."""
    export = "  base-hf: {kind: export, checkpoint: base}\n"
    runs = {}
    for name, seconds, profile in (("requeue", 3.0, ""), ("chain", 1.0, "chain: 5\n")):
        place = tmp_path_factory.mktemp(name)
        profile += f"watchdog_seconds: null\nexclude: [{', '.join(nodes[1:])}]\n"
        runs[name] = prepare(place, undisturbed, seconds, profile, export)
        file = place / "p.yaml"
        file.write_text(file.read_text().replace("nodes: 2, ntasks_per_node: 1", "nodes: 1"))
        profile_file = place / "c.yaml"
        profile_file.write_text(profile_file.read_text().replace("0:20:00", "0:03:00"))
        if name == "chain":
            (place / "slow").write_text("training.base.1")  # which can't save in time, then
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(place)
            toolkit("submit", "p.yaml", "--cluster", "c.yaml")
    yield runs
    for run in runs.values():
        toolkit("cancel", str(run))


def test_a_killed_rank_a_hanging_one_a_requeue_and_a_signal_in_one_job(
    folder: Path, undisturbed: Undisturbed, nodes: list[str]
) -> None:
    profile = f"watchdog_seconds: 40\nexclude: [{nodes[0]}]\n"
    run = prepare(folder, undisturbed, 0.5, profile)
    toolkit("submit", "p.yaml", "--cluster", "c.yaml")
    number = sent_jobs(run)["base"]["id"]
    until(lambda: step(run) >= 8, "the eighth step")
    os.kill(worker_of(run), signal.SIGKILL)
    until(lambda: "Restarts=1" in shown(number), "a start after a crash")
    assert noted(run).reason.startswith("ended with 1")  # 137, or that of one that lost it
    until(lambda: step(run) >= 20, "the twentieth step")
    os.kill(worker_of(run), signal.SIGSTOP)
    errors = run / "base" / "errors"
    until(lambda: any("no step" in p.read_text() for p in errors.glob("rank-*.json")), "a reason")
    until(lambda: "Restarts=2" in shown(number), "a start after a rank that hung")
    logs = "".join(path.read_text() for path in (run / "base" / "logs").glob("rank-*.log"))
    assert "no step within 40 s; the stacks of all threads:" in logs and "train_step" in logs
    until(lambda: step(run) >= 30, "the thirtieth step")
    slurm("scontrol", "requeue", number)  # as an admin may
    until(lambda: "Restarts=3" in shown(number), "a requeue")
    until(lambda: step(run) >= 40, "the fortieth step")
    slurm("scancel", "--signal=USR1", number)
    wait(run)
    assert "Restarts=4" in shown(number) and "JobState=COMPLETED" in shown(number)
    assert (noted(run).restarts, noted(run).ended, noted(run).reason) == (3, True, "")
    attempts = [a["status"] for a in state_of(run)["attempts"]]
    assert attempts[3:] == ["interrupted", "complete"] and len(attempts) == 5
    assert weights(run) == undisturbed.weights


def test_a_preemption_and_a_lost_node_in_one_job(
    folder: Path, undisturbed: Undisturbed, nodes: list[str]
) -> None:
    if "preemptible" not in slurm("sinfo", "-h", "-o", "%R").split():
        pytest.skip("this Slurm has no partition named preemptible, which batch evicts")
    crash = Path(os.environ.get("SLURM_CONF", "/none")).parent.parent / "node.sh"
    if not crash.is_file():
        pytest.skip("this Slurm is not the lab's: no node of it can be crashed")
    run = prepare(folder, undisturbed, 0.5, f"exclude: [{nodes[0]}]\nmax_restarts: 0\n")
    profile = (folder / "c.yaml").read_text()
    (folder / "c.yaml").write_text(profile.replace("partition: batch", "partition: preemptible"))
    toolkit("submit", "p.yaml", "--cluster", "c.yaml")
    number = sent_jobs(run)["base"]["id"]
    until(lambda: step(run) >= 8, "the eighth step")
    where = slurm("squeue", "-h", "-j", number, "-o", "%N").strip()
    first = slurm("scontrol", "show", "hostnames", where).split()[0]
    evicting = ("--partition=batch", f"--nodelist={first}", "--exclusive", "-o/dev/null")
    slurm("sbatch", *evicting, "--wrap=sleep 2")
    until(lambda: "Restarts=1" in shown(number), "an eviction")
    until(lambda: step(run) >= 30, "the thirtieth step")
    where = slurm("squeue", "-h", "-j", number, "-o", "%N").strip()
    lost = slurm("scontrol", "show", "hostnames", where).split()[-1].removeprefix("node")
    try:
        slurm(str(crash), "down", lost)
        until(lambda: "Restarts=2" in shown(number), "a requeue")
        wait(run)
    finally:
        slurm(str(crash), "up", lost)
    assert "JobState=COMPLETED" in shown(number)
    assert noted(run).restarts == 0  # neither was asked for by the job itself
    assert weights(run) == undisturbed.weights


def test_torchrun_is_told_to_save_and_a_save_is_cut_off(
    folder: Path, undisturbed: Undisturbed, nodes: list[str]
) -> None:
    run = prepare(folder, undisturbed, 0.5, f"launch: torchrun\nexclude: [{nodes[0]}]\n")
    toolkit("submit", "p.yaml", "--cluster", "c.yaml")
    number = sent_jobs(run)["base"]["id"]
    until(lambda: step(run) >= 8, "the eighth step")
    slurm("scancel", "--signal=USR1", number)  # as Slurm does ahead of a time limit
    until(lambda: "Restarts=1" in shown(number), "a start after a save")
    assert [a["status"] for a in state_of(run)["attempts"]] == ["interrupted"]
    assert "stopped at step" in noted(run).reason
    until(lambda: step(run) >= 22, "the twenty-second step")
    (folder / "slow").touch()
    saves = run / "base" / "work" / "checkpoints"
    until(lambda: (folder / "saving").exists(), "a save: all is written, and nothing renamed")
    whole = {p.name for p in saves.glob("iter_*") if p.suffix != ".saving"}
    assert "base" in toolkit("cancel", "runs/training")
    wait(run)
    assert "JobState=CANCELLED" in shown(number) and any(saves.glob("*.saving"))
    assert {p.name for p in saves.glob("iter_*") if p.suffix != ".saving"} == whole
    (folder / "slow").unlink()
    os.chdir("/")  # from anywhere
    toolkit("resubmit", str(run))
    assert sent_jobs(run)["base"]["id"] != number
    wait(run)
    assert noted(run).restarts == 0  # though torchrun's workers may outlive their job's end
    log = (run / "base" / "logs" / "node-0.log").read_text()
    assert f"resumed from iteration {max(int(name[-7:]) for name in whole)}" in log
    assert weights(run) == undisturbed.weights


def test_a_crash_that_repeats_at_one_step_and_a_mistake_are_not_started_again(
    tmp_path: Path, undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    mistaken = f'RANK=$((RANK + 7)) exec {sys.executable} "$@"'
    endings = {"requeue": ("exit 77", ""), "chain": ("exit 77", "chain: 3\n")}
    endings["mistake"] = (mistaken, "chain: 3\n")
    export = "  base-hf: {kind: export, checkpoint: base}\n"
    runs = {}
    for name, (ending, profile) in endings.items():
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        runs[name] = prepare(Path.cwd(), undisturbed, 0.0, profile, export)
        Path("python").write_text(f"#!/bin/bash\n{ending}\n")
        toolkit("submit", "p.yaml", "--cluster", "c.yaml")
    states = {}
    for name, run in runs.items():
        wait(run)
        sent = {job: shown(entry["id"]) for job, entry in sent_jobs(run).items()}
        states[name] = {job: text.split("JobState=")[1].split()[0] for job, text in sent.items()}
        repeated = "at step 0, no further than before (step 0): not started again"
        mistake = "a mistake that starting again does not mend"
        assert (
            noted(run).ended and (mistake if name == "mistake" else repeated) in noted(run).reason
        )
        assert ("Restarts=1" in sent.get("base", "")) == (name == "requeue")
        assert "failed" in toolkit("status", str(run))
    links = {"base.1": "FAILED", "base.3": "CANCELLED", "base-hf": "CANCELLED"}
    assert states == {
        "requeue": {"base": "FAILED", "base-hf": "CANCELLED"},
        "chain": links | {"base.2": "FAILED"},
        "mistake": links | {"base.2": "CANCELLED"},
    }


def test_one_task_of_an_array_is_started_again_alone(folder: Path, nodes: list[str]) -> None:
    (folder / "p.yaml").write_text(DATA)
    python = folder / "python"
    waiting = "${TOOLKIT_PHASE-}${RANK-}${SLURM_RESTART_COUNT-} == shards3"
    (folder / "waits.py").write_text(
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(130))\n"
        "pathlib.Path(sys.argv[1]).touch()\ntime.sleep(600)\n"
    )
    python.write_text(
        f"#!/bin/bash\n[[ {waiting} ]] && exec {sys.executable} {folder}/waits.py {folder}/waits\n"
        f'exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    with (folder / "c.yaml").open("a") as stream:
        stream.write(f"python: {python}\nexclude: [{nodes[0]}]\n")
    toolkit("submit", "p.yaml", "--cluster", "c.yaml")
    run = folder / "runs" / "data"
    array = sent_jobs(run)["corpus.shards"]["id"]
    until(lambda: (folder / "waits").exists(), "the last task")
    assert f"JobId={array} " in shown(f"{array}_3")  # its own id is that of the whole array
    slurm("scancel", "--signal=USR1", f"{array}_3")
    wait(run)
    restarts = [shown(f"{array}_{task}").split("Restarts=")[1][0] for task in range(4)]
    assert restarts == ["0", "0", "0", "1"]
    assert read_going_on(run / "corpus")["corpus.shards-3"].restarts == 1
    assert toolkit("status", str(run)).count("complete") == 2


@pytest.mark.parametrize("how", ["chain", "requeue"])
def test_training_goes_on_after_a_time_limit(
    limited: dict[str, Path], undisturbed: Undisturbed, how: str
) -> None:
    run = limited[how]
    until(lambda: not queued(run), "the end of runs that take some time limits", 900)
    if how == "chain":
        log = run / "base" / "logs" / f"slurm-{sent_jobs(run)['base.1']['id']}.log"
        late = "the time limit came before the save was done at step 4: goes on in link 2 of 5"
        assert late in log.read_text()
    jobs = {name: shown(job["id"]) for name, job in sent_jobs(run).items()}
    assert "JobState=COMPLETED" in jobs["base-hf"]
    if how == "requeue":
        assert noted(run).restarts >= 1 and "Restarts=0" not in jobs["base"]
        assert "interrupted" in [a["status"] for a in state_of(run)["attempts"]]
    else:
        at = noted(run).link
        ended = [text.split("JobState=")[1].split()[0] for text in list(jobs.values())[:5]]
        assert 1 < at < 5 and ended[at - 1 :] == ["COMPLETED"] + ["CANCELLED"] * (5 - at)
        assert "COMPLETED" not in ended[: at - 1]
        assert all("Restarts=0" in text for text in jobs.values())
    assert weights(run) == undisturbed.weights
