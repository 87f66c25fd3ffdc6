"""Layouts that published models were trained with: every rule accepts them.

SC21: Narayanan et al., "Efficient Large-Scale Language Model Training on GPU Clusters Using
Megatron-LM" (arXiv:2104.04473), tables 1 and 2. Llama 3: "The Llama 3 Herd of Models"
(arXiv:2407.21783), table 4. DGX-H100: NVIDIA's performance summary of NeMo and Megatron-Bridge.
"""

import dataclasses
from typing import Any

import plan_shapes
import published_rows
import pytest
from layout_cases import CP, PP, SP, TP, VPP, gpu, settings
from plan_shapes import FP8 as FP8_PARAM

from toolkit.megatron.config import PretrainConfig
from toolkit.pipeline.schema import model_presets
from toolkit.pipeline.source import read_yaml
from toolkit.plan.describe import run_of
from toolkit.plan.layout import violations
from toolkit.plan.shape import Run, stage_layers

A100 = gpu("a100")
H100 = gpu("h100", transformer_engine="2.8.0", cuda="12.9", torch="2.8.0")
COUNTED = {
    "parallel.account_for_embedding_in_pipeline_split": True,
    "parallel.account_for_loss_in_pipeline_split": True,
}
FP8 = {"fp8": "hybrid", "fp8_recipe": "tensorwise"}


def gpt(layers: int, hidden: int, heads: int) -> dict[str, Any]:
    """The GPT of SC21: no query groups, four times the width, learned positions."""
    return {
        "num_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "ffn_hidden_size": 4 * hidden,
        "max_position_embeddings": 2048,
        "position_embedding_type": "learned_absolute",
        "normalization": "LayerNorm",
        "gated_linear_unit": False,
        "activation_func": "gelu",
        "add_bias_linear": True,
        "untie_embeddings_and_output_weights": False,
    }


def preset(name: str) -> dict[str, Any]:
    found: dict[str, Any] = read_yaml(model_presets()[name]).data
    return found


GPT3, GPT530, GPT1T = gpt(96, 12288, 96), gpt(105, 20480, 128), gpt(128, 25600, 160)
LLAMA_8B, LLAMA_70B = preset("llama-3-8b"), preset("llama-3-70b")
LLAMA_405B = preset("llama-3.1-405b")
PUBLISHED: dict[str, tuple[dict[str, Any], int, Any, dict[str, Any]]] = {
    "SC21 175B, 1536 GPUs": (GPT3, 1536, A100, {TP: 8, PP: 12, "global_batch_size": 1536}),
    "SC21 175B, interleaved": (GPT3, 1536, A100, {
        TP: 8, PP: 12, VPP: 2, "global_batch_size": 1536}),
    "SC21 530B, 2240 GPUs": (GPT530, 2240, A100, {TP: 8, PP: 35, "global_batch_size": 2240}),
    "SC21 530B, 2520 GPUs": (GPT530, 2520, A100, {
        TP: 8, PP: 35, VPP: 3, "global_batch_size": 2520}),
    "SC21 1T, 3072 GPUs": (GPT1T, 3072, A100, {TP: 8, PP: 64, VPP: 2, "global_batch_size": 3072}),
    "Llama 3 405B, 8192 GPUs": (LLAMA_405B, 8192, H100, {
        TP: 8, SP: True, PP: 16, **COUNTED, "global_batch_size": 2048, "seq_length": 8192}),
    "Llama 3 405B, 16,384 GPUs": (LLAMA_405B, 16384, H100, {
        TP: 8, SP: True, PP: 16, **COUNTED, "global_batch_size": 2048, "seq_length": 8192}),
    "Llama 3 405B, 131,072 tokens": (LLAMA_405B, 16384, H100, {
        TP: 8, SP: True, CP: 16, PP: 16, **COUNTED, "global_batch_size": 128,
        "seq_length": 131072}),
    "DGX-H100 Llama 3 8B": (LLAMA_8B, 8, H100, {
        **FP8, "global_batch_size": 128, "seq_length": 8192}),
    "DGX-H100 Llama 3 70B": (LLAMA_70B, 64, H100, {
        **FP8, TP: 4, SP: True, PP: 8, VPP: 5, "global_batch_size": 256, "seq_length": 8192}),
    "DGX-H100 Llama 3.1 405B": (LLAMA_405B, 1024, H100, {
        **FP8, TP: 8, SP: True, PP: 8, CP: 2, VPP: 8, **COUNTED, "global_batch_size": 1536,
        "seq_length": 8192}),
}  # fmt: skip


