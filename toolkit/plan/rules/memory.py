"""What saves memory: recomputation and the sharded optimizer."""

from __future__ import annotations

from toolkit.plan.rules.hardware import has_megatron
from toolkit.plan.rules.rule import Found, RuleBook, the_nearest_divisors
from toolkit.plan.shape import Run, stage_layers

RULES = RuleBook()
CONFIG = "transformer/transformer_config.py: __post_init__"
ARGUMENTS = "Megatron-LM arguments.py: validate_args"
MODULES = "recompute_modules"
EXPERT_MODULES = ("moe", "moe_act", "shared_experts")


@RULES.rule(CONFIG)
def full_recompute_says_which_layers(run: Run) -> Found:
    """recompute_granularity full without a method and a number; both without it."""
    recompute = run.layout.recompute
    details = {"method": recompute.method, "num_layers": recompute.num_layers}
    for name, value in details.items():
        if recompute.granularity == "full" and value is None:
            what = "uniform or block" if name == "method" else "1 for every layer by itself"
            yield "recompute_granularity", f"full needs recompute_{name}, too: {what}"
        elif recompute.granularity != "full" and value is not None:
            granularity = recompute.granularity or "not set"
            yield (
                f"recompute_{name}",
                f"goes with recompute_granularity full, and that is {granularity}",
            )


@RULES.rule("transformer/transformer_block.py: _checkpointed_forward")
def recomputed_layers_are_there(run: Run) -> Found:
    """Block: at most a rank's layers. Uniform: at most a chunk's, and a divisor of them.

    From megatron-core 0.19 on uniform's last chunk may be a smaller one.
    """
    recompute, number = run.layout.recompute, run.layout.recompute.num_layers
    ranks = stage_layers(run.model, run.layout)
    dealt = sum(sum(rank) for rank in ranks) == run.model.num_layers
    if recompute.granularity != "full" or number is None or not dealt:
        return
    uniform = recompute.method == "uniform"
    sizes = {layers for rank in ranks for layers in (rank if uniform else (sum(rank),)) if layers}
    most = max(sizes, default=0)
    counts = " and ".join(str(size) for size in sorted(sizes))
    if number > most > 0:
        part, parts = (" in one part", f" / parts {run.layout.vpp}") if uniform else ("", "")
        valid = the_nearest_divisors(number, *sizes) if uniform else f"1 to {most}"
        held = f"num_layers {run.model.num_layers} / pipeline {run.layout.pp}{parts}"
        held = held if len(sizes) == 1 else f"they have {counts}"
        yield (
            "recompute_num_layers",
            f"{number} is more than the {most} layers that a rank holds{part} of the pipeline"
            f" ({held}); {valid}",
        )
    elif uniform and any(layers % number for layers in sizes) and not has_megatron(run, "0.19"):
        yield (
            "recompute_num_layers",
            f"uniform cuts the {counts} layers of a part of the pipeline into chunks of {number},"
            f" and they don't divide; {the_nearest_divisors(number, *sizes)}",
        )


@RULES.rule(ARGUMENTS)
def saved_activations_are_shared_by_tensor_ranks(run: Run) -> Found:
    """distribute_saved_activations: TP > 1, full recomputation, no SP (which does it already)."""
    layout, key = run.layout, "distribute_saved_activations"
    if not layout.recompute.distribute_saved_activations:
        return
    if layout.tp == 1:
        yield key, "shares them over the tensor-parallel ranks; tensor_model_parallel_size is 1"
    if layout.recompute.granularity != "full":
        yield key, "is for recompute_granularity full; set that, or leave this out"
    if layout.sequence_parallel:
        yield key, "is what sequence_parallel does already; leave this out"


@RULES.rule(CONFIG)
def selective_recompute_names_modules(run: Run) -> Found:
    """recompute_modules without selective recomputation."""
    recompute = run.layout.recompute
    if recompute.modules and recompute.granularity != "selective":
        yield (
            MODULES,
            f"goes with recompute_granularity selective, and that is"
            f" {recompute.granularity or 'not set'}",
        )


