"""What a search prints is a stage's settings: read back, they are the very layout."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from plan_shapes import FP8, H100, PRESETS

from toolkit.megatron.config import ParallelConfig, PretrainConfig
from toolkit.pipeline.source import read_yaml
from toolkit.plan import settings
from toolkit.plan.describe import layout_shape, model_shape
from toolkit.plan.layout import is_valid
from toolkit.plan.search import search
from toolkit.plan.settings import settings_of
from toolkit.plan.shape import Layout, MoeKernels, Overlap, Recompute, Run
from toolkit.plan.stages import load_checked
from toolkit.plan.throughput import Estimator

PARALLEL = {"tensor_model_parallel_size": 2, "overlap_param_gather": True}
RUNS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "one node": ("llama-3-8b", 8, {"seq_length": 8192}),
    "one node, cut otherwise": ("llama-3-8b", 8, {"seq_length": 8192, "parallel": PARALLEL}),
    "long sequences": ("llama-3.1-8b", 32, {"seq_length": 131072, "global_batch_size": 32}),
    "experts": (
        "mixtral-8x7b",
        64,
        {"seq_length": 4096, "parallel": {"moe_grouped_gemm": True, "sequence_parallel": True}},
    ),
    "pipelines": ("llama-3-70b", 64, {"seq_length": 8192, "global_batch_size": 256}),
}

PIPELINE = """
name: run
stages:
  vocabulary: {kind: train-tokenizer, sources: [sample:python-docs], vocab_size: 4096}
  corpus: {kind: tokenize, sources: [sample:python-docs], tokenizer: vocabulary}
  base: {kind: pretrain, data: corpus, model: {preset: llama-3-8b}, train_iters: 9,
    global_batch_size: 128, seq_length: 8192, resources: {ntasks_per_node: 8}, %s}
"""


def config(model: str, settings: dict[str, Any]) -> PretrainConfig:
    shape = read_yaml(PRESETS / f"{model}.yaml").data
    whole = {"data": "corpus", "train_iters": 100, "global_batch_size": 128, "model": shape}
    return PretrainConfig.model_validate(whole | settings)


@pytest.mark.parametrize("name", list(RUNS))
def test_every_layout_found_is_that_of_its_settings(name: str) -> None:
    model, ranks, settings = RUNS[name]
    given = config(model, settings)
    shape = model_shape(given.model)
    run = Run(shape, layout_shape(given, ranks), FP8)
    found = search(run, Estimator(shape, FP8, H100), keep=40)
    assert len(found.best) > 3
    ways = set()
    for candidate in found.best:
        again = config(model, settings | settings_of(candidate.layout, run.layout))
        assert layout_shape(again, ranks) == candidate.layout
        ways.add(candidate.layout.fsdp)
    assert "megatron" in ways


@pytest.mark.parametrize(
    "layout",
    [
        Layout(world_size=8, tp=2, sequence_parallel=True, overlap=Overlap(True, True)),
        Layout(world_size=8, distributed_optimizer=False, overlap=Overlap(grad_reduce=False)),
        Layout(world_size=8, fsdp="torch", distributed_optimizer=False, overlap=Overlap(True)),
        Layout(
            world_size=8,
            fsdp="megatron",
            optimizer_instances=2,
            outer_sharding="optim",
            fsdp_double_buffer=True,
            nccl_ub=True,
            overlap=Overlap(True),
        ),
        Layout(
            world_size=8,
            pp=2,
            vpp=2,
            microbatch_group=4,
            overlap=Overlap(True, p2p=False),
            recompute=Recompute("full", "block", 3, distribute_saved_activations=True),
        ),
        Layout(
            world_size=8,
            ep=4,
            cp=2,
            cp_comm_type="a2a+p2p",
            hierarchical_cp=(1, 2),
            overlap=Overlap(True, moe_expert_parallel_comm=True, delay_wgrad_compute=True),
            moe=MoeKernels("flex", True, True, False),
            recompute=Recompute("selective", modules=("moe_act", "layernorm")),
        ),
    ],
    ids=lambda layout: f"tp{layout.tp} pp{layout.pp} ep{layout.ep} {layout.fsdp}",
)
def test_other_layouts_are_those_of_their_settings(layout: Layout) -> None:
    again = config(
        "llama-3-8b",
        {"global_batch_size": 1, "seq_length": 2048, "micro_batch_size": 1}
        | settings_of(layout, Layout()),
    )
    assert layout_shape(again, 8) == layout


def test_a_layout_at_its_defaults_says_little() -> None:
    plain = Layout(world_size=8, overlap=Overlap(grad_reduce=True))
    assert settings_of(plain, plain) == {"parallel": {}}
    sharded = replace(plain, fsdp="megatron", micro_batch_size=2)
    assert settings_of(sharded, plain) == {
        "micro_batch_size": 2,
        "parallel": {"use_megatron_fsdp": True},
    }


def test_what_is_printed_can_be_pasted(tmp_path: Path) -> None:
    """As ``toolkit plan`` prints it: JSON without quotes, in a pipeline that ``check`` takes."""
    given = config("llama-3-8b", {"seq_length": 8192})
    run = Run(model_shape(given.model), layout_shape(given, 8), FP8)
    found = search(run, Estimator(run.model, FP8, H100), keep=9)
    best = next(c.layout for c in found.best if c.layout.fsdp)
    assert is_valid(replace(run, layout=best))
    printed = json.dumps(settings_of(best, run.layout)).replace('"', "")
    file = tmp_path / "run.yaml"
    file.write_text(PIPELINE % printed[1:-1])
    stage = load_checked(file).pipeline.stages["base"]
    assert isinstance(stage, PretrainConfig)
    assert layout_shape(stage, 8) == best


def test_no_setting_of_parallel_is_lost() -> None:
    """What is printed takes the place of the stage's own, so that it has all of that."""
    buffers = {
        "tensor_model_parallel_size": 2,
        "sequence_parallel": True,
        "tp_comm_overlap": True,
        "tp_comm_overlap_cfg": {"proj_fprop": {"method": "ring_exchange"}},
        "tp_comm_overlap_rs_dgrad": True,
    }
    sharded = {
        "use_megatron_fsdp": True,
        "keep_fp8_transpose_cache": True,
        "suggested_communication_unit_size": 1000,
    }
    for parallel in (buffers, sharded):
        layout = layout_shape(config("llama-3-8b", {"parallel": parallel}), 8)
        assert settings_of(layout, layout)["parallel"] == parallel
    without = replace(layout, fsdp=None)
    assert settings_of(without, layout)["parallel"] == {}


def test_every_setting_of_parallel_has_its_way_back() -> None:
    """A new one is to be planned with, or to be handed on."""
    back = {*settings.PARALLEL, *settings.FSDP.values()}
    back |= {*settings.UNREAD_OF_BUFFERS, *settings.UNREAD_OF_FSDP}
    back |= {"expert_tensor_parallel_size", "cp_comm_type", "hierarchical_context_parallel_sizes"}
    back |= {"pipeline_model_parallel_layout", "overlap_grad_reduce", "overlap_p2p_comm"}
    assert set(ParallelConfig.model_fields) == back