def published(name: str, **changes: Any) -> Run:
    model, ranks, machine, layout = PUBLISHED[name]
    whole = settings(layout) | changes | {"model": model}
    return run_of(PretrainConfig.model_validate(whole), ranks, machine=machine)


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_it_is_accepted(name: str) -> None:
    run = published(name)
    assert list(violations(run)) == []
    layers = stage_layers(run.model, run.layout)
    assert sum(sum(rank) for rank in layers) == run.model.num_layers


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_a_batch_of_one_sequence_less_is_not(name: str) -> None:
    batch = PUBLISHED[name][3]["global_batch_size"]
    found = {v.rule for v in violations(published(name, global_batch_size=batch - 1))}
    assert "batch-divides" in found


SPEEDS = {
    "Megatron-Bridge": (published_rows.NEWEST, FP8_PARAM),
    "NeMo of 2024": (published_rows.OF_2024, published_rows.DELAYED),
    "long sequences": (published_rows.LONG, published_rows.DELAYED),
    "experts": (published_rows.EXPERTS, published_rows.BF16),
    "experts in FP8": (published_rows.EXPERTS, FP8_PARAM),
    "Llama 3": (published_rows.LLAMA_3, published_rows.BF16),
}


@pytest.mark.parametrize("table", list(SPEEDS))
def test_the_layouts_of_published_speeds_are_accepted(table: str) -> None:
    rows, precision = SPEEDS[table]
    for name, layout, *_ in rows:
        length = max(8192, layout.seq_length)
        model = plan_shapes.preset(name, max_position_embeddings=length)
        run = Run(model, layout, precision, H100)
        assert list(violations(run)) == [], (name, layout)


@pytest.mark.parametrize("row", published_rows.SC21, ids=str)
def test_the_layouts_of_the_weak_scaling_of_sc21_are_accepted(row: tuple[int, ...]) -> None:
    model, layout, _ = published_rows.of_sc21(row)
    assert list(violations(Run(model, layout, published_rows.BF16, A100))) == []


def test_what_follows_is_as_published() -> None:
    """Table 4 of the Llama 3 paper: data parallelism, and sequences for each copy."""
    wanted = {"Llama 3 405B, 8192 GPUs": (64, 32), "Llama 3 405B, 16,384 GPUs": (128, 16),
              "Llama 3 405B, 131,072 tokens": (8, 16)}  # fmt: skip
    for name, (copies, each) in wanted.items():
        layout = published(name).layout
        assert (layout.dp, layout.global_batch_size // layout.dp) == (copies, each)
    ends = stage_layers(*_shapes("Llama 3 405B, 16,384 GPUs"))
    assert [rank[0] for rank in ends] == [7, *[8] * 14, 7]


def _shapes(name: str) -> Any:
    run = published(name)
    return run.model, run.layout


def test_405b_needs_the_embedding_and_the_loss_counted() -> None:
    """126 layers don't divide by 16 pipeline ranks; with the two ends they are 128."""
    model, ranks, machine, layout = PUBLISHED["Llama 3 405B, 16,384 GPUs"]
    uncounted = {name: value for name, value in layout.items() if name not in COUNTED}
    whole = settings(uncounted) | {"model": model}
    run = run_of(PretrainConfig.model_validate(whole), ranks, machine=machine)
    assert [v.rule for v in violations(run)] == ["pipeline-divides-the-layers"]


def test_the_8b_row_is_fully_sharded() -> None:
    """FSDP 8, as published; the setting for it is planned with, and can't be trained with yet."""
    run = published("DGX-H100 Llama 3 8B")
    sharded = dataclasses.replace(run, layout=dataclasses.replace(run.layout, fsdp="megatron"))
    assert list(violations(sharded)) == []
