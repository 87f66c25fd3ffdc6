"""How tokens travel to their experts, and what may run meanwhile."""

from __future__ import annotations

from toolkit.plan.rules.hardware import has_megatron
from toolkit.plan.rules.rule import Found, RuleBook, either
from toolkit.plan.shape import Run

RULES = RuleBook()
CONFIG = "transformer/transformer_config.py: __post_init__"
DISPATCHER = "parallel.moe_token_dispatcher_type"
SHARED = "parallel.moe_shared_expert_overlap"
OVERLAP = "parallel.overlap_moe_expert_parallel_comm"


@RULES.rule("transformer/moe/token_dispatcher.py: MoEFlexTokenDispatcher")
def flex_needs_ranks(run: Run) -> Found:
    """flex with ETP x EP 1: there is nobody to send to."""
    layout = run.layout
    ranks = layout.expert_tp * layout.ep
    if run.model.num_moe_experts and layout.moe.token_dispatcher == "flex" and ranks == 1:
        yield (
            DISPATCHER,
            "flex sends tokens among expert tensor 1 x expert 1 ranks; set"
            " expert_model_parallel_size to 2 or more, or take alltoall",
        )


@RULES.rule(CONFIG)
def flex_does_not_pad(run: Run) -> Found:
    """flex (DeepEP) with padding to capacity."""
    if run.layout.moe.token_dispatcher == "flex" and run.model.moe_pad_expert_input_to_capacity:
        yield DISPATCHER, "flex can't do moe_pad_expert_input_to_capacity; take alltoall"


@RULES.rule(CONFIG)
def shared_experts_overlap_with_all_to_all(run: Run) -> Found:
    """moe_shared_expert_overlap without shared experts, or with a dispatcher that waits.

    Before megatron-core 0.19 that is every one but alltoall, then allgather alone.
    """
    moe = run.layout.moe
    if not moe.shared_expert_overlap:
        return
    can = ("alltoall", "flex") if has_megatron(run, "0.19") else ("alltoall",)
    if run.model.moe_shared_expert_intermediate_size is None:
        yield SHARED, "there are no shared experts (model.moe_shared_expert_intermediate_size)"
    elif moe.token_dispatcher not in can:
        yield SHARED, f"goes with the dispatcher {either(can)}, not {moe.token_dispatcher}"


@RULES.rule(CONFIG)
def overlapped_dispatch_needs_expert_parallel(run: Run) -> Found:
    """EP overlap with EP 1, or with the allgather dispatcher."""
    layout = run.layout
    if not layout.overlap.moe_expert_parallel_comm:
        return
    if layout.ep == 1:
        yield OVERLAP, "nothing is sent with expert_model_parallel_size 1; set 2 or more"
    if layout.moe.token_dispatcher == "allgather":
        yield OVERLAP, "goes with the dispatcher alltoall or flex, not allgather"


@RULES.rule(CONFIG)
def overlapped_dispatch_needs_interleaving(run: Run) -> Found:
    """EP overlap in a pipeline without VPP."""
    layout = run.layout
    if layout.overlap.moe_expert_parallel_comm and layout.pp > 1 and layout.vpp == 1:
        yield (
            OVERLAP,
            f"needs the interleaved schedule in a pipeline of {layout.pp}; set"
            " virtual_pipeline_model_parallel_size to 2 or more",
        )


@RULES.rule(CONFIG)
def overlapped_dispatch_keeps_its_activations(run: Run) -> Found:
    """EP overlap with full recomputation, with that of experts, or with shared experts' overlap."""
    layout = run.layout
    if not layout.overlap.moe_expert_parallel_comm:
        return
    if layout.recompute.granularity == "full":
        yield OVERLAP, "can't go with recompute_granularity full; take selective, or leave that out"
    if "moe" in layout.recompute.modules:
        yield OVERLAP, "can't go with recompute_modules moe; take others, such as moe_act"
    if layout.moe.shared_expert_overlap:
        yield OVERLAP, "can't go with moe_shared_expert_overlap; one of the two"


@RULES.rule(CONFIG)
def overlapped_dispatch_is_16_bit(run: Run) -> Found:
    """EP overlap in FP32."""
    if run.layout.overlap.moe_expert_parallel_comm and run.precision.weights == "fp32":
        yield OVERLAP, "goes with precision bf16 or fp16, not fp32"


@RULES.rule(CONFIG)
def delayed_gradients_fill_an_overlap(run: Run) -> Found:
    """delay_wgrad_compute without EP overlap."""
    overlap = run.layout.overlap
    if overlap.delay_wgrad_compute and not overlap.moe_expert_parallel_comm:
        yield (
            "parallel.delay_wgrad_compute",
            "fills the time of overlap_moe_expert_parallel_comm, which is off; set both or none",
        )
