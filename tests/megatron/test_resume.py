"""Killed or stopped at any moment and started again: the run ends with the same bits."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pretrain_runs import (
    LLAMA,
    Stage,
    assert_same_tensors,
    layout,
    make_stage,
    succeeded,
)

from toolkit.errors import ExitCode
from toolkit.megatron import checkpoint

ITERATIONS = 16
TENSOR = {"parallel": layout(tensor=2)}
REPLICAS = {"resources": {"ntasks_per_node": 2}}


def make(folder: Path, dataset: Path, **settings: Any) -> Stage:
    defaults = {"train_iters": ITERATIONS, "save_interval": 4, "attention_dropout": 0.1}
    model = {**LLAMA, "hidden_dropout": 0.1, "attention_dropout": defaults.pop("attention_dropout")}
    return make_stage(folder, dataset, settings.pop("model", model), **{**defaults, **settings})


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Stage:
    """With dropout, so that its random states have to be restored, too."""
    stage = make(tmp_path_factory.mktemp("whole") / "base", dataset, **TENSOR)
    succeeded(stage.run(), stage)
    return stage


def last(stage: Stage) -> Path:
    return checkpoint.iteration_folder(stage.checkpoints, ITERATIONS)


def same_end(stage: Stage, whole: Stage) -> None:
    """The final checkpoint and all the metrics are those of a run that nothing happened to."""
    assert_same_tensors(last(stage), last(whole))
    assert stage.rows("loss") == whole.rows("loss")
    assert stage.artifact.info["validation_loss"] == whole.artifact.info["validation_loss"]


def test_sigkill_of_all_ranks_in_steps_and_saves(
    tmp_path: Path, dataset: Path, uninterrupted: Stage
) -> None:
    stage = make(tmp_path / "base", dataset, **TENSOR)
    saves = stage.checkpoints
    in_a_save = checkpoint.saving_folder(saves, 8)
    moments: dict[str, Callable[[], object]] = {
        "in a step, before any save": lambda: len(stage.rows("loss")) >= 2,
        "as a save begins": in_a_save.exists,
        "while tensors are written": lambda: any(in_a_save.glob("*.distcp")),
        "in a step, after a save": lambda: len(stage.rows("loss")) >= 10,
    }
    for happened in moments.values():
        with stage.started() as ranks:
            ranks.wait_until(happened)
            ranks.kill()
        assert not (stage.folder / "artifact").exists()
    succeeded(stage.run(), stage)
    same_end(stage, uninterrupted)
    assert not list(saves.glob(f"*{checkpoint.SAVING}"))


def test_sigkill_of_one_rank_around_the_rename_of_a_save(
    tmp_path: Path, dataset: Path, uninterrupted: Stage
) -> None:
    stage = make(tmp_path / "base", dataset, **TENSOR)
    before_the_rename = "toolkit.megatron.checkpoint:commit:1"
    before_the_tracker = "toolkit.megatron.checkpoint:write_text:1"
    for fault, kept, tracked in (
        (before_the_rename, [], False),
        (before_the_tracker, [4], False),
        (before_the_rename, [4], False),
        (before_the_tracker, [4, 8], False),
    ):
        stage.environment["DIE_BEFORE"] = fault
        assert stage.run() != ExitCode.OK
        assert "another rank ended" in stage.log()
        assert checkpoint.iterations(stage.checkpoints) == kept
        assert (stage.checkpoints / checkpoint.TRACKER).exists() == tracked
    del stage.environment["DIE_BEFORE"]
    succeeded(stage.run(), stage)
    same_end(stage, uninterrupted)


def test_sigterm_to_one_rank_saves_on_all_and_resumes(
    tmp_path: Path, dataset: Path, uninterrupted: Stage
) -> None:
    stage = make(tmp_path / "base", dataset, save_interval=1000, **TENSOR)
    for number, rank in ((signal.SIGTERM, 1), (signal.SIGUSR1, 0)):
        done = len(stage.rows("loss"))
        with stage.started() as ranks:
            ranks.wait_until(lambda done=done: len(stage.rows("loss")) > done + 2)
            ranks.send(number, [rank])
            assert ranks.wait() == ExitCode.SAVED_AND_STOPPED
        saved = checkpoint.latest_iteration(stage.checkpoints)
        assert len(stage.rows("loss")) == saved < ITERATIONS
    succeeded(stage.run(), stage)
    same_end(stage, uninterrupted)


NO_DROPOUT = {"model": LLAMA, "save_interval": 6}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(TENSOR, {"parallel": layout(pipeline=2)}, id="tensor-to-pipeline"),
        pytest.param(REPLICAS, TENSOR, id="data-to-tensor"),
        pytest.param({"parallel": layout(pipeline=2, virtual=2)}, {}, id="interleaved-to-one-rank"),
    ],
)
def test_another_layout_goes_on_from_the_checkpoint(
    tmp_path: Path, dataset: Path, before: dict[str, Any], after: dict[str, Any]
) -> None:
    whole = make(tmp_path / "whole", dataset, **NO_DROPOUT, **before)
    succeeded(whole.run(), whole)
    first = make(tmp_path / "base", dataset, **NO_DROPOUT, **before)
    with first.started() as ranks:
        ranks.wait_until(checkpoint.iteration_folder(first.checkpoints, 6).exists)
        ranks.kill()
    second = make(tmp_path / "base", dataset, **NO_DROPOUT, **after)
    succeeded(second.run(), second)
    assert "resumed from iteration 6" in second.log()
    assert second.rows("loss") == pytest.approx(whole.rows("loss"), abs=1e-4)
    assert len(second.rows("loss")) == ITERATIONS


def test_a_damaged_checkpoint_is_passed_over_loudly(
    tmp_path: Path, dataset: Path, uninterrupted: Stage
) -> None:
    stage = make(tmp_path / "base", dataset, **TENSOR)
    with stage.started() as ranks:
        ranks.wait_until(checkpoint.iteration_folder(stage.checkpoints, 8).exists)
        ranks.kill()
    newest = checkpoint.iteration_folder(stage.checkpoints, 8)
    cut = max(newest.glob("*.distcp"), key=lambda p: p.stat().st_size)
    cut.write_bytes(cut.read_bytes()[:-1000])
    succeeded(stage.run(), stage)
    assert f"{cut.name} has" in stage.log()
    assert "resumed from iteration 4" in stage.log()
    same_end(stage, uninterrupted)