@RULES.rule(CONFIG)
def recomputed_modules_are_there(run: Run) -> Found:
    """Modules of experts in a dense model; moe_act without grouped GEMM."""
    modules, moe = run.layout.recompute.modules, run.layout.moe
    for name in EXPERT_MODULES:
        if name in modules and run.model.num_moe_experts is None:
            yield MODULES, f"{name} is a part of experts, and the model has none"
    if "moe_act" in modules and run.model.num_moe_experts and not moe.grouped_gemm:
        yield MODULES, "moe_act needs parallel.moe_grouped_gemm: true"
    if "shared_experts" in modules and moe.shared_expert_overlap:
        yield MODULES, "shared_experts can't go with parallel.moe_shared_expert_overlap"


@RULES.rule(CONFIG)
def delayed_scaling_keeps_its_inputs(run: Run) -> Found:
    """fp8 with the delayed recipe, recomputing moe_act or layernorm."""
    if run.precision.fp8 is None or run.precision.fp8_recipe != "delayed":
        return
    for name in ("moe_act", "layernorm"):
        if name in run.layout.recompute.modules:
            yield MODULES, f"{name} can't be recomputed with fp8_recipe delayed; take tensorwise"


@RULES.rule(ARGUMENTS)
def gathered_parameters_are_sharded(run: Run) -> Found:
    """overlap_param_gather: needs the distributed optimizer or FSDP, and overlap_grad_reduce."""
    layout, key = run.layout, "parallel.overlap_param_gather"
    if not layout.overlap.param_gather:
        return
    if not layout.distributed_optimizer:
        yield key, "gathers what the distributed optimizer shards; set use_distributed_optimizer"
    if not layout.overlap.grad_reduce:
        yield key, "needs overlap_grad_reduce, which is off or has nobody to reduce with"


@RULES.rule("distributed/distributed_data_parallel.py: DistributedDataParallel")
def optimizer_instances_are_sharded(run: Run) -> Found:
    """num_distributed_optimizer_instances > 1 without the distributed optimizer."""
    if run.layout.optimizer_instances > 1 and not run.layout.distributed_optimizer:
        yield (
            "parallel.num_distributed_optimizer_instances",
            f"{run.layout.optimizer_instances} copies of a sharded state, which is not sharded;"
            " set use_distributed_optimizer to true",
        )


@RULES.rule("optimizer/optimizer_config.py: __post_init__")
def precision_aware_optimizer_is_sharded(run: Run) -> Found:
    """use_precision_aware_optimizer without the distributed optimizer."""
    if run.precision.precision_aware_optimizer and not run.layout.distributed_optimizer:
        yield "use_precision_aware_optimizer", "needs use_distributed_optimizer: true"


@RULES.rule("optimizer/optimizer_config.py: __post_init__")
def optimizer_formats_need_a_precision_aware_one(run: Run) -> Found:
    """Formats other than FP32 for the optimizer's state without use_precision_aware_optimizer."""
    if run.precision.precision_aware_optimizer:
        return
    for name in ("main_grads_dtype", "main_params_dtype", "exp_avg_dtype", "exp_avg_sq_dtype"):
        value = getattr(run.precision, name)
        if value != "fp32":
            yield name, f"{value} needs use_precision_aware_optimizer: true; fp32 does not"


@RULES.rule(ARGUMENTS)
def main_gradients_match_the_reduction(run: Run) -> Found:
    """main_grads_dtype bf16 while gradients are accumulated in FP32."""
    if run.precision.main_grads_dtype == "bf16" and run.precision.grad_reduce_in_fp32:
        yield (
            "main_grads_dtype",
            "bf16 gradients can't be accumulated in FP32; set grad_reduce_in_fp32 to false",
        )
