"""Nodes that are not fit, on a real Slurm: named, excluded, and the job goes on without them."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jobs import TOOLKIT, TRAINING, lay_out, slurm, toolkit, wait, weights

from toolkit.errors import ExitCode
from toolkit.launch.submissions import sent_jobs

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.usefixtures("slurm")]


def first_node() -> str:
    """The node that an idle lab gives to a job first."""
    return sorted(slurm("sinfo", "-h", "-N", "-p", "batch", "-o", "%N").split())[0]


@pytest.fixture
def small_shm() -> Iterator[str]:
    """The first node, with a /dev/shm of 8 MiB of its own."""
    lab = Path(os.environ.get("SLURM_CONF", "/none")).parent.parent
    name = first_node()
    if not (lab / "run" / f"{name}.pid").is_file():
        pytest.skip("this Slurm is not the lab's: no node of it can be spoiled")
    inside = ["nsenter", "-t", (lab / "run" / f"{name}.pid").read_text().strip(), "-m"]
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", "/dev/shm"]
    subprocess.run([*inside, *mount], check=True)
    yield name
    subprocess.run([*inside, "umount", "/dev/shm"], check=True)


def profile(folder: Path, *lines: str) -> None:
    path = folder / "c.yaml"
    text = path.read_text().replace("preflight: {enabled: false}", "")
    path.write_text("\n".join([text, *lines]) + "\n")


def breaks_on(folder: Path, node: str) -> str:
    """A Python that can't start a preflight on one node."""
    path = folder / "python"
    path.write_text(
        f'#!/bin/bash\n[[ "$*" == *toolkit.preflight* && $(hostname) == {node} ]] && exit 77\n'
        f'exec {sys.executable} "$@"\n'
    )
    path.chmod(0o755)
    return f"python: {path}"


def state(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "base" / "state.json").read_text())
    return found


def job(number: str) -> str:
    return slurm("scontrol", "show", "job", number)


def log(run: Path, number: str) -> str:
    return (run / "base" / "logs" / f"slurm-{number}.log").read_text()


def test_a_node_that_fails_is_named_and_excluded_and_training_ends_the_same(
    folder: Path, trained: dict[str, str], small_shm: str
) -> None:
    profile(folder, "preflight: {enabled: true, min_shm: 64M}")
    toolkit("submit", "p.yaml", "--cluster", "c.yaml")
    run = folder / "runs" / "training"
    number = sent_jobs(run)["base"]["id"]
    wait(run)
    shown = job(number)
    assert "JobState=COMPLETED" in shown and "Restarts=1" in shown
    assert f"ExcNodeList={small_shm}\n" in shown
    reason = "/dev/shm: 8 MiB in all, where 64 are wanted"
    assert f"unfit: {small_shm}\t{reason}" in log(run, number)
    (named,) = state(run)["unfit_nodes"]
    assert (named["node"], named["reason"], named["job"]) == (small_shm, reason, number)
    assert [attempt["status"] for attempt in state(run)["attempts"]] == ["complete"]
    second = json.loads((run / "base" / "preflight" / f"{number}-1" / "summary.json").read_text())
    assert second["fit"] and small_shm not in second["nodes"]
    assert all(speed > 0 for speed in second["busbw_across"].values())
    assert weights(run) == trained


def test_a_node_whose_python_does_not_start_is_excluded_from_the_rest_of_a_chain(
    folder: Path, trained: dict[str, str]
) -> None:
    node = first_node()
    profile(
        folder,
        "preflight: {enabled: true, timeout_seconds: 20}",
        "chain: 3",
        "requeue: false",
        breaks_on(folder, node),
    )
    toolkit("submit", "p.yaml", "--cluster", "c.yaml")
    run = folder / "runs" / "training"
    ids = [sent_jobs(run)[f"base.{link}"]["id"] for link in (1, 2, 3)]
    wait(run)
    assert f"unfit: {node}\tstart: no rank of it" in log(run, ids[0])
    assert [
        word for number in ids[:2] for word in job(number).split() if word.startswith("JobState")
    ] == ["JobState=FAILED", "JobState=COMPLETED"]
    assert all(f"ExcNodeList={node}\n" in job(number) for number in ids[1:])
    assert "JobState=CANCELLED" in job(ids[2])
    assert [entry["node"] for entry in state(run)["unfit_nodes"]] == [node]
    assert weights(run) == trained


def test_too_few_fit_nodes_end_the_job_with_the_reason(folder: Path) -> None:
    lay_out(folder, TRAINING)
    nodes = sorted(slurm("sinfo", "-h", "-N", "-p", "batch", "-o", "%N").split())
    profile(
        folder,
        "preflight: {enabled: true, timeout_seconds: 20}",
        f"exclude: [{', '.join(nodes[2:])}]",
        breaks_on(folder, nodes[1]),
    )
    toolkit("submit", "p.yaml", "--cluster", "c.yaml")
    run = folder / "runs" / "training"
    number = sent_jobs(run)["base"]["id"]
    wait(run)  # neither held, nor started again
    assert "JobState=FAILED" in job(number) and "Restarts=0" in job(number)
    assert "there are too few nodes for this job" in log(run, number)
    assert [entry["node"] for entry in state(run)["unfit_nodes"]] == [nodes[1]]
    assert "too few nodes" in " ".join(toolkit("status", str(run)).split())


def test_by_hand_in_an_allocation_and_as_a_job(folder: Path) -> None:
    done = subprocess.run(
        ["srun", "-N2", "--ntasks-per-node=1", *TOOLKIT, "preflight", "--run-root", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout
    assert (done.returncode, said.split()[-1]) == (0, "fit"), said + done.stderr
    assert all(word in said for word in ("busbw across", "clock", "write speed", "torch"))
    node = first_node()
    profile(folder, "preflight: {timeout_seconds: 20}", breaks_on(folder, node))
    path = folder / "c.yaml"
    path.write_text(path.read_text().replace("gpus: 4", "gpus: 0"))  # one rank on each node
    said = toolkit("preflight", "--cluster", "c.yaml", "--nodes", "2", code=ExitCode.NODE_UNFIT)
    assert f"unfit: {node}: start: no rank of it came to look" in said
