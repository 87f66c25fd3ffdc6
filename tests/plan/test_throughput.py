"""The estimate of speed against published runs on DGX H100s.

One number (``Tuning.sustained``) was fitted, by hand, between the newest and the oldest of the FP8
rows; the rows in BF16 were not looked at for it.
"""

from dataclasses import replace
from typing import Any

import pytest
from plan_shapes import FP8, H100, PRESETS, preset, published
from published_rows import (
    BF16,
    DELAYED,
    EXPERTS,
    LLAMA_3,
    NEWEST,
    OF_2024,
    OLDER_EXPERTS,
    SC21,
    SELENE,
    of_sc21,
)

from toolkit.errors import ToolkitError
from toolkit.megatron.config import ModelConfig
from toolkit.megatron.flops import flops_per_token as trained_flops
from toolkit.pipeline.source import read_yaml
from toolkit.plan.flops import flops_per_token
from toolkit.plan.hardware import GPUS, Hardware, find_gpu
from toolkit.plan.shape import Fusions, Layout, ModelShape, Precision, Recompute
from toolkit.plan.throughput import Estimate, Estimator


def estimate(
    name: str, layout: Layout, precision: Precision = FP8, hardware: Hardware = H100
) -> Estimate:
    return Estimator(preset(name), precision, hardware).estimate(layout)


@pytest.mark.parametrize(("name", "layout", "low", "high"), NEWEST)
def test_the_newest_rows_within_15_per_cent(
    name: str, layout: Layout, low: float, high: float
) -> None:
    found = estimate(name, layout).tokens_per_second_per_gpu
    assert 0.85 * high <= found <= 1.15 * low


@pytest.mark.parametrize(("name", "layout", "tokens"), OF_2024)
def test_the_rows_of_2024_within_15_per_cent(name: str, layout: Layout, tokens: float) -> None:
    found = estimate(name, layout, DELAYED).tokens_per_second_per_gpu
    assert found == pytest.approx(tokens, rel=0.15)


@pytest.mark.parametrize(("name", "layout", "tflops"), LLAMA_3)
def test_llama_3_in_bf16_which_was_not_fitted(name: str, layout: Layout, tflops: float) -> None:
    assert estimate(name, layout, BF16).tflops_per_gpu == pytest.approx(tflops, rel=0.2)


@pytest.mark.parametrize("row", SC21)
def test_a100s_of_2021_which_were_not_fitted(row: tuple[int, ...]) -> None:
    model, layout, operations = of_sc21(row)
    step = Estimator(model, Precision(), SELENE).estimate(layout).step_seconds
    assert operations / step / layout.world_size == pytest.approx(row[-1] * 1e12, rel=0.15)


@pytest.mark.parametrize(("name", "layout", "tokens"), EXPERTS)
def test_experts_within_a_third(name: str, layout: Layout, tokens: float) -> None:
    assert estimate(name, layout).tokens_per_second_per_gpu == pytest.approx(tokens, rel=0.33)


@pytest.mark.parametrize(("name", "layout", "tokens"), OLDER_EXPERTS)
def test_experts_of_older_software_were_up_to_three_times_slower(
    name: str, layout: Layout, tokens: float
) -> None:
    """What ``toolkit plan`` warns of: an estimate with experts is what newer kernels may reach."""
    assert tokens < estimate(name, layout).tokens_per_second_per_gpu < 3 * tokens


def test_the_spent_seconds_are_the_step() -> None:
    found = estimate("llama-3-70b", published(64, 256, 8192, 4, 8, vpp=5))
    assert found.spent.total == pytest.approx(found.step_seconds)
    assert found.tokens_per_second_per_gpu == pytest.approx(256 * 8192 / found.step_seconds / 64)
    assert found.mfu == pytest.approx(found.tflops_per_gpu / 1978.9)
    assert all(seconds >= 0 for seconds in found.spent.values())


def test_the_bubble_is_that_of_the_paper() -> None:
    """Narayanan et al. 2021: (p - 1) / m of the work, and a v-th of it when interleaved."""
    even = {"num_layers": 64, "vocab_size": 128}  # next to no output layer
    model = preset("llama-3-8b", **even)
    plain = Estimator(model, BF16, H100).estimate(published(8, 64, 2048, pp=8)).spent
    parts = Estimator(model, BF16, H100).estimate(published(8, 64, 2048, pp=8, vpp=4)).spent
    work = plain.matmul + plain.attention + plain.memory + plain.host
    assert plain.bubble == pytest.approx(work * 7 / 64, rel=0.01)
    assert parts.bubble == pytest.approx(plain.bubble / 4, rel=0.01)


def test_recomputing_all_layers_costs_a_forward_pass() -> None:
    layout = published(8, 128, 8192)
    again = replace(layout, recompute=Recompute("full", "uniform", 1))
    plain, full = estimate("llama-3-8b", layout, BF16), estimate("llama-3-8b", again, BF16)
    assert 1.25 < full.step_seconds / plain.step_seconds < 1.36
    assert full.spent.recompute > 0 == plain.spent.recompute


def test_tensor_parallelism_over_the_network_is_dear() -> None:
    layout = published(16, 128, 8192, 8)
    near = estimate("llama-3-8b", layout)
    far = estimate("llama-3-8b", layout, hardware=replace(H100, gpus_per_node=4))
    assert far.spent.tensor > 5 * near.spent.tensor


