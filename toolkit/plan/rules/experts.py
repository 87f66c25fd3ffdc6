"""Mixtures of experts: the router's arithmetic, expert parallelism, and how tokens travel."""

from __future__ import annotations

from toolkit.plan.rules.hardware import has_megatron
from toolkit.plan.rules.rule import (
    EP,
    ETP,
    SP,
    Found,
    RuleBook,
    the_nearest,
    the_nearest_divisors,
    the_nearest_multiples,
)
from toolkit.plan.shape import Run

RULES = RuleBook()
CONFIG = "transformer/transformer_config.py: __post_init__"


@RULES.rule(CONFIG)
def expert_parallel_needs_experts(run: Run) -> Found:
    """EP > 1, or settings of experts, in a dense model."""
    if run.model.num_moe_experts is not None:
        return
    if run.layout.ep > 1:
        yield (
            EP,
            f"deals experts out to {run.layout.ep} ranks, and the model has none;"
            " set model.num_moe_experts, or leave this out",
        )
    if run.layout.etp not in (None, run.layout.tp):
        yield ETP, "cuts experts, and the model has none; leave this out"
    given = ("moe_ffn_hidden_size", "moe_shared_expert_intermediate_size")
    for name in given:
        if getattr(run.model, name):
            yield f"model.{name}", "is a size of experts; set num_moe_experts, or leave this out"


@RULES.rule(CONFIG)
def expert_parallel_divides_the_experts(run: Run) -> Found:
    """Experts % EP."""
    experts, ep = run.model.num_moe_experts, run.layout.ep
    if experts is not None and experts % ep:
        yield (
            EP,
            f"{ep} does not divide num_moe_experts {experts}; {the_nearest_divisors(ep, experts)}",
        )


@RULES.rule("tensor_parallel/layers.py: ColumnParallelLinear (core/utils.py: divide)")
def expert_tensor_parallel_divides_an_expert(run: Run) -> Found:
    """moe_ffn_hidden_size % ETP."""
    inner, etp = run.model.moe_ffn_hidden_size, run.layout.expert_tp
    if run.model.num_moe_experts is not None and inner % etp:
        yield (
            ETP,
            f"{etp} does not divide moe_ffn_hidden_size {inner};"
            f" {the_nearest_divisors(etp, inner)}",
        )


@RULES.rule("tensor_parallel/layers.py: ColumnParallelLinear (weight.allreduce)")
def experts_cut_otherwise_need_expert_parallel(run: Run) -> Found:
    """ETP other than TP with EP 1: megatron-core 0.16 takes such experts for dense weights, and
    sums up their gradients over data-parallel ranks alone; 0.19 does not."""
    layout = run.layout
    if run.model.num_moe_experts is None or has_megatron(run, "0.19"):
        return
    if layout.ep == 1 and layout.expert_tp != layout.tp:
        yield (
            ETP,
            f"{layout.expert_tp} is not tensor_model_parallel_size {layout.tp}, and with"
            " expert_model_parallel_size 1 megatron-core below 0.19 leaves the gradients of the"
            " tensor-parallel ranks' experts apart; set expert_model_parallel_size to 2 or more, or"
            f" this to {layout.tp}",
        )


@RULES.rule("tensor_parallel/layers.py: ColumnParallelLinear (core/utils.py: divide)")
def tensor_parallel_divides_the_shared_experts(run: Run) -> Found:
    """moe_shared_expert_intermediate_size % TP: shared experts are cut as the attention is."""
    inner, tp = run.model.moe_shared_expert_intermediate_size, run.layout.tp
    if run.model.num_moe_experts is not None and inner is not None and inner % tp:
        yield (
            "model.moe_shared_expert_intermediate_size",
            f"{inner} is not a multiple of tensor_model_parallel_size {tp};"
            f" {the_nearest_multiples(inner, tp)}",
        )


@RULES.rule("transformer/moe/moe_layer.py: MoELayer.forward")
def experts_with_tensor_parallel_need_sequence_parallel(run: Run) -> Found:
    """Experts and TP > 1 without SP."""
    layout = run.layout
    if run.model.num_moe_experts is not None and layout.tp > 1 and not layout.sequence_parallel:
        yield (
            SP,
            f"must be on in a model with experts and tensor_model_parallel_size {layout.tp};"
            " otherwise each of these ranks would send every token",
        )


@RULES.rule(CONFIG)
def biases_need_whole_experts(run: Run) -> Found:
    """add_bias_linear with ETP > 1."""
    model, etp = run.model, run.layout.expert_tp
    if model.num_moe_experts is not None and model.add_bias_linear and etp > 1:
        yield (
            ETP,
            f"{etp} cuts experts that have biases; set expert_tensor_parallel_size to 1, or"
            " model.add_bias_linear to false",
        )


@RULES.rule("transformer/moe/shared_experts.py: SharedExpertMLP")
def shared_experts_have_no_biases(run: Run) -> Found:
    """add_bias_linear with shared experts."""
    model = run.model
    shared = model.moe_shared_expert_intermediate_size
    if model.num_moe_experts is not None and shared and model.add_bias_linear:
        yield "model.add_bias_linear", "shared experts can't have biases; set this to false"


