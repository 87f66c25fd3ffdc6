"""Seconds that one microbatch takes in one layer, and at the model's two ends, on one rank.

Communication is in ``toolkit.plan.traffic``.
"""

from __future__ import annotations

from toolkit.plan.activations import norm_share, tokens_per_rank
from toolkit.plan.hardware import LOSS_BYTES
from toolkit.plan.kernels import Kernels, Linear, Parts, Seconds
from toolkit.plan.memory import gradient_width
from toolkit.plan.parameters import layer_weights, numel
from toolkit.plan.shape import Layout, ModelShape


def layer_parts(kernels: Kernels, model: ModelShape, layout: Layout, *, moe: bool) -> Parts:
    """One layer of one microbatch."""
    tokens = tokens_per_rank(layout)
    query = model.num_attention_heads * model.kv_channels / layout.tp
    keys = model.num_query_groups * model.kv_channels / layout.tp
    column, row = _chunks(layout)
    pairs = [
        (
            kernels.linear(tokens, model.hidden_size, query + 2 * keys, chunks=column),
            kernels.linear(tokens, query, model.hidden_size, chunks=row),
        )
    ]
    matmul = Seconds()
    if moe:
        matmul = _experts(kernels, model, layout)
    else:
        pairs.append(_mlp(kernels, model, layout))
    for pair in pairs:
        matmul += pair[0].passes + pair[1].passes
    memory = _attention_memory(kernels, model, layout)
    memory += _mlp_memory(kernels, model, layout, moe=moe)
    memory += Seconds(0.0, _accumulation(kernels, model, layout, moe=moe))
    return Parts(matmul, kernels.attention(model, layout), memory, tuple(pairs))


def mlp_forward(kernels: Kernels, model: ModelShape, layout: Layout, *, moe: bool) -> float:
    """Seconds of the MLP's or the experts' forward pass alone: what recomputing it costs."""
    if moe:
        matmul = _experts(kernels, model, layout).forward
    else:
        matmul = sum(linear.output for linear in _mlp(kernels, model, layout))
    return matmul + _mlp_memory(kernels, model, layout, moe=moe).forward


def _chunks(layout: Layout) -> tuple[tuple[int, int], tuple[int, int]]:
    """Parts that userbuffers cut a column- and a row-parallel layer into, forward and backward: the
    gathers before a column's output and a row's gradient, and the scatters behind a row's output,
    go in a ring."""
    parts = layout.tp if layout.overlap.tp_comm and layout.sequence_parallel else 1
    return (parts, 1), (parts, parts)


def _wide(model: ModelShape, inner: float) -> float:
    return inner * (2 if model.gated_linear_unit else 1)


def _mlp(
    kernels: Kernels, model: ModelShape, layout: Layout, inner: float = 0.0
) -> tuple[Linear, Linear]:
    tokens, hidden = tokens_per_rank(layout), model.hidden_size
    inner = (inner or model.ffn_hidden_size) / layout.tp
    column, row = _chunks(layout)
    return (
        kernels.linear(tokens, hidden, _wide(model, inner), chunks=column),
        kernels.linear(tokens, inner, hidden, chunks=row),
    )


def _experts(kernels: Kernels, model: ModelShape, layout: Layout) -> Seconds:
    """The experts of this rank, each with its even share of the tokens: one after the other, or as
    one grouped kernel."""
    assert model.num_moe_experts is not None
    local = 1 if layout.moe.grouped_gemm else model.num_moe_experts // layout.ep
    tokens = routed_tokens(model, layout) / local
    inner = model.moe_ffn_hidden_size / layout.expert_tp
    one = kernels.linear(tokens, model.hidden_size, _wide(model, inner)).passes
    one += kernels.linear(tokens, inner, model.hidden_size).passes
    found = one * local
    if model.moe_shared_expert_intermediate_size:
        shared = _mlp(kernels, model, layout, model.moe_shared_expert_intermediate_size)
        found += shared[0].passes + shared[1].passes
    own = tokens_per_rank(layout) / norm_share(layout)
    return found + kernels.linear(own, model.hidden_size, model.num_moe_experts, low=False).passes


