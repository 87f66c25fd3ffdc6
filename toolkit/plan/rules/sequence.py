"""Sequence and context parallelism: how the tokens of a sequence are shared."""

from __future__ import annotations

import math

from toolkit.plan.rules.rule import (
    CP,
    SP,
    Found,
    RuleBook,
    either,
    nearest_divisors,
    nearest_multiples,
    the_nearest_multiples,
)
from toolkit.plan.shape import Run

RULES = RuleBook()
COMM = "parallel.cp_comm_type"
SIZES = "parallel.hierarchical_context_parallel_sizes"


@RULES.rule("Megatron-LM arguments.py: validate_args")
def context_parallel_divides_the_sequence(run: Run) -> Found:
    """Sequence % (2 x CP): each rank has a piece from the front and one from the back."""
    cp, sequence = run.layout.cp, run.layout.seq_length
    if cp > 1 and sequence % (2 * cp):
        yield (
            CP,
            f"seq_length {sequence} is not a multiple of {2 * cp} (2 pieces x"
            f" context_parallel_size {cp});"
            f" {the_nearest_multiples(sequence, 2 * cp)} tokens",
        )


@RULES.rule("model_parallel_config.py: __post_init__")
def sequence_parallel_needs_tensor_parallel(run: Run) -> Found:
    """SP with TP 1."""
    if run.layout.sequence_parallel and run.layout.tp == 1:
        yield (
            SP,
            "shares the tokens over the tensor-parallel ranks, and tensor_model_parallel_size is 1;"
            " set that to 2 or more, or leave this out",
        )


@RULES.rule("tensor_parallel/mappings.py: _split_along_first_dim")
def sequence_parallel_divides_the_sequence(run: Run) -> Found:
    """(sequence / CP) % TP."""
    layout = run.layout
    if not layout.sequence_parallel or layout.seq_length % layout.cp:
        return
    own, step = layout.seq_length // layout.cp, layout.tp * layout.cp
    if own % layout.tp:
        yield (
            SP,
            f"the {own} tokens of a rank (seq_length {layout.seq_length} / context_parallel_size"
            f" {layout.cp}) are not a multiple of tensor_model_parallel_size {layout.tp};"
            f" with seq_length {either(nearest_multiples(layout.seq_length, step))} they are",
        )


@RULES.rule("TransformerEngine context_parallel.py: AttnFuncWithCPAndQKVOA2A")
def all_to_all_divides_the_heads(run: Run) -> Found:
    """(heads / TP) % CP and (key/value heads / TP) % CP; the inner size with a2a+p2p."""
    layout, model = run.layout, run.model
    if layout.cp == 1 or "a2a" not in layout.cp_comm_type:
        return
    ranks = layout.cp if layout.cp_comm_type == "a2a" else (layout.hierarchical_cp or (1,))[0]
    heads = model.num_attention_heads // layout.tp
    groups = max(1, model.num_query_groups // layout.tp)
    if heads % ranks or groups % ranks:
        yield (
            COMM,
            f"{layout.cp_comm_type} deals a rank's {heads} heads and {groups} query groups (of"
            f" {model.num_attention_heads} and {model.num_query_groups}, / tensor {layout.tp}) out"
            f" to {ranks} ranks; that goes with {either(nearest_divisors(ranks, heads, groups))},"
            " or with cp_comm_type p2p",
        )


@RULES.rule("Megatron-LM arguments.py: validate_args")
def hierarchy_multiplies_to_context_parallel(run: Run) -> Found:
    """prod(hierarchical_context_parallel_sizes) = CP; a2a+p2p needs them, nothing else does."""
    layout, sizes = run.layout, run.layout.hierarchical_cp
    if layout.cp_comm_type != "a2a+p2p":
        if sizes:
            yield SIZES, f"is for cp_comm_type a2a+p2p, and that is {layout.cp_comm_type}"
        return
    if len(sizes) != 2:
        yield (
            SIZES if sizes else COMM,
            "a2a+p2p needs the two hierarchical_context_parallel_sizes, such as"
            f" [2, {max(1, layout.cp // 2)}]",
        )
    elif math.prod(sizes) != layout.cp:
        product = " x ".join(str(size) for size in sizes)
        yield (
            SIZES,
            f"{product} = {math.prod(sizes)}, and context_parallel_size is {layout.cp};"
            f" [{sizes[0]}, {max(1, layout.cp // sizes[0])}] would do"
            if not layout.cp % sizes[0]
            else f"{product} = {math.prod(sizes)}, and context_parallel_size is {layout.cp}",
        )
