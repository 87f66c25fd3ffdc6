"""Under FSDP: killed and started again, on other ranks, and what it leaves for others to read."""

import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from megatron.core.optimizer import ChainedOptimizer
from pretrain_runs import (
    LLAMA,
    Stage,
    assert_same_tensors,
    make_stage,
    read_tensors,
    run_stages,
    succeeded,
)
from pydantic import ValidationError

from toolkit.errors import ExitCode, ToolkitError
from toolkit.megatron import checkpoint
from toolkit.megatron.config import ModelConfig, ParallelConfig, PretrainConfig
from toolkit.megatron.fsdp_state import restore
from toolkit.megatron.megatron_fsdp import ddp_config, scale_inner_gradients
from toolkit.megatron.transformer import transformer_config

pytest.importorskip("einops", reason="Megatron's FSDP orders its ranks with einops")

ITERATIONS, SAVED = 6, 4
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "torch": {"use_distributed_optimizer": False, "parallel": {"use_torch_fsdp2": True}},
    "megatron": {"parallel": {"use_megatron_fsdp": True}},
}
FSDPS = ("torch", "megatron")
DROPOUT = {**LLAMA, "hidden_dropout": 0.1, "attention_dropout": 0.1}


def make(folder: Path, dataset: Path, way: str, ranks: int = 2) -> Stage:
    """In FP32, without dropout: comparable with other ways and numbers of ranks."""
    return _make(folder, dataset, way, LLAMA, ranks)


def make_low(folder: Path, dataset: Path, way: str) -> Stage:
    """In BF16, with dropout: all the state that there can be."""
    return _make(folder, dataset, way, DROPOUT, precision="bf16", grad_reduce_in_fp32=False)


def _make(
    folder: Path, dataset: Path, way: str, model: dict[str, Any], ranks: int = 2, **settings: Any
) -> Stage:
    common = {
        "train_iters": ITERATIONS,
        "save_interval": SAVED,
        "global_batch_size": 12,
        "resources": {"ntasks_per_node": ranks},
    }
    return make_stage(folder, dataset, model, **common, **WAYS[way], **settings)


def from_the_save(stage: Stage, of: Stage) -> Stage:
    """With the work of a run that ended after its first checkpoint."""
    shutil.copytree(of.checkpoints, stage.checkpoints)
    checkpoint.discard_newer(stage.checkpoints, SAVED)
    return stage


def last(stage: Stage) -> Path:
    return checkpoint.iteration_folder(stage.checkpoints, ITERATIONS)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> dict[str, Stage]:
    """Runs on two ranks that nothing happens to."""
    root = tmp_path_factory.mktemp("whole")
    found = {way: make(root / way, dataset, way) for way in WAYS}
    found |= {f"{way}-low": make_low(root / f"{way}-low", dataset, way) for way in FSDPS}
    succeeded(run_stages(list(found.values())), found["plain"])
    return found


def test_killed_in_a_save_and_started_again(
    tmp_path: Path, dataset: Path, whole: dict[str, Stage]
) -> None:
    """Rank 0 dies when all is written, and nothing renamed; the other run just ended there."""
    killed = make_low(tmp_path / "megatron", dataset, "megatron")
    killed.environment["DIE_BEFORE"] = "toolkit.megatron.checkpoint:commit:2"
    assert killed.run() != ExitCode.OK
    assert checkpoint.iterations(killed.checkpoints) == [SAVED]
    del killed.environment["DIE_BEFORE"]
    second = from_the_save(make_low(tmp_path / "torch", dataset, "torch"), whole["torch-low"])
    succeeded(run_stages([killed, second]), killed)
    for stage, way in ((killed, "megatron"), (second, "torch")):
        assert_same_tensors(last(stage), last(whole[f"{way}-low"]))
        end = whole[f"{way}-low"].rows("loss")[SAVED:]
        assert stage.rows("loss")[-len(end) :] == end


def test_other_ranks_go_on_with_uneven_rows(
    tmp_path: Path, dataset: Path, whole: dict[str, Stage]
) -> None:
    """64 rows over three ranks; what two ranks saved."""
    stages = [
        from_the_save(make(tmp_path / way, dataset, way, ranks=3), whole[way]) for way in FSDPS
    ]
    succeeded(run_stages(stages), stages[0])
    for stage in stages:
        for metric in ("loss", "grad_norm"):
            expected = whole["plain"].rows(metric)[SAVED:]
            assert len(expected) == ITERATIONS - SAVED
            assert stage.rows(metric) == pytest.approx(expected, abs=1e-4), metric
        _same_tensors_nearly(last(stage), last(whole["plain"]))