def test_overlap_hides_communication() -> None:
    layout = published(64, 256, 8192, 4, 8, vpp=5)
    shown = replace(layout, overlap=replace(layout.overlap, tp_comm=False))
    assert (
        estimate("llama-3-70b", shown).spent.tensor > estimate("llama-3-70b", layout).spent.tensor
    )


def test_kernels_that_are_not_fused_move_more_bytes() -> None:
    layout = published(8, 128, 8192)

    def seconds(precision: Precision = BF16, **fusions: Any) -> float:
        changed = replace(layout, fusions=Fusions(**fusions))
        return estimate("llama-3-8b", changed, precision).step_seconds

    plain = seconds()
    assert seconds(cross_entropy=True) == seconds(attention_backend="flash") == plain
    assert seconds(cross_entropy_impl="te") < plain < seconds(cross_entropy=False)
    assert plain < seconds(gradient_accumulation=False) < 1.05 * plain
    assert 1.5 * plain < seconds(attention_backend="unfused") < 5 * plain
    half = replace(BF16, weights="fp16")  # there the loss is not fused
    assert seconds(half) == seconds(half, cross_entropy=False) > seconds(half, cross_entropy=True)


# Tokens/s and model TFLOP/s of a GPU, as one table has them side by side: what was counted.
COUNTED = [
    ("llama-3-8b", 8192, 14451, 744),
    ("llama-3-70b", 8192, 1621, 728),
    ("llama-3.1-405b", 8192, 311, 784),
    ("qwen3-30b-a3b", 4096, 5113, 118),
    ("qwen3-235b-a22b", 4096, 1633, 242),
]


@pytest.mark.parametrize(("name", "seq_length", "tokens", "tflops"), COUNTED)
def test_operations_are_those_of_the_published_tables(
    name: str, seq_length: int, tokens: float, tflops: float
) -> None:
    """Half of the square for causal attention, grouped queries, the experts that a token meets, the
    output layer: as ``performance-summary-archive.md`` of Megatron-Bridge counts them."""
    model = preset(name)
    assert model.vocab_size is not None
    counted = flops_per_token(model, seq_length, model.vocab_size)
    assert counted == pytest.approx(tflops * 1e12 / tokens, rel=0.005)


def test_fp32_takes_no_tensor_core() -> None:
    layout = published(8, 128, 2048)
    wide, narrow = (estimate("llama-3-8b", layout, Precision(w)) for w in ("fp32", "bf16"))
    assert wide.number_format == "fp32"
    assert wide.peak == pytest.approx(66.9e12)
    assert wide.step_seconds > 10 * narrow.step_seconds
    assert wide.mfu < 1


@pytest.mark.parametrize("seq_length", [128, 8192])
def test_operations_are_those_that_training_counts(seq_length: int) -> None:
    settings = {
        "num_layers": 4,
        "hidden_size": 128,
        "num_attention_heads": 4,
        "num_query_groups": 2,
        "ffn_hidden_size": 384,
        "kv_channels": 48,
        "max_position_embeddings": 8192,
    }
    shape = ModelShape(**settings)
    config = ModelConfig(**settings)
    assert flops_per_token(shape, seq_length, 1000) == trained_flops(config, seq_length, 1000)


def test_experts_count_by_what_a_token_meets() -> None:
    """2 of 8 experts: as many operations as one MLP of twice the width; as training counts them."""
    mixtral = preset("mixtral-8x7b")
    wide = preset("mixtral-8x7b", num_moe_experts=None, moe_layers=(), ffn_hidden_size=2 * 14336)
    counted = flops_per_token(mixtral, 4096, 32000)
    assert counted == flops_per_token(wide, 4096, 32000)
    settings = read_yaml(PRESETS / "mixtral-8x7b.yaml").data
    assert counted == trained_flops(ModelConfig.model_validate(settings), 4096, 32000)


def test_the_constants_are_of_one_mind() -> None:
    for gpu in GPUS.values():
        assert set(gpu.peak) == set(gpu.matmul)
        assert all(0.5 < share < 1 for share in gpu.matmul.values())
        assert gpu.attention[1] < gpu.attention[0] < gpu.peak["bf16"]
        assert gpu.nvlink < gpu.hbm


def test_gpus_by_the_names_that_machines_give() -> None:
    assert find_gpu("NVIDIA H100 80GB HBM3") is GPUS["h100"]
    assert find_gpu("NVIDIA GB200") is GPUS["gb200"]
    assert find_gpu("NVIDIA H100 PCIe") is GPUS["h100-pcie"]
    assert find_gpu("a100_40gb") is GPUS["a100-40gb"]
    with pytest.raises(ToolkitError, match="no constants for the GPU 'mi300x'"):
        find_gpu("mi300x")
    with pytest.raises(ToolkitError, match="'h1000'"):
        find_gpu("h1000")
    assert find_gpu("NVIDIA A100-SXM4-40GB") is GPUS["a100-40gb"]
    assert find_gpu("NVIDIA A100-SXM4-80GB") is GPUS["a100"]
    assert find_gpu("NVIDIA GH200 480GB") is GPUS["gh200"]
    assert find_gpu("NVIDIA GB300") is GPUS["gb300"]
    assert GPUS["a100"].format_of("fp8") == "bf16"
    assert GPUS["h100"].format_of("fp4") == "fp8"
