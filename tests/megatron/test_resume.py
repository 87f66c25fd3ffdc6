"""Killed or stopped at any moment and started again: the run ends with the same bits."""

import shutil
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
    run_stages,
    succeeded,
)

from toolkit.errors import ExitCode
from toolkit.megatron import checkpoint

ITERATIONS = 12
DROPOUT = {**LLAMA, "hidden_dropout": 0.1, "attention_dropout": 0.1}
TENSOR = {"parallel": layout(tensor=2)}
PIPELINE = {"parallel": layout(pipeline=2)}
INTERLEAVED = {"parallel": layout(pipeline=2, virtual=2)}
REPLICAS = {"resources": {"ntasks_per_node": 2}}


def make(folder: Path, dataset: Path, model: dict[str, Any] = DROPOUT, **settings: Any) -> Stage:
    defaults = {"train_iters": ITERATIONS, "save_interval": 4, "keep_last": 3}
    return make_stage(folder, dataset, model, **{**defaults, **settings})


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Stage:
    """With dropout, so that its random states have to be restored, too."""
    stage = make(tmp_path_factory.mktemp("whole") / "base", dataset, **TENSOR)
    succeeded(stage.run(), stage)
    return stage


def same_end(stage: Stage, whole: Stage) -> None:
    """The final checkpoint and all the metrics are those of a run that nothing happened to."""
    ends = (checkpoint.iteration_folder(s.checkpoints, ITERATIONS) for s in (stage, whole))
    assert_same_tensors(*ends)
    assert stage.rows("loss") == whole.rows("loss")
    assert stage.artifact.info["validation_loss"] == whole.artifact.info["validation_loss"]


