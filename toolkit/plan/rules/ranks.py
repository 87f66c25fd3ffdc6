"""Ranks: what the degrees of parallelism multiply to, and what is left for data parallelism."""

from __future__ import annotations

from toolkit.plan.rules.rule import EP, Found, RuleBook, the_nearest_divisors, the_nearest_multiples
from toolkit.plan.shape import Layout, Run

RULES = RuleBook()


def whole_copies(layout: Layout) -> bool:
    """Whether the ranks hold whole copies of the model; other rules reckon with their number."""
    return layout.world_size % layout.model_parallel_size == 0


@RULES.rule("parallel_state.py: initialize_model_parallel")
def ranks_hold_whole_copies(run: Run) -> Found:
    """World size % (TP x PP x CP)."""
    layout = run.layout
    if not whole_copies(layout):
        size = layout.model_parallel_size
        yield (
            "parallel",
            f"{layout.world_size} ranks are not a multiple of the {size} that hold one copy of the"
            f" model (tensor {layout.tp} x pipeline {layout.pp} x context {layout.cp});"
            f" {the_nearest_multiples(layout.world_size, size)} ranks",
        )


@RULES.rule("parallel_state.py: initialize_model_parallel")
def ranks_hold_whole_sets_of_experts(run: Run) -> Found:
    """World size % (ETP x EP x PP)."""
    layout, size = run.layout, run.layout.expert_model_parallel_size
    if run.model.num_moe_experts is None:
        return
    if whole_copies(layout) and layout.world_size % size:
        yield (
            EP,
            f"{layout.world_size} ranks are not a multiple of the {size} that hold all experts"
            f" (expert tensor {layout.expert_tp} x expert {layout.ep} x pipeline {layout.pp});"
            f" {the_nearest_multiples(layout.world_size, size)} ranks",
        )


@RULES.rule("parallel_state.py: initialize_model_parallel")
def optimizer_instances_divide_the_copies(run: Run) -> Found:
    """(DP x CP) % num_distributed_optimizer_instances."""
    layout, instances = run.layout, run.layout.optimizer_instances
    shards = layout.dp * layout.cp
    if whole_copies(layout) and shards % instances:
        yield (
            "parallel.num_distributed_optimizer_instances",
            f"{instances} does not divide the {shards} ranks that share the optimizer's state"
            f" (data {layout.dp} x context {layout.cp});"
            f" {the_nearest_divisors(instances, shards)}",
        )


@RULES.rule("parallel_state.py: initialize_model_parallel")
def optimizer_instances_divide_the_copies_of_experts(run: Run) -> Found:
    """Expert DP % num_distributed_optimizer_instances."""
    layout, instances = run.layout, run.layout.optimizer_instances
    if run.model.num_moe_experts is None or layout.world_size % layout.expert_model_parallel_size:
        return
    if layout.expert_dp % instances:
        yield (
            "parallel.num_distributed_optimizer_instances",
            f"{instances} does not divide the {layout.expert_dp} copies of each expert"
            f" ({layout.world_size} ranks / {layout.expert_model_parallel_size} that hold all);"
            f" {the_nearest_divisors(instances, layout.expert_dp)}",
        )


@RULES.rule("num_microbatches_calculator.py: ConstantNumMicroBatchesCalculator")
def batch_divides(run: Run) -> Found:
    """Global batch % (micro batch x DP), and at least one microbatch."""
    layout = run.layout
    step = layout.micro_batch_size * layout.dp
    if whole_copies(layout) and layout.global_batch_size % step:
        yield (
            "global_batch_size",
            f"{layout.global_batch_size} is not a multiple of {step} (micro_batch_size"
            f" {layout.micro_batch_size} x data_parallel_size {layout.dp});"
            f" {the_nearest_multiples(layout.global_batch_size, step)}",
        )
