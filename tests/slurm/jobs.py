"""What the tests on a real Slurm share: small pipelines, commands, looks at what came of them."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from toolkit.launch.submissions import sent_jobs

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


def toolkit(*words: str, code: int = 0) -> str:
    done = subprocess.run([*TOOLKIT, *words], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def status(run: Path, *more: str, **environment: str) -> str:
    """What ``toolkit status`` says of a run, asked from another folder."""
    command = [*TOOLKIT, "status", str(run), *more]
    done = subprocess.run(
        command,
        cwd="/",
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def stages(run: Path) -> dict[str, dict[str, object]]:
    """The stages of a run, as ``toolkit status --json`` has them."""
    return {row["stage"]: row for row in json.loads(status(run, "--json"))["stages"]}


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


def wait(run: Path, seconds: float = 300) -> None:
    until(lambda: not queued(run), "the end of the jobs", seconds)


def files(artifact: Path, names: Sequence[str] = ("*",)) -> dict[str, str]:
    """The SHA-256 of what an artifact holds, but for what tells the time or the place."""
    found = [p for name in names for p in artifact.rglob(name) if p.is_file()]
    return {str(p.relative_to(artifact)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


def weights(run: Path) -> dict[str, str]:
    return files(run / "base" / "artifact", ("*.distcp",))


def step(run: Path) -> int:
    """The last step that the training has told of."""
    path = run / "base" / "progress.json"
    return int(json.loads(path.read_text())["done"]) if path.is_file() else 0


def worker_of(run: Path) -> int:
    """The process of one rank of the training: the lab's nodes are on this machine."""
    pattern = f"^[^ ]+ -m toolkit.worker {run}/base$"
    found = subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True, check=False)
    if not found.stdout.split():
        pytest.skip("the ranks run on other machines than the tests: they can't be killed by pid")
    return int(found.stdout.split()[-1])