@pytest.mark.parametrize("way", FSDPS)
def test_the_artifact_is_that_of_a_run_without(whole: dict[str, Stage], way: str) -> None:
    """By name, shape and value: what export and every other stage reads."""
    plain, sharded = whole["plain"].artifact, whole[way].artifact
    name = checkpoint.iteration_folder(Path(), ITERATIONS).name
    _same_tensors_nearly(sharded.folder / name, plain.folder / name)
    assert sharded.info["parameters"] == plain.info["parameters"]
    assert {p.name for p in sharded.folder.iterdir()} == {p.name for p in plain.folder.iterdir()}


def _same_tensors_nearly(one: Path, other: Path) -> None:
    first, second = read_tensors(one), read_tensors(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("fused", [False, True])
def test_the_step_goes_on_where_the_optimizer_counts_it(fused: bool) -> None:
    """torch's AdamW in every weight's state; a GPU's fused Adam in groups that begin without."""
    weight = torch.zeros(2, requires_grad=True)
    inner: torch.optim.Optimizer = (
        torch.optim.SGD([weight]) if fused else torch.optim.AdamW([weight])
    )
    if not fused:
        inner.state[weight]["step"] = torch.tensor(0.0)
    saved = {"optimizer": {"param_groups": [{"lr": 0.1}, {"lr": 0.1, "step": 7}]}}
    restore(
        [], [], {"optimizer": saved}, ChainedOptimizer([Mock(optimizer=inner, spec=["optimizer"])])
    )
    found = inner.param_groups[0] if fused else inner.state[weight]
    assert found["step"] == 7


def test_an_instance_divides_its_gradients_by_all_ranks() -> None:
    """Where the outer ranks share them (0.17 to 0.19); the runs of 0.19 show it as a whole."""
    whole, inner = Mock(gradient_scaling_factor=0.25), Mock(gradient_scaling_factor=None)
    groups = [
        Mock(spec=["main_grad_buffer"]),
        Mock(main_grad_buffer=None, hfsdp_helper_gbuf=None),
        Mock(main_grad_buffer=whole, hfsdp_helper_gbuf=inner),
    ]
    scale_inner_gradients(Mock(parameter_groups=groups))
    assert inner.gradient_scaling_factor == 0.25


def config(**parallel: Any) -> PretrainConfig:
    raw = {"data": "corpus", "train_iters": 9, "model": LLAMA, "parallel": parallel}
    return PretrainConfig.model_validate(raw)


def test_megatron_core_gets_the_settings() -> None:
    asked = {
        "use_megatron_fsdp": True,
        "num_distributed_optimizer_instances": 2,
        "outer_dp_sharding_strategy": "optim",
        "fsdp_double_buffer": True,
        "suggested_communication_unit_size": 1000,
        "keep_fp8_transpose_cache": True,
    }
    found = ddp_config(config(**asked), overlap_grad_reduce=True, gpu=True)
    for name, value in asked.items():
        assert getattr(found, name) == value, name
    assert found.data_parallel_sharding_strategy == "optim_grads_params"
    assert found.use_distributed_optimizer and found.overlap_grad_reduce
    assert found.gradient_reduce_div_fusion
    assert found.grad_reduce_in_fp32
    assert getattr(found, "megatron_fsdp_main_grads_dtype", torch.float32) == torch.float32  # 0.17
    cpu = ddp_config(config(**asked), overlap_grad_reduce=True, gpu=False)
    assert not cpu.gradient_reduce_div_fusion


@pytest.mark.parametrize(
    ("parallel", "says"),
    [
        ({"use_megatron_fsdp": True, "use_torch_fsdp2": True}, "set one of them"),
        ({"fsdp_double_buffer": True}, "fsdp_double_buffer goes with use_megatron_fsdp: true"),
        (
            {"use_torch_fsdp2": True, "nccl_ub": True, "data_parallel_sharding_strategy": "optim"},
            "data_parallel_sharding_strategy, nccl_ub go with use_megatron_fsdp",
        ),
        (
            {"use_megatron_fsdp": True, "torch_fsdp2_reshard_after_forward": False},
            "goes with use_torch_fsdp2: true",
        ),
        ({"use_torch_fsdp2": True, "overlap_grad_reduce": False}, "leave overlap_grad_reduce out"),
    ],
)
def test_settings_of_the_other_one_are_refused(parallel: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        config(**parallel)


def test_a_cpu_has_no_nccl() -> None:
    parallel = ParallelConfig(use_megatron_fsdp=True, nccl_ub=True)
    with pytest.raises(ToolkitError, match=r"parallel\.nccl_ub needs a GPU"):
        transformer_config(ModelConfig.model_validate(LLAMA), parallel)
