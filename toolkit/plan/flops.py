"""Operations of the model itself, by what a token meets: the numerator of MFU."""

from __future__ import annotations

from toolkit.plan.shape import ModelShape


def attention_projections(model: ModelShape) -> int:
    """Weights of a layer's QKV and output projections."""
    query = model.num_attention_heads * model.kv_channels
    keys = model.num_query_groups * model.kv_channels
    return model.hidden_size * (query + 2 * keys) + query * model.hidden_size


def mlp_weights(model: ModelShape, *, moe: bool) -> int:
    """Weights of a layer's MLP that one token meets: the router's choice of experts, if any; the
    router itself is left out, as Megatron leaves it."""
    matrices = 3 if model.gated_linear_unit else 2
    if not moe:
        return matrices * model.hidden_size * model.ffn_hidden_size
    inner = model.moe_router_topk * model.moe_ffn_hidden_size
    inner += model.moe_shared_expert_intermediate_size or 0
    return model.hidden_size * matrices * inner


def flops_per_token(model: ModelShape, seq_length: int, vocab_size: int) -> float:
    """Operations of forward and backward for one token; recomputation is not counted.

    Six for each weight of a matrix that it meets, and for causal attention three times
    ``2 x 2 q s / 2``: the formula of ``toolkit.megatron.flops``, with experts.
    """
    experts = sum(model.moe_layers)
    weights = model.num_layers * attention_projections(model)
    weights += (model.num_layers - experts) * mlp_weights(model, moe=False)
    if experts:
        weights += experts * mlp_weights(model, moe=True)
    query = model.num_attention_heads * model.kv_channels
    attention = model.num_layers * 2 * query * seq_length
    return 6.0 * (weights + model.hidden_size * vocab_size) + 3.0 * attention
