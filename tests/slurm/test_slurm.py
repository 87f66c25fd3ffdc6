"""Pipelines on a real Slurm: sent, run on several nodes, told to stop, requeued, cancelled."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from toolkit.launch.submissions import sent_jobs

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("slurm")]
ROOT = Path(__file__).resolve().parents[2]
TOOLKIT = (sys.executable, "-c", "from toolkit.cli import main; main()")
DATA = """\
name: data
stages:
  vocabulary: {kind: train-tokenizer, sources: [a.jsonl, b.jsonl], vocab_size: 300}
  corpus:
    kind: tokenize
    sources: [a.jsonl, b.jsonl]
    tokenizer: vocabulary
    resources: {nodes: 2, ntasks_per_node: 2, cpus_per_task: 1}
"""
TRAINING = (
    DATA.replace("name: data", "name: training")
    + """\
  base:
    kind: pretrain
    data: corpus
    model: {preset: llama-mini}
    parallel: {tensor_model_parallel_size: 2}
    train_iters: 60
    micro_batch_size: 1
    global_batch_size: 2
    resources: {nodes: 2, ntasks_per_node: 1, cpus_per_task: 1}
"""
)


def lay_out(folder: Path, pipeline: str) -> Path:
    """Data, a pipeline and the lab's profile, in a folder."""
    for name in ("a", "b"):
        lines = (json.dumps({"text": f"{name} {i}: words and more words " * 9}) for i in range(400))
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    (folder / "p.yaml").write_text(pipeline)
    (folder / "c.yaml").write_text((ROOT / "configs" / "clusters" / "lab.yaml").read_text())
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return lay_out(tmp_path, DATA)


def toolkit(*words: str, code: int = 0) -> str:
    done = subprocess.run([*TOOLKIT, *words], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def slurm(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def until(true: Callable[[], bool], what: str, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s\n" + slurm(
            "squeue"
        )
        time.sleep(0.3)


def queued(run: Path) -> list[str]:
    """The states of the run's jobs that have not ended."""
    ids = ",".join(job["id"] for job in sent_jobs(run).values())
    return slurm("squeue", "-h", "-o", "%T", "-j", ids).split()


def wait(run: Path) -> None:
    until(lambda: not queued(run), "the end of the jobs")


def files(artifact: Path, names: Sequence[str] = ("*",)) -> dict[str, str]:
    """The SHA-256 of what an artifact holds, but for what tells the time or the place."""
    found = [p for name in names for p in artifact.rglob(name) if p.is_file()]
    return {str(p.relative_to(artifact)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


def weights(run: Path) -> dict[str, str]:
    return files(run / "base" / "artifact", ("*.distcp",))


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


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The weights that an undisturbed local run ends with."""
    place = lay_out(tmp_path_factory.mktemp("local"), TRAINING)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("PYTHONPATH", str(ROOT))
        toolkit("run", "p.yaml")
    found = weights(place / "runs" / "training")
    assert len(found) > 1
    return found


@pytest.fixture
def trained(folder: Path, expected: dict[str, str]) -> dict[str, str]:
    """The training's pipeline in the test's folder, and the weights that it must end with."""
    lay_out(folder, TRAINING)
    return expected


def step(run: Path) -> int:
    """The last step that the training has told of."""
    path = run / "base" / "progress.json"
    return int(json.loads(path.read_text())["done"]) if path.is_file() else 0


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_requeued_job_resumes_and_ends_the_same(folder: Path, trained: dict[str, str]) -> None:
    toolkit("submit", "p.yaml", "--cluster", "c.yaml", "stages.base.save_interval=10")
    run = folder / "runs" / "training"
    number = sent_jobs(run)["base"]["id"]
    until(lambda: step(run) >= 15, "the fifteenth step")
    slurm("scontrol", "requeue", number)
    wait(run)
    assert "Restarts=1" in slurm("scontrol", "show", "job", number)
    assert weights(run) == trained


def worker_of(run: Path) -> int:
    """The process of one rank of the training: the lab's nodes are on this machine."""
    pattern = f"^[^ ]+ -m toolkit.worker {run}/base$"
    found = subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True, check=False)
    if not found.stdout.split():
        pytest.skip("the ranks run on other machines than the tests: they can't be killed by pid")
    return int(found.stdout.split()[-1])


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
