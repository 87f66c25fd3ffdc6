"""What a layer keeps of its forward pass for its backward pass, and how often it is kept at once.

The terms are those of Korthikanti et al. 2022 (arXiv:2205.05198, section 4), counted for today's
kernels: attention, unless it is to be unfused, is a fused one, which keeps its output and one
number a row and no matrix of scores; the inputs of FP8 matrices are kept in FP8; grouped queries
and gated MLPs keep what they have. For GPT-3 with dropout this is the paper's 34 bytes a token and
hidden unit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from toolkit.plan.parameters import chunk_layer_kinds
from toolkit.plan.schedule import most_kept
from toolkit.plan.shape import Layout, ModelShape, Precision

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1}
FP4_INPUT = 0.5625
"""Bytes of an element in NVFP4: half a byte, and one FP8 scale for each 16."""


@dataclass(frozen=True)
class Formats:
    """Bytes of one element of an activation, and of what a matrix keeps of its input."""

    value: float
    matrix_input: float

    @classmethod
    def of(cls, precision: Precision) -> Formats:
        """The formats that follow from a run's precision."""
        value = BYTES[precision.weights]
        if precision.fp4 is not None:
            return cls(value, FP4_INPUT)
        return cls(value, 1 if precision.fp8 is not None else value)


def tokens_per_rank(layout: Layout) -> int:
    """Tokens of a microbatch on one rank, before sequence parallelism cuts them."""
    return layout.seq_length * layout.micro_batch_size // layout.cp


def norm_share(layout: Layout) -> int:
    """How many ranks share the tokens outside of the matrices: TP with sequence parallelism."""
    return layout.tp if layout.sequence_parallel else 1


def layer_bytes(model: ModelShape, layout: Layout, precision: Precision, *, moe: bool) -> float:
    """Bytes that one layer keeps of one microbatch on one rank, full recomputation aside."""
    formats = Formats.of(precision)
    modules = _recomputed_modules(layout)
    tokens = tokens_per_rank(layout)
    kept = _norms(model, formats, modules) / norm_share(layout)
    kept += _attention(model, formats) / layout.tp
    if not recomputes_attention(layout):
        kept += score_bytes(model, layout, formats.value) / layout.tp
    if not moe:
        kept += _mlp(model, formats, model.ffn_hidden_size, "mlp" in modules) / layout.tp
        return kept * tokens
    if "moe" not in modules:
        kept += _experts(model, layout, formats, "moe_act" in modules)
    return kept * tokens


def input_bytes(model: ModelShape, layout: Layout, precision: Precision) -> float:
    """Bytes of a layer's input on one rank: all that full recomputation keeps of a layer."""
    share = layout.tp if layout.recompute.distribute_saved_activations else norm_share(layout)
    return tokens_per_rank(layout) * model.hidden_size * BYTES[precision.weights] / share


def _recomputed_modules(layout: Layout) -> tuple[str, ...]:
    recompute = layout.recompute
    return recompute.modules if recompute.granularity == "selective" else ()


def _norms(model: ModelShape, formats: Formats, modules: tuple[str, ...]) -> float:
    """Of both norms a token's input and output, and of both dropouts the mask."""
    output = 0.0 if "layernorm" in modules else formats.matrix_input
    masks = 2 if model.hidden_dropout else 0
    return model.hidden_size * (2 * (formats.value + output) + masks)


def _attention(model: ModelShape, formats: Formats) -> float:
    query = model.num_attention_heads * model.kv_channels
    keys = model.num_query_groups * model.kv_channels
    inputs = formats.value * (query + 2 * keys)
    if model.qk_layernorm:
        inputs += formats.value * (query + keys)
    output = formats.value * query
    if formats.matrix_input != formats.value:
        output += formats.matrix_input * query  # the projection keeps a smaller copy of its own
    return inputs + output + 4 * model.num_attention_heads


def recomputes_attention(layout: Layout) -> bool:
    """Whether the backward pass computes the attention of a layer again, and that alone."""
    recompute = layout.recompute
    return recompute.granularity == "selective" and "core_attn" in (
        recompute.modules or ("core_attn",)
    )


def score_bytes(model: ModelShape, layout: Layout, width: float) -> float:
    """Bytes of a token's scores in all heads, which unfused attention keeps and the others don't.

    The softmax and, with dropout, its mask and output: Korthikanti et al. 2022, section 4.1.
    """
    if layout.fusions.attention_backend != "unfused":
        return 0.0
    each = width + (1 + width if model.attention_dropout else 0)
    return each * model.num_attention_heads * layout.seq_length


def _mlp(model: ModelShape, formats: Formats, inner: int, recomputed: bool) -> float:
    if recomputed:
        return 0.0
    wide = inner * (2 if model.gated_linear_unit else 1)
    return formats.value * wide + formats.matrix_input * inner


def _experts(model: ModelShape, layout: Layout, formats: Formats, act_recomputed: bool) -> float:
    """Of the router, the tokens as the experts get them, and the experts, with balanced routing."""
    assert model.num_moe_experts is not None
    copies = model.moe_router_topk * layout.expert_tp / layout.tp
    if model.moe_expert_capacity_factor and model.moe_pad_expert_input_to_capacity:
        copies *= model.moe_expert_capacity_factor
    inner = model.moe_ffn_hidden_size
    wide = inner * (2 if model.gated_linear_unit else 1)
    act = 0.0 if act_recomputed else formats.matrix_input * inner
    kept = formats.matrix_input * model.hidden_size
    kept += (formats.value * wide + act) / layout.expert_tp
    router = 2 * 4 * model.num_moe_experts / norm_share(layout)  # logits and scores, in FP32
    shared = model.moe_shared_expert_intermediate_size or 0
    again = "shared_experts" in _recomputed_modules(layout)
    return copies * kept + router + _mlp(model, formats, shared, again) / layout.tp


def stage_bytes(model: ModelShape, layout: Layout, precision: Precision, stage: int) -> float:
    """The most that a stage keeps at once, of all microbatches in flight in all its chunks."""
    kinds = chunk_layer_kinds(model, layout, stage)
    each = {kind: _chunk_bytes(model, layout, precision, *kind) for kind in set(kinds)}
    kept = [each[kind] for kind in kinds]
    if stage == 0:
        mask = 1 if model.hidden_dropout else 0
        per_token = 8 + mask * model.hidden_size / norm_share(layout)
        kept[0] += per_token * tokens_per_rank(layout)
    return most_kept(layout, stage, kept)


def _chunk_bytes(
    model: ModelShape, layout: Layout, precision: Precision, dense: int, experts: int
) -> float:
    """Bytes that so many layers of one model chunk keep of one microbatch."""
    recompute, layers, inputs = layout.recompute, dense + experts, 0
    if recompute.granularity == "full":
        held = recompute.num_layers or 1
        uniform = recompute.method == "uniform"
        inputs = math.ceil(layers / held) if uniform else min(layers, held)
        rest = 0 if uniform else layers - inputs
        experts = round(experts * rest / max(1, layers))
        dense = rest - experts
    kept = inputs * input_bytes(model, layout, precision) if inputs else 0.0
    if dense:
        kept += dense * layer_bytes(model, layout, precision, moe=False)
    if experts:
        kept += experts * layer_bytes(model, layout, precision, moe=True)
    return kept
