"""One run id, and one whole curve, whatever happens to the training."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from pretrain_runs import LLAMA, QUICK

from toolkit.errors import ExitCode
from toolkit.tracking import read_metrics

ITERATIONS = 240


def pipeline(folder: Path, dataset: Path) -> Path:
    """One small pretraining, tracked by MLflow in ``folder``."""
    settings = {**QUICK, "train_iters": ITERATIONS, "eval_interval": 40, "save_interval": 40}
    base = {"kind": "pretrain", "data": str(dataset), "model": LLAMA, **settings}
    tracking = {"mlflow": {"tracking_uri": f"file://{folder}/mlruns"}, "tensorboard": False}
    file = folder / "tiny.yaml"
    content = {"name": "tiny", "tracking": tracking, "stages": {"base": base}}
    file.write_text(yaml.safe_dump(content))
    return file


def toolkit_run(file: Path) -> subprocess.Popen[str]:
    program = "from toolkit.cli import main; main()"
    arguments = ["run", str(file), "--run-dir", str(file.parent / "runs" / "tiny")]
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOOLKIT_DEVICE": "cpu"},
    )


def tracked(store: Path) -> tuple[str, dict[str, list[tuple[int, float]]]]:
    """The id that the one run of the store carries, and all the values of its metrics."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"file://{store}")
    experiment = client.get_experiment_by_name("tiny")
    (run,) = client.search_runs([experiment.experiment_id])
    points = {
        key: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, key)]
        for key in ("loss", "validation_loss", "iteration")
    }
    return run.data.tags["toolkit.run_id"], points


@pytest.mark.slow
def test_a_killed_run_that_goes_on_has_one_run_id_and_a_whole_curve(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    file, folder = pipeline(tmp_path, dataset), tmp_path / "runs" / "tiny" / "base"
    with toolkit_run(file) as first:
        deadline = time.monotonic() + 120
        while len(read_metrics(folder)) < ITERATIONS // 4:
            assert first.poll() is None, first.stdout and first.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        state = json.loads((folder / "state.json").read_text())
        os.kill(state["attempts"][-1]["pid"], signal.SIGKILL)
    assert first.returncode == ExitCode.STAGE_FAILED
    with toolkit_run(file) as second:
        said = second.stdout.read() if second.stdout else ""
    assert second.returncode == ExitCode.OK, said

    log = (folder / "logs" / "rank-0.log").read_text()
    assert "resumed from iteration" in log
    run_id = json.loads((folder / "tracking" / "run.json").read_text())["id"]
    assert set(re.findall(r"tracking[.]mlflow: run (\w+), ", log)) == {run_id}
    tag, points = tracked(tmp_path / "mlruns")
    rows: list[dict[str, Any]] = read_metrics(folder)
    assert tag == run_id
    assert [step for step, _ in points["loss"]] == list(range(1, ITERATIONS + 1))
    for name in ("loss", "validation_loss"):  # what came again after the kill had the same bits
        assert points[name] == [(r["step"], r[name]) for r in rows if name in r]
    assert points["iteration"] == [(ITERATIONS, ITERATIONS)]  # of the artifact