def test_sigkill_of_all_ranks_in_steps_and_saves(
    tmp_path: Path, dataset: Path, uninterrupted: Stage
) -> None:
    stage = make(tmp_path / "base", dataset, **TENSOR)
    in_a_save = checkpoint.saving_folder(stage.checkpoints, 8)
    moments: dict[str, Callable[[], object]] = {
        "in a step, before any save": lambda: len(stage.rows("loss")) >= 2,
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
    assert not list(stage.checkpoints.glob(f"*{checkpoint.SAVING}"))


def test_sigkill_of_one_rank_around_the_rename_of_a_save(
    tmp_path: Path, dataset: Path, uninterrupted: Stage
) -> None:
    stage = make(tmp_path / "base", dataset, **TENSOR)
    for fault, kept in (
        ("toolkit.megatron.checkpoint:commit:2", [4]),  # all is written, nothing renamed
        ("toolkit.megatron.checkpoint:write_text:1", [4, 8]),  # renamed; the tracker still says 4
    ):
        stage.environment["DIE_BEFORE"] = fault
        assert stage.run() != ExitCode.OK
        assert "another rank ended" in stage.log()
        assert checkpoint.iterations(stage.checkpoints) == kept
        assert checkpoint.latest_iteration(stage.checkpoints) == 4
    del stage.environment["DIE_BEFORE"]
    succeeded(stage.run(), stage)
    assert "resumed from iteration 8" in stage.log()
    same_end(stage, uninterrupted)


def test_a_stop_signal_to_one_rank_saves_on_all_and_resumes(
    tmp_path: Path, dataset: Path, uninterrupted: Stage
) -> None:
    stage = make(tmp_path / "base", dataset, save_interval=1000, **TENSOR)
    for number, rank in ((signal.SIGTERM, 1), (signal.SIGUSR1, 0)):
        done = len(stage.rows("loss"))
        with stage.started() as ranks:
            ranks.wait_until(lambda done=done: len(stage.rows("loss")) > done + 1)
            ranks.send(number, [rank])
            assert ranks.wait() == ExitCode.SAVED_AND_STOPPED
        saved = checkpoint.latest_iteration(stage.checkpoints)
        assert len(stage.rows("loss")) == saved < ITERATIONS
    succeeded(stage.run(), stage)
    same_end(stage, uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_stop_signal_to_all_processes_of_all_ranks_saves(
    tmp_path: Path, dataset: Path, uninterrupted: Stage, number: signal.Signals
) -> None:
    """As Slurm sends it: to what a save has started, too, and left for the next one."""
    stage = make(tmp_path / "base", dataset, **TENSOR)
    with stage.started() as ranks:
        ranks.wait_until(lambda: len(stage.rows("loss")) > 4)
        ranks.send_to_all(number)
        assert ranks.wait() == ExitCode.SAVED_AND_STOPPED, stage.log()
    assert 4 < checkpoint.latest_iteration(stage.checkpoints) == len(stage.rows("loss"))
    succeeded(stage.run(), stage)
    same_end(stage, uninterrupted)


def begun(folder: Path, whole: Stage, saves: list[int]) -> None:
    """Make ``folder`` look as if the run had got as far as these checkpoints."""
    root = folder / "work" / "checkpoints"
    for iteration in saves:
        source = checkpoint.iteration_folder(whole.checkpoints, iteration)
        shutil.copytree(source, checkpoint.iteration_folder(root, iteration))
    shutil.copy(whole.checkpoints / checkpoint.MODEL, root)


def test_a_damaged_checkpoint_is_passed_over_loudly(
    tmp_path: Path, dataset: Path, uninterrupted: Stage
) -> None:
    stage = make(tmp_path / "base", dataset, **TENSOR)
    begun(stage.folder, uninterrupted, [4, 8])
    newest = checkpoint.iteration_folder(stage.checkpoints, 8)
    cut = max(newest.glob("*.distcp"), key=lambda p: p.stat().st_size)
    cut.write_bytes(cut.read_bytes()[:-1000])
    succeeded(stage.run(), stage)
    assert f"{cut.name} has" in stage.log()
    assert "resumed from iteration 4" in stage.log()
    assert checkpoint.iterations(stage.checkpoints) == [4, 8, 12]
    assert stage.rows("loss") == uninterrupted.rows("loss")[4:]
    last = [checkpoint.iteration_folder(s.checkpoints, 12) for s in (stage, uninterrupted)]
    assert_same_tensors(*last)


CHANGES = {
    "tensor-to-pipeline": (TENSOR, PIPELINE),
    "data-to-tensor": (REPLICAS, TENSOR),
    "interleaved-to-one-rank": (INTERLEAVED, {}),
}


@pytest.fixture(scope="module")
def changed(
    tmp_path_factory: pytest.TempPathFactory, dataset: Path
) -> dict[str, tuple[Stage, Stage]]:
    """For each change of layout: the run without it, and one that goes on from its iteration 4."""
    root, pairs = tmp_path_factory.mktemp("changed"), {}
    wholes = [make(root / f"{n}-whole", dataset, LLAMA, **b) for n, (b, _) in CHANGES.items()]
    succeeded(run_stages(wholes), wholes[0])
    for (name, (_, after)), whole in zip(CHANGES.items(), wholes, strict=True):
        stage = make(root / name, dataset, LLAMA, **after)
        begun(stage.folder, whole, [4])
        pairs[name] = (whole, stage)
    for world_size in (1, 2):
        group = [s for _, s in pairs.values() if s.config.world_size() == world_size]
        succeeded(run_stages(group), group[0])
    return pairs


@pytest.mark.parametrize("change", CHANGES)
def test_another_layout_goes_on_from_the_checkpoint(
    changed: dict[str, tuple[Stage, Stage]], change: str
) -> None:
    whole, stage = changed[change]
    expected = whole.rows("loss")[4:]
    assert len(expected) == ITERATIONS - 4
    assert stage.rows("loss") == pytest.approx(expected, abs=1e-4)
    assert stage.rows("lr") == whole.rows("lr")[4:]
    final = stage.artifact.info["validation_loss"]
    assert final == pytest.approx(whole.artifact.info["validation_loss"], abs=1e-4)
