"""The model's own dimensions, and how tensor parallelism cuts them."""

from __future__ import annotations

from toolkit.plan.rules.rule import TP, Found, RuleBook, the_nearest_divisors, the_nearest_multiples
from toolkit.plan.shape import Run

RULES = RuleBook()
GROUPS = "model.num_query_groups"


@RULES.rule("Megatron-LM arguments.py: validate_args")
def heads_divide_the_hidden_size(run: Run) -> Found:
    """hidden_size % heads, where kv_channels is not given."""
    model = run.model
    hidden, heads = model.hidden_size, model.num_attention_heads
    if model.kv_channels_follow and hidden % heads:
        yield (
            "model.hidden_size",
            f"{hidden} is not a multiple of num_attention_heads {heads};"
            f" {the_nearest_multiples(hidden, heads)}, or set kv_channels",
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
    """(kv_channels x rotary_percent) % 2."""
    model = run.model
    turned = int(model.kv_channels * model.rotary_percent)
    if model.position_embedding_type == "rope" and turned % 2:
        yield (
            "model.kv_channels",
            f"rotary positions turn pairs of channels, and kv_channels {model.kv_channels} x"
            f" rotary_percent {model.rotary_percent:g} is {turned};"
            f" {turned - 1} or {turned + 1} channels would do",
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
            f"{tp} does not divide num_attention_heads {heads}; {the_nearest_divisors(tp, heads)}",
        )


@RULES.rule("transformer/transformer_config.py: __post_init__")
def tensor_parallel_fits_the_query_groups(run: Run) -> Found:
    """Key/value heads % TP, or TP % key/value heads: a head may be had by several ranks."""
    tp, groups = run.layout.tp, run.model.num_query_groups
    if groups % tp and tp % groups:
        yield (
            TP,
            f"{tp} and num_query_groups {groups} must be multiples one of the other;"
            f" {the_nearest_divisors(tp, groups)}",
        )


@RULES.rule("tensor_parallel/layers.py: ColumnParallelLinear (core/utils.py: divide)")
def tensor_parallel_divides_the_qkv_projection(run: Run) -> Found:
    """(heads + 2 x key/value heads) x kv_channels % TP; matters where heads are shared."""
    tp, model = run.layout.tp, run.model
    rows = (model.num_attention_heads + 2 * model.num_query_groups) * model.kv_channels
    if rows % tp and not model.num_attention_heads % tp:
        yield (
            TP,
            f"{tp} does not divide the {rows} rows of the QKV projection"
            f" (({model.num_attention_heads} heads + 2 x {model.num_query_groups} groups)"
            f" x kv_channels {model.kv_channels});"
            f" {the_nearest_divisors(tp, rows, model.num_attention_heads)}",
        )


@RULES.rule("tensor_parallel/layers.py: ColumnParallelLinear (core/utils.py: divide)")
def tensor_parallel_divides_the_mlp(run: Run) -> Found:
    """ffn_hidden_size % TP, in models that have a dense layer."""
    tp, inner = run.layout.tp, run.model.ffn_hidden_size
    if inner % tp and not (run.model.moe_layers and all(run.model.moe_layers)):
        yield (
            TP,
            f"{tp} does not divide ffn_hidden_size {inner}; {the_nearest_divisors(tp, inner)}",
        )