def routed_tokens(model: ModelShape, layout: Layout) -> float:
    """Tokens that the experts of one rank get, each counted as often as it is sent, if balanced."""
    return tokens_per_rank(layout) * model.moe_router_topk * layout.expert_tp / layout.tp


def _attention_memory(kernels: Kernels, model: ModelShape, layout: Layout) -> Seconds:
    """Both norms and residual sums, rotary positions, and the casts of what the matrices read."""
    value, hidden = kernels.value, model.hidden_size
    tokens = tokens_per_rank(layout)
    query = model.num_attention_heads * model.kv_channels / layout.tp
    keys = model.num_query_groups * model.kv_channels / layout.tp
    outside = hidden / norm_share(layout)
    rotary = 2.0 * value * (query + keys) if model.position_embedding_type == "rope" else 0.0
    rotary *= 2.0 if model.qk_layernorm else 1.0
    forward = 2 * 2 * value * outside + 2 * 3 * value * outside + rotary
    forward += kernels.cast * (2 * outside + query)
    backward = 2 * 3 * value * outside + 2 * 3 * value * outside + rotary
    backward += kernels.cast * (query + 2 * keys + 2 * outside)
    return Seconds(kernels.streamed(forward * tokens, 8), kernels.streamed(backward * tokens, 10))


def _mlp_memory(kernels: Kernels, model: ModelShape, layout: Layout, *, moe: bool) -> Seconds:
    """The activation, its casts, and with experts the sorting of the tokens."""
    value = kernels.value
    if moe:
        tokens = routed_tokens(model, layout)
        inner = model.moe_ffn_hidden_size / layout.expert_tp
        sorting = 4.0 * value * model.hidden_size  # read and written, to the experts and back
    else:
        tokens = tokens_per_rank(layout)
        inner, sorting = model.ffn_hidden_size / layout.tp, 0.0
    wide = _wide(model, inner)
    forward = value * (wide + inner) + kernels.cast * inner + sorting
    backward = value * (2 * wide + inner) + kernels.cast * wide + sorting
    count = 8 if moe else 2
    return Seconds(
        kernels.streamed(forward * tokens, count), kernels.streamed(backward * tokens, count)
    )


def _accumulation(kernels: Kernels, model: ModelShape, layout: Layout, *, moe: bool) -> float:
    """Each microbatch reads and writes the main gradients of the layer's matrices."""
    linear = numel(layer_weights(model, layout, moe=moe)).linear
    width = gradient_width(kernels.precision)
    if layout.fusions.gradient_accumulation is False:
        width += kernels.value  # written by one kernel and read by another
    return kernels.streamed(2 * width * linear, 0)


def _loss(kernels: Kernels, layout: Layout) -> str:
    """The implementation of the loss, the default filled in."""
    fused = layout.fusions.cross_entropy
    if fused is None:
        fused = kernels.precision.weights == "bf16"
    return layout.fusions.cross_entropy_impl if fused else "unfused"


def output_parts(kernels: Kernels, model: ModelShape, layout: Layout) -> Parts:
    """The output layer, in 16 bits, and the loss."""
    tokens = tokens_per_rank(layout)
    rows = model.padded_vocab_size(layout.tp) / layout.tp
    moved = LOSS_BYTES[_loss(kernels, layout)] * rows * tokens
    memory = Seconds(kernels.streamed(moved / 2, 4), kernels.streamed(moved / 2, 2))
    gradients = 2 * gradient_width(kernels.precision) * rows * model.hidden_size
    memory += Seconds(0.0, kernels.streamed(gradients, 0))
    matmul = kernels.linear(tokens, model.hidden_size, rows, low=False).passes
    return Parts(matmul=matmul, memory=memory)
