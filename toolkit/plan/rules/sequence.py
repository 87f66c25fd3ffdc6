"""Sequence and context parallelism: how the tokens of a sequence are shared."""

from __future__ import annotations

import math

from toolkit.plan.rules.matrices import tensor_parallel_cuts_the_heads
from toolkit.plan.rules.rule import (
    CP,
    SP,
    Found,
    RuleBook,
    nearest_divisors,
    the_nearest_divisors,
    the_nearest_multiples,
)
from toolkit.plan.shape import Run

RULES = RuleBook()
COMM = "parallel.cp_comm_type"
SIZES = "parallel.hierarchical_context_parallel_sizes"


def _the_nearest_lengths(run: Run) -> str:
    """Of sequences, those that both context and sequence parallelism can cut."""
    layout = run.layout
    pieces = 2 * layout.cp if layout.cp > 1 else 1
    ranks = layout.cp * layout.tp if layout.sequence_parallel else 1
    return the_nearest_multiples(layout.seq_length, math.lcm(pieces, ranks), of="seq_length")


@RULES.rule("Megatron-LM arguments.py: validate_args")
def context_parallel_divides_the_sequence(run: Run) -> Found:
    """Sequence % (2 x CP): each rank has a piece from the front and one from the back."""
    cp, sequence = run.layout.cp, run.layout.seq_length
    if cp > 1 and sequence % (2 * cp):
        yield (
            CP,
            f"seq_length {sequence} is not a multiple of {2 * cp} (2 pieces x"
            f" context_parallel_size {cp});"
            f" {_the_nearest_lengths(run)}",
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
    own = layout.seq_length // layout.cp
    if own % layout.tp:
        yield (
            SP,
            f"the {own} tokens of a rank (seq_length {layout.seq_length} / context_parallel_size"
            f" {layout.cp}) are not a multiple of tensor_model_parallel_size {layout.tp};"
            f" {_the_nearest_lengths(run)}",
        )


@RULES.rule("TransformerEngine context_parallel.py: AttnFuncWithCPAndQKVOA2A")
def all_to_all_divides_the_heads(run: Run) -> Found:
    """(heads / TP) % CP and (key/value heads / TP) % CP; the inner size with a2a+p2p."""
    layout, model = run.layout, run.model
    kind, cp, tp = layout.cp_comm_type, layout.cp, layout.tp
    if cp == 1 or "a2a" not in kind or not tensor_parallel_cuts_the_heads(run):
        return
    ranks = cp if kind == "a2a" else (layout.hierarchical_cp or (1,))[0]
    heads, groups = model.num_attention_heads // tp, max(1, model.num_query_groups // tp)
    if heads % ranks or groups % ranks:
        if kind == "a2a":
            near = the_nearest_divisors(ranks, heads, groups, of="context_parallel_size")
        else:
            near = _would_do(cp, nearest_divisors(ranks, heads, groups, cp)[0])
        yield (
            COMM,
            f"{kind} deals a rank's {heads} heads and {groups} query groups (of"
            f" {model.num_attention_heads} and {model.num_query_groups}, / tensor {tp}) out"
            f" to {ranks} ranks; {near}, or take cp_comm_type p2p",
        )


@RULES.rule("Megatron-LM arguments.py: validate_args")
def hierarchy_multiplies_to_context_parallel(run: Run) -> Found:
    """prod(hierarchical_context_parallel_sizes) = CP; a2a+p2p needs them, nothing else does."""
    cp, kind, sizes = run.layout.cp, run.layout.cp_comm_type, run.layout.hierarchical_cp
    if kind != "a2a+p2p":
        if sizes:
            yield SIZES, f"is for cp_comm_type a2a+p2p, and that is {kind}; leave this out"
    elif cp == 1:
        yield COMM, "a2a+p2p is for context_parallel_size 2 or more, and that is 1; leave this out"
    elif len(sizes) != 2:
        yield (
            SIZES if sizes else COMM,
            "a2a+p2p needs two hierarchical_context_parallel_sizes, an inner and an outer one;"
            f" {_would_do(cp)}",
        )
    elif math.prod(sizes) != cp:
        inner = None if cp % sizes[0] else sizes[0]
        yield (
            SIZES,
            f"{sizes[0]} x {sizes[1]} = {math.prod(sizes)}, and context_parallel_size is {cp};"
            f" {_would_do(cp, inner)}",
        )


def _would_do(cp: int, inner: int | None = None) -> str:
    """Sizes of a2a+p2p with that inner one, or with the smallest."""
    inner = inner or next(size for size in range(2, cp + 1) if cp % size == 0)
    return f"[{inner}, {cp // inner}] would do"
