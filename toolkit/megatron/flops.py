"""Floating-point operations of a training step, and what GPUs could do at most; free of torch."""

from __future__ import annotations

from toolkit.megatron.config import ModelConfig


def flops_per_token(model: ModelConfig, seq_length: int, vocab_size: int) -> float:
    """Operations of forward and backward for one token, recomputation not counted.

    Three times the forward pass; two operations per multiply-add:

    - QKV and output projections: ``2 h (q + 2 kv) + 2 q h``, with q and kv the widths of all query
      and of all key (or value) heads;
    - scores and weighted sum, causal: ``2 x 2 q s / 2``;
    - MLP: ``2 h f`` per matrix, three matrices when gated, else two; in a layer with experts
      those that a token goes to and the shared ones (the router is left out);
    - logits: ``2 h V``.

    This is ``num_floating_point_operations`` of Megatron-LM's ``training.py``, whose attention
    counts half the square since 2025, as here.
    """
    hidden, layers = model.hidden_size, model.num_layers
    query = model.num_attention_heads * model.head_size
    key = model.query_groups * model.head_size
    projections = 2 * hidden * (query + 2 * key) + 2 * query * hidden
    attention = 2 * query * seq_length
    mlps = 2 * hidden * _inner_widths(model) * (3 if model.gated_linear_unit else 2)
    forward = layers * (projections + attention) + mlps + 2 * hidden * vocab_size
    return 3.0 * forward


def _inner_widths(model: ModelConfig) -> int:
    """What a token goes through in the MLPs of all layers together."""
    experts = sum(model.moe_layers)
    shared = model.moe_shared_expert_intermediate_size or 0
    active = model.moe_router_topk * model.expert_ffn_size + shared
    return (model.num_layers - experts) * model.ffn_size + experts * active


PEAK_TFLOPS: tuple[tuple[str, float], ...] = (
    ("GB300", 2500.0),
    ("GB200", 2500.0),
    ("B300", 2250.0),
    ("B200", 2250.0),
    ("H200", 989.0),
    ("GH200", 989.0),
    ("H100 PCIe", 756.0),
    ("H100 NVL", 835.0),
    ("H100", 989.0),
    ("H800", 989.0),
    ("H20", 148.0),
    ("A100", 312.0),
    ("A800", 312.0),
    ("A10G", 70.0),
    ("A10", 125.0),
    ("A30", 165.0),
    ("A40", 150.0),
    ("L40S", 362.0),
    ("L40", 181.0),
    ("L4", 121.0),
    ("RTX 6000 Ada", 364.0),
    ("V100", 125.0),
    ("T4", 65.0),
)
"""Dense 16-bit TFLOP/s from NVIDIA's data sheets, by a part of the device's name; first match."""


def peak_tflops(device_name: str, fp8: bool = False) -> float | None:
    """The most that a GPU can do per second, in 1e12; None where it is not known.

    FP8 doubles the tensor cores' rate on the GPUs that have it.
    """
    for name, peak in PEAK_TFLOPS:
        if name in device_name:
            return peak * (2 if fp8 else 1)
    return None
