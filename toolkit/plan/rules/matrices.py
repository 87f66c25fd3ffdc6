"""The model's own dimensions, and how tensor parallelism cuts them."""

from __future__ import annotations

import math

from toolkit.plan.rules.rule import (
    TP,
    Found,
    RuleBook,
    the_nearest,
    the_nearest_divisors,
    the_nearest_multiples,
)
from toolkit.plan.shape import ModelShape, Run

RULES = RuleBook()
GROUPS = "model.num_query_groups"


def tensor_parallel_cuts_the_heads(run: Run) -> bool:
    """Whether each rank has whole heads; rules that reckon with a rank's heads need that."""
    return _cuts_the_heads(run.model, run.layout.tp)


def _cuts_the_heads(model: ModelShape, tp: int) -> bool:
    return not model.num_attention_heads % tp and _fits_the_groups(model, tp)


def _fits_the_groups(model: ModelShape, tp: int) -> bool:
    return not model.num_query_groups % tp or not tp % model.num_query_groups


def _qkv_rows(model: ModelShape) -> int:
    return (model.num_attention_heads + 2 * model.num_query_groups) * model.kv_channels


def _all_experts(model: ModelShape) -> bool:
    """Whether no layer has a dense MLP."""
    return bool(model.moe_layers) and all(model.moe_layers)


def _the_nearest_sizes(run: Run) -> str:
    """Of tensor parallelism, those that cut all of the model's matrices."""
    model, tp = run.model, run.layout.tp
    inner = [0 if _all_experts(model) else model.ffn_hidden_size]
    inner += [model.moe_shared_expert_intermediate_size or 0, _qkv_rows(model)]
    fit = [
        size
        for size in range(1, model.num_attention_heads + 1)
        if _cuts_the_heads(model, size) and not any(width % size for width in inner)
    ]
    return the_nearest([n for n in fit if n < tp][-1:] + [n for n in fit if n > tp][:1])


@RULES.rule("Megatron-LM arguments.py: validate_args")
def heads_divide_the_hidden_size(run: Run) -> Found:
    """hidden_size % heads, where kv_channels is not given."""
    model = run.model
    hidden, heads = model.hidden_size, model.num_attention_heads
    if model.kv_channels_follow and hidden % heads:
        pairs = 2 if model.position_embedding_type == "rope" else 1
        yield (
            "model.hidden_size",
            f"{hidden} is not a multiple of num_attention_heads {heads};"
            f" {the_nearest_multiples(hidden, heads * pairs)}, or set kv_channels",
        )


@RULES.rule("transformer/attention.py: Attention")
def query_groups_divide_the_heads(run: Run) -> Found:
    """Heads % key/value heads."""
    heads, groups = run.model.num_attention_heads, run.model.num_query_groups
    if heads % groups:
        yield (
            GROUPS,
            f"{groups} does not divide num_attention_heads {heads};"
            f" {the_nearest_divisors(groups, heads)}",
        )


@RULES.rule("models/common/embeddings/rotary_pos_embedding.py: RotaryEmbedding")
def rotary_positions_turn_pairs(run: Run) -> Found:
    """kv_channels % 2 where all turn; a share (rotary_percent) that turns a channel at all.

    Of a share an odd channel is turned with the next one, and there is one.
    """
    channels, percent = run.model.kv_channels, run.model.rotary_percent
    if run.model.position_embedding_type != "rope":
        return
    if percent == 1 and channels % 2:
        yield (
            "model.kv_channels",
            f"rotary positions turn pairs of channels, and {channels} is odd;"
            f" {the_nearest_multiples(channels, 2)}",
        )
    elif not int(channels * percent):
        least = math.ceil(1e6 / channels) / 1e6
        yield (
            "model.rotary_percent",
            f"{percent:g} of kv_channels {channels} is less than one, and the model would know no"
            f" positions; the nearest is {least}",
        )


@RULES.rule("Megatron-LM arguments.py: validate_args")
def positions_reach_the_end(run: Run) -> Found:
    """Sequence <= max_position_embeddings."""
    sequence, longest = run.layout.seq_length, run.model.max_position_embeddings
    if sequence > longest:
        yield (
            "seq_length",
            f"{sequence} is longer than the model's max_position_embeddings {longest};"
            " shorten the one or raise the other",
        )


@RULES.rule("transformer/transformer_config.py: __post_init__")
def tensor_parallel_divides_the_heads(run: Run) -> Found:
    """Heads % TP."""
    tp, heads = run.layout.tp, run.model.num_attention_heads
    if heads % tp:
        yield (
            TP,
            f"{tp} does not divide num_attention_heads {heads}; {_the_nearest_sizes(run)}",
        )


@RULES.rule("transformer/transformer_config.py: __post_init__")
def tensor_parallel_fits_the_query_groups(run: Run) -> Found:
    """Key/value heads % TP, or TP % key/value heads: a head may be had by several ranks."""
    tp, groups = run.layout.tp, run.model.num_query_groups
    shared = not run.model.num_attention_heads % groups
    if shared and not _fits_the_groups(run.model, tp):
        yield (
            TP,
            f"{tp} and num_query_groups {groups} must be multiples one of the other;"
            f" {_the_nearest_sizes(run)}",
        )


@RULES.rule("tensor_parallel/layers.py: ColumnParallelLinear (core/utils.py: divide)")
def tensor_parallel_divides_the_qkv_projection(run: Run) -> Found:
    """(heads + 2 x key/value heads) x kv_channels % TP; matters where heads are shared."""
    tp, model = run.layout.tp, run.model
    rows = _qkv_rows(model)
    if rows % tp and _cuts_the_heads(model, tp):
        yield (
            TP,
            f"{tp} does not divide the {rows} rows of the QKV projection"
            f" (({model.num_attention_heads} heads + 2 x {model.num_query_groups} groups)"
            f" x kv_channels {model.kv_channels}); {_the_nearest_sizes(run)}",
        )


@RULES.rule("tensor_parallel/layers.py: ColumnParallelLinear (core/utils.py: divide)")
def tensor_parallel_divides_the_mlp(run: Run) -> Found:
    """ffn_hidden_size % TP, in models that have a dense layer."""
    tp, inner = run.layout.tp, run.model.ffn_hidden_size
    if inner % tp and not _all_experts(run.model):
        yield TP, f"{tp} does not divide ffn_hidden_size {inner}; {_the_nearest_sizes(run)}"
