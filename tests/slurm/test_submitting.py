"""Pipelines sent to a real Slurm: arrays, refusals, secrets, containers."""

import hashlib
import os
import sys
from pathlib import Path

import pytest
from jobs import files, slurm, toolkit, until, wait

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


def test_a_refused_job_leaves_none_queued(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "bin").mkdir()
    shim = folder / "bin" / "sbatch"
    real = slurm("which", "sbatch").strip()
    shim.write_text(
        f'#!/bin/bash\n[[ "$*" == *--parsable*corpus.finish.sh ]] && set -- --no-such-option "$@"\n'
        f'exec {real} "$@"\n'
    )
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    before = slurm("squeue", "-h", "-o", "%i").split()
    output = toolkit("submit", "p.yaml", "--cluster", "c.yaml", code=2)
    assert "'corpus.finish' (3 of 3)" in output and "no-such-option" in output
    until(lambda: slurm("squeue", "-h", "-o", "%i").split() == before, "the queue as it was", 20)


def test_what_slurm_would_refuse_is_told_before_anything_is_sent(folder: Path) -> None:
    profile = (folder / "c.yaml").read_text()
    (folder / "c.yaml").write_text(profile.replace("partition: batch", "partition: no-such-one"))
    for verb in ("check", "submit"):
        output = toolkit(verb, "p.yaml", "--cluster", "c.yaml", code=2)
        assert "stages.vocabulary: sbatch refused" in output and "partition" in output
    assert not list(folder.glob("runs/*/slurm/*"))


def test_a_secret_reaches_the_job_and_nothing_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANTED_KEY", "swordfish-0451")
    key = folder / "key"
    key.write_text("marlin-0452")
    key.chmod(0o600)
    asking = folder / "python"
    digest = 'printf "%s %s" "$PLANTED_KEY" "$PLANTED_FILE" | sha256sum'
    asking.write_text(f'#!/bin/bash\n{digest}\nexec {sys.executable} "$@"\n')
    asking.chmod(0o755)
    with (folder / "c.yaml").open("a") as stream:
        stream.write(f"secrets: [PLANTED_KEY]\nsecret_files: {{PLANTED_FILE: {key}}}\n")
        stream.write(f"python: {asking}\n")
    toolkit("submit", "p.yaml", "--cluster", "c.yaml", "--only", "vocabulary")
    run = folder / "runs" / "data"
    number = sent_jobs(run)["vocabulary"]["id"]
    shown = slurm("scontrol", "show", "job", "-d", number)
    shown += slurm("scontrol", "write", "batch_script", number, "-")
    wait(run)
    assert toolkit("status", str(run)).count("complete") == 1
    for path in (p for p in run.rglob("*") if p.is_file() and "code" not in p.parts):
        shown += path.read_bytes().decode(errors="replace")
    assert "swordfish" not in shown and "marlin" not in shown
    assert hashlib.sha256(b"swordfish-0451 marlin-0452").hexdigest() in shown


CONTAINER = """\
#!/bin/bash
# a stand-in for {name}: notes what it was told, and runs the command behind the image here
echo "$*" >> {told}
while [[ $1 != docker:toolkit ]]; do shift; done
shift
exec "$@"
"""


@pytest.mark.parametrize(
    ("runtime", "flags"),
    [
        ("apptainer", ["exec --bind={run}:{run} --bind=/data:/data:ro "]),
        ("podman", ["run --rm", "--volume={run}:{run}", "--env=RANK ", "--env=Own_Name "]),
    ],
)
def test_a_container_s_flags_arrive_in_the_task(
    folder: Path, monkeypatch: pytest.MonkeyPatch, runtime: str, flags: list[str]
) -> None:
    (folder / "bin").mkdir()
    command = folder / "bin" / runtime
    command.write_text(CONTAINER.format(name=runtime, told=folder / "told"))
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    container = f"runtime: {runtime}, image: 'docker:toolkit', mounts: ['/data:/data:ro']"
    text = (folder / "c.yaml").read_text().replace("{OMP_WAIT_POLICY: PASSIVE}", "{Own_Name: a b}")
    text += f"container: {{{container}}}\npython: {sys.executable}\n"
    (folder / "c.yaml").write_text(text)
    toolkit("submit", "p.yaml", "--cluster", "c.yaml", "--only", "vocabulary")
    run = folder / "runs" / "data"
    wait(run)
    told = (folder / "told").read_text()
    for flag in flags:
        assert flag.format(run=run) in told
    assert toolkit("status", str(run)).count("complete") == 1


def test_what_pyxis_is_told_arrives_in_the_task(folder: Path) -> None:
    if "--container-image" not in slurm("srun", "--help"):
        pytest.skip(
            "this Slurm has neither Pyxis nor the lab's stand-in for it (libslurm-dev, gcc)"
        )
    asking = folder / "python"
    asking.write_text(f'#!/bin/bash\nenv | grep ^PYXIS_SHIM\nexec {sys.executable} "$@"\n')
    asking.chmod(0o755)
    container = "runtime: pyxis, image: registry/toolkit:1, mounts: ['/data:/data:ro']"
    with (folder / "c.yaml").open("a") as stream:
        stream.write(f"container: {{{container}}}\npython: {asking}\n")
    toolkit("submit", "p.yaml", "--cluster", "c.yaml", "--only", "vocabulary")
    run = folder / "runs" / "data"
    wait(run)
    told = toolkit("logs", str(run), "vocabulary").splitlines()
    assert "PYXIS_SHIM_CONTAINER_IMAGE=registry/toolkit:1" in told
    assert f"PYXIS_SHIM_CONTAINER_MOUNTS={run}:{run},/data:/data:ro" in told
    assert any(line.startswith("PYXIS_SHIM_NO_CONTAINER_MOUNT_HOME=") for line in told)
    names = next(line for line in told if line.startswith("PYXIS_SHIM_CONTAINER_ENV="))
    assert {"RANK", "OMP_WAIT_POLICY", "PYTHONPATH"} <= set(names.partition("=")[2].split(","))
