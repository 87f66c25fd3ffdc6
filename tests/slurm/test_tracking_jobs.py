"""Metrics that are passed on from a job on a real Slurm, which signals every process of a step."""

from pathlib import Path

import pytest
from jobs import TRAINING, lay_out, slurm, step, toolkit, until, wait
from tracker_stores import mlflow_run, wandb_offline

from toolkit.launch.submissions import sent_jobs

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.usefixtures("slurm")]
STEPS = 200
ONE_RANK = (
    TRAINING.replace("nodes: 2, ntasks_per_node: 1", "nodes: 1, ntasks_per_node: 1")
    .replace("    parallel: {tensor_model_parallel_size: 2}\n", "")
    .replace("train_iters: 60", f"train_iters: {STEPS}\n    log_interval: 1\n    save_interval: 50")
)


def test_a_job_that_is_stopped_and_goes_on_has_one_run_and_a_whole_curve(folder: Path) -> None:
    pytest.importorskip("wandb")
    pytest.importorskip("mlflow")
    store = f"file://{folder}/mlruns"
    tracking = f"{{wandb: {{mode: offline}}, mlflow: {{tracking_uri: '{store}'}}}}"
    lay_out(folder, ONE_RANK.replace("stages:", f"tracking: {tracking}\nstages:", 1))
    toolkit("run", "p.yaml", "--only", "vocabulary", "--only", "corpus", "tracking={}")
    toolkit("submit", "p.yaml", "--cluster", "c.yaml")
    run = folder / "runs" / "training"
    base, number = run / "base", sent_jobs(run)["base"]["id"]
    until(lambda: step(run) >= 20 and (base / "tracking" / "wandb.json").exists(), "the 20th step")
    slurm("scancel", "--signal=TERM", number)  # to every process of the step: wandb-core dies
    wait(run)
    finished, points = mlflow_run(store, "training", stage="base")
    log = (base / "logs" / "rank-0.log").read_text()
    assert "tracking.wandb fails: " in log and "resumed from iteration" in log
    assert finished.info.status == "FINISHED"
    assert [number for number, _ in points["loss"]] == list(range(1, STEPS + 1))
    assert wandb_offline(base)[1]["loss"] == points["loss"]
