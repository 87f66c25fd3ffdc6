"""The whole of configs/mini.yaml on a real Slurm, and what it made against a run on one machine."""

from pathlib import Path

import pytest
from jobs import ROOT, files, slurm, toolkit, wait, weights

from toolkit.launch.submissions import sent_jobs

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.usefixtures("slurm")]
MINI = str(ROOT / "configs" / "mini.yaml")
LAB = str(ROOT / "configs" / "clusters" / "lab.yaml")
SHORTER = (
    "stages.vocabulary.vocab_size=1024",
    "stages.base.train_iters=20",
    "stages.chat.max_steps=4",
    "stages.preferred.max_steps=4",
    "stages.chat.max_held_out=8",
    "stages.preferred.max_held_out=8",
    "stages.scores.perplexity.max_documents=4",
    "stages.scores.answer_loss.max_examples=8",
    "stages.scores.generations.max_new_tokens=4",
)


@pytest.mark.timeout(1200)
def test_the_whole_graph_makes_what_one_machine_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    toolkit("submit", MINI, "--cluster", LAB, *SHORTER)
    run = tmp_path / "runs" / "mini"
    jobs = sent_jobs(run)
    shards = slurm("squeue", "-h", "-r", "-o", "%i", "-j", jobs["corpus.shards"]["id"]).split()
    assert len(shards) == 4
    shown = slurm("scontrol", "show", "job", jobs["base"]["id"])
    assert "NumNodes=2" in shown and "NumTasks=4" in shown
    wait(run, 1000)
    status = toolkit("status", str(run))
    assert status.count("complete") == 7, status
    on_one = ("stages.base.resources.ntasks_per_node=4", "stages.base.resources.cpus_per_task=1")
    only = [word for stage in ("vocabulary", "corpus", "base") for word in ("--only", stage)]
    toolkit("run", MINI, "--run-dir", "runs/local", *SHORTER, *on_one, *only)
    assert len(weights(run)) > 1
    assert weights(run) == weights(tmp_path / "runs" / "local")
    names = ("*.bin", "*.idx", "tokenizer.json")
    for stage in ("vocabulary", "corpus"):
        there, here = (files(tmp_path / "runs" / r / stage, names) for r in ("mini", "local"))
        assert there and there == here
