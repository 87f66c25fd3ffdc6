"""Pipelines sent to a real Slurm: arrays, refusals, secrets, containers."""

import hashlib
import os
import shutil
import sys
from pathlib import Path

import pytest
from jobs import TRAINING, files, lay_out, slurm, toolkit, wait

from toolkit.launch.submissions import sent_jobs

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("slurm")]


def test_an_array_of_four_makes_what_one_process_makes(folder: Path) -> None:
    run = folder / "runs" / "100% a run"  # what a batch script's names can trip over
    toolkit("check", "p.yaml", "--cluster", "c.yaml")
    toolkit("submit", "p.yaml", "--cluster", "c.yaml", "--run-dir", str(run))
    wait(run)
    status = toolkit("status", str(run))
    assert status.count("complete") == 2, status
    shards = sent_jobs(run)["corpus.shards"]["id"]
    states = slurm("squeue", "-h", "-r", "--states=all", "-o", "%i %T", "-j", shards).splitlines()
    assert sorted(states) == [f"{shards}_{i} COMPLETED" for i in range(4)]
    assert "rank 3 of 4" in toolkit("logs", str(run), "corpus", "--rank", "3")
    toolkit("run", "p.yaml", "--run-dir", "runs/local")
    names = ("*.bin", "*.idx", "tokenizer.json")
    for stage in ("vocabulary", "corpus"):
        here = files(folder / "runs/local" / stage / "artifact", names)
        assert here and files(run / stage / "artifact", names) == here
    again = toolkit("submit", "p.yaml", "--cluster", "c.yaml", "--run-dir", str(run))
    assert "nothing to send" in again


def test_what_slurm_would_refuse_is_told_before_anything_is_sent(folder: Path) -> None:
    profile = (folder / "c.yaml").read_text()
    (folder / "c.yaml").write_text(profile.replace("partition: batch", "partition: no-such-one"))
    for verb in ("check", "submit"):
        output = toolkit(verb, "p.yaml", "--cluster", "c.yaml", code=2)
        assert "stages.vocabulary: sbatch refused" in output and "partition" in output
    assert not list(folder.glob("runs/*/slurm/*"))


SECRETS = {"PLANTED_KEY": "swordfish-0451", "PLANTED_FILE": "marlin-0452"}
ASKING = """\
#!/bin/bash
# tells that it has the secrets, and what all can see of this machine meanwhile; fails where asked
printf "%s %s" "$PLANTED_KEY" "$PLANTED_FILE" | sha256sum
ps axww -o args > {folder}/seen-$SLURM_JOB_ID-$SLURM_PROCID
scontrol show job -d "$SLURM_JOB_ID" >> {folder}/seen-$SLURM_JOB_ID-$SLURM_PROCID
[[ $* != *runs/fails/* ]] || exit 77
exec {python} "$@"
"""


def test_a_secret_reaches_the_job_and_nothing_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANTED_KEY", SECRETS["PLANTED_KEY"])
    key = folder / "key"
    key.write_text(SECRETS["PLANTED_FILE"])
    key.chmod(0o600)
    asking = folder / "python"
    asking.write_text(ASKING.format(folder=folder, python=sys.executable))
    asking.chmod(0o755)
    with (folder / "c.yaml").open("a") as stream:
        stream.write(f"secrets: [PLANTED_KEY]\nsecret_files: {{PLANTED_FILE: {key}}}\n")
        stream.write(f"python: {asking}\nrequeue: false\n")
    shown = ""
    for name in ("data", "fails"):
        shown += toolkit("submit", "p.yaml", "--cluster", "c.yaml", "--run-dir", f"runs/{name}")
        run = folder / "runs" / name
        number = sent_jobs(run)["vocabulary"]["id"]
        shown += slurm("scontrol", "write", "batch_script", number, "-")
        wait(run)
        shown += toolkit("status", str(run)) + toolkit("logs", str(run), "vocabulary", "--job")
    assert shown.count("complete") == 2 and "failed" in shown
    seen = list(folder.glob("seen-*"))
    assert len(seen) == 1 + 4 + 1 + 1  # one, an array of four, its finish; and one that fails
    for path in (*seen, *(p for p in (folder / "runs").rglob("*") if p.is_file())):
        shown += path.read_bytes().decode(errors="replace")
    assert "swordfish" not in shown and "marlin" not in shown
    digest = hashlib.sha256(" ".join(SECRETS.values()).encode()).hexdigest()
    assert shown.count(digest) >= len(seen)