@RULES.rule("transformer/moe/router.py: TopKRouter")
def tokens_go_to_experts_that_there_are(run: Run) -> Found:
    """topk <= experts."""
    experts, topk = run.model.num_moe_experts, run.model.moe_router_topk
    if experts is not None and topk > experts:
        yield "model.moe_router_topk", f"{topk} is more than the {experts} experts; 1 to {experts}"


@RULES.rule(CONFIG)
def one_expert_needs_the_softmax_first(run: Run) -> Found:
    """topk 1 with a softmax over that one alone, which is always 1."""
    model = run.model
    if (
        model.num_moe_experts is not None
        and model.moe_router_topk == 1
        and model.moe_router_score_function == "softmax"
        and not model.moe_router_pre_softmax
        and model.moe_router_load_balancing_type != "sinkhorn"
    ):
        yield (
            "model.moe_router_topk",
            "a softmax over the 1 chosen expert is 1 whatever the router says, and the router"
            " learns nothing; set moe_router_pre_softmax to true",
        )


@RULES.rule(CONFIG)
def groups_divide_the_experts(run: Run) -> Found:
    """Experts % groups, chosen groups <= groups, and the two settings together."""
    model = run.model
    groups, chosen = model.moe_router_num_groups, model.moe_router_group_topk
    if model.num_moe_experts is None or (groups is None and chosen is None):
        return
    if groups is None or chosen is None:
        missing = "moe_router_num_groups" if groups is None else "moe_router_group_topk"
        given = "moe_router_group_topk" if groups is None else "moe_router_num_groups"
        yield f"model.{given}", f"needs {missing}, too: so many of so many groups"
        return
    if model.num_moe_experts % groups:
        yield (
            "model.moe_router_num_groups",
            f"{groups} does not divide num_moe_experts {model.num_moe_experts};"
            f" {the_nearest_divisors(groups, model.num_moe_experts)}",
        )
    if chosen > groups:
        yield (
            "model.moe_router_group_topk",
            f"{chosen} is more than moe_router_num_groups {groups}; 1 to {groups}",
        )


@RULES.rule("transformer/moe/moe_utils.py: group_limited_topk")
def chosen_groups_share_the_choice(run: Run) -> Found:
    """1 <= topk / chosen groups <= experts of a group."""
    model = run.model
    groups, chosen, topk = (
        model.moe_router_num_groups,
        model.moe_router_group_topk,
        model.moe_router_topk,
    )
    if not (model.num_moe_experts and groups and chosen) or model.num_moe_experts % groups:
        return
    each = model.num_moe_experts // groups
    if topk % chosen or topk // chosen > each:
        valid = [n * chosen for n in range(1, each + 1)]
        near = sorted(sorted(valid, key=lambda k: abs(k - topk))[:2])
        yield (
            "model.moe_router_topk",
            f"{topk} experts come from {chosen} groups (moe_router_group_topk) of {each} experts,"
            f" as many from each; {the_nearest(near)}",
        )


@RULES.rule(CONFIG)
def expert_bias_needs_sigmoid(run: Run) -> Found:
    """moe_router_enable_expert_bias with softmax scores."""
    model = run.model
    if model.moe_router_enable_expert_bias and model.moe_router_score_function != "sigmoid":
        yield (
            "model.moe_router_enable_expert_bias",
            f"goes with moe_router_score_function sigmoid, not {model.moe_router_score_function}",
        )


@RULES.rule(CONFIG)
def capacity_needs_a_choice_by_score(run: Run) -> Found:
    """A capacity factor with sinkhorn; padding to a capacity that is not set."""
    model = run.model
    if model.moe_expert_capacity_factor and model.moe_router_load_balancing_type == "sinkhorn":
        yield (
            "model.moe_expert_capacity_factor",
            "goes with moe_router_load_balancing_type aux_loss, seq_aux_loss or none, not sinkhorn",
        )
    if model.moe_pad_expert_input_to_capacity and model.moe_expert_capacity_factor is None:
        yield (
            "model.moe_pad_expert_input_to_capacity",
            "pads to moe_expert_capacity_factor, which is not set; 1.0 is an even share",
        )


@RULES.rule("transformer/moe/router.py: TopKRouter.sinkhorn_load_balancing")
def sinkhorn_has_no_loss(run: Run) -> Found:
    """sinkhorn with an auxiliary loss."""
    if run.model.moe_router_load_balancing_type == "sinkhorn" and run.model.moe_aux_loss_coeff:
        yield (
            "model.moe_aux_loss_coeff",
            f"{run.model.moe_aux_loss_coeff:g} weighs a loss that sinkhorn does not have; set 0",
        )


@RULES.rule("transformer/moe/moe_utils.py: get_moe_layer_freq (gpt_layer_specs.py)")
def layer_pattern_has_every_layer(run: Run) -> Found:
    """len(moe_layer_freq) = layers."""
    model = run.model
    if model.moe_layers and len(model.moe_layers) != model.num_layers:
        yield (
            "model.moe_layer_freq",
            f"has {len(model.moe_layers)} entries for num_layers {model.num_layers};"
            " one for each layer",
        )
