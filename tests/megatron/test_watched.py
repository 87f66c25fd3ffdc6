"""What a training tells its watchdog: what may take long and is well is not a hang."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pretrain_runs import make_stage

pytestmark = pytest.mark.slow
PROGRAM = """
import sys
from toolkit import worker
from toolkit.megatron import state, train

class Told:
    def step(self): print("step")
    def stop(self): print("stop")

def spoken(word, function):
    def call(*arguments):
        print(word)
        return function(*arguments)
    return call

worker._watchdog = lambda folder, rank: Told()
state.save = spoken("save", state.save)
train._publish = spoken("publish", train._publish)
sys.exit(worker.main(sys.argv[1:]))
"""


def test_steps_batches_of_evaluations_and_saves_count_and_nothing_before_and_after(
    tmp_path: Path, dataset: Path
) -> None:
    often = {"train_iters": 2, "lr_warmup_iters": 1, "eval_interval": 2, "save_interval": 2}
    stage = make_stage(tmp_path / "base", dataset, **often)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(stage.folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOOLKIT_DEVICE": "cpu"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(stage.rows("validation_loss")) == 2  # one of them before the first step
    said = [
        line for line in done.stdout.splitlines() if line in ("step", "save", "publish", "stop")
    ]
    evaluation = ["step"] * stage.config.eval_iters
    assert said == ["step", "step", *evaluation, "save", "step", "stop", "publish", "stop"]