CONTAINER = """\
#!/bin/bash
# a stand-in for {name}: notes what it was told, and runs the command behind the image here
echo "$*" >> {told}
while [[ $1 != docker:toolkit ]]; do shift; done
shift
exec "$@"
"""
RANK = """\
#!/bin/bash
# a stand-in for the worker, or for torchrun: tells what it was given
echo "given $* RANK=${RANK-none} of ${WORLD_SIZE-none} at $MASTER_ADDR, ${Own_Name}"
env | grep ^PYXIS_SHIM
exit 0
"""
IMAGE = "image: 'docker:toolkit', mounts: ['/data:/data:ro']"
TOLD = {
    "apptainer": ["exec --nv --bind={run}:{run} --bind=/data:/data:ro "],
    "podman": [
        "run --rm",
        "--device=nvidia.com/gpu=all",
        "--volume={run}:{run} --volume=/data:/data:ro ",
        "--env=RANK ",
        "--env=Own_Name ",
    ],
}


@pytest.fixture
def containers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runtimes that can be tried: stand-ins of commands, and Slurm's own options of Pyxis."""
    (folder / "bin").mkdir()
    for runtime in TOLD:
        command = folder / "bin" / runtime
        command.write_text(CONTAINER.format(name=runtime, told=folder / f"told-{runtime}"))
        command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    pyxis = ["pyxis"] if "--container-image" in slurm("srun", "--help") else []
    return [*TOLD, *pyxis]


def profile(folder: Path, runtime: str, launch: str, python: str) -> str:
    """A profile with a container; its file."""
    text = (folder / "c.yaml").read_text()
    text = text.replace("environment:\n", "environment:\n  Own_Name: a b\n")
    text += f"container: {{runtime: {runtime}, {IMAGE}}}\nlaunch: {launch}\npython: {python}\n"
    file = folder / f"{runtime}-{launch}.yaml"
    file.write_text(text + "requeue: false\n")
    return str(file)


def test_a_container_s_flags_arrive_in_every_rank(folder: Path, containers: list[str]) -> None:
    lay_out(folder, TRAINING)
    toolkit("run", "p.yaml", "--only", "vocabulary", "--only", "corpus", "--run-dir", "runs/made")
    rank = folder / "python"
    rank.write_text(RANK)
    rank.chmod(0o755)
    runs = {}
    for runtime in containers:
        for launch in ("srun", "torchrun"):
            run = folder / "runs" / f"{runtime}-{launch}"
            shutil.copytree(folder / "runs/made", run)
            on = profile(folder, runtime, launch, str(rank))
            toolkit("submit", "p.yaml", "--cluster", on, "--run-dir", str(run), "--only", "base")
            runs[runtime, launch] = run
    for (runtime, launch), run in runs.items():
        wait(run)
        logs = {p.name: p.read_text() for p in (run / "base/logs").glob("*.log")}
        kind = "rank" if launch == "srun" else "node"
        for number in range(2):
            log = logs[f"{kind}-{number}.log"]
            ranks = f"RANK={number} of 2" if launch == "srun" else "--nnodes=2 --nproc-per-node=1"
            assert "given -m " in log and ranks in log and log.rstrip().count(", a b") == 1, log
            if runtime == "pyxis":
                _check_pyxis(log, run)
        for flag in TOLD.get(runtime, ()):
            told = (folder / f"told-{runtime}").read_text()
            assert sum(flag.format(run=run) in line for line in told.splitlines()) >= 2


def _check_pyxis(log: str, run: Path) -> None:
    told = dict(line.split("=", 1) for line in log.splitlines() if line.startswith("PYXIS_SHIM_"))
    assert told["PYXIS_SHIM_CONTAINER_IMAGE"] == "docker:toolkit"
    assert told["PYXIS_SHIM_CONTAINER_MOUNTS"] == f"{run}:{run},/data:/data:ro"
    assert "PYXIS_SHIM_NO_CONTAINER_MOUNT_HOME" in told
    names = told["PYXIS_SHIM_CONTAINER_ENV"].split(",")
    assert {"RANK", "MASTER_ADDR", "Own_Name", "PYTHONPATH"} <= set(names)


def test_a_stage_runs_in_each_container(folder: Path, containers: list[str]) -> None:
    for runtime in containers:
        on = profile(folder, runtime, "srun", sys.executable)
        where = ("--run-dir", f"runs/{runtime}", "--only", "vocabulary")
        output = toolkit("submit", "p.yaml", "--cluster", on, *where)
        assert "/data is not on this machine" in output
        seen = runtime == "apptainer"  # which mounts /tmp by itself
        assert ("a.jsonl is not mounted into the container" not in output) == seen
    for runtime in containers:
        wait(folder / "runs" / runtime)
        assert toolkit("status", f"runs/{runtime}").count("complete") == 1
