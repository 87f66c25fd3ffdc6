"""Fully sharded data parallelism: Megatron's own, and PyTorch's FSDP2."""

from __future__ import annotations

from toolkit.plan.memory import shards
from toolkit.plan.rules.hardware import has_megatron, older
from toolkit.plan.rules.rule import Found, RuleBook
from toolkit.plan.shape import Run

RULES = RuleBook()
ARGUMENTS = "Megatron-LM arguments.py: validate_args"
ADAPTER = "distributed/fsdp/mcore_fsdp_adapter.py"
SOURCE = "distributed/fsdp/src/megatron_fsdp"
TORCH = "parallel.use_torch_fsdp2"
MEGATRON = "parallel.use_megatron_fsdp"
STRATEGY = "parallel.data_parallel_sharding_strategy"
OUTER = "parallel.outer_dp_sharding_strategy"
INSTANCES = "parallel.num_distributed_optimizer_instances"
DOUBLE = "parallel.fsdp_double_buffer"
REDUCE = "parallel.overlap_grad_reduce"


@RULES.rule(ARGUMENTS)
def torch_fsdp_stands_alone(run: Run) -> Found:
    """FSDP2: PP 1, EP 1, no distributed optimizer, untied embeddings, no fp16, no FP8 weights."""
    layout = run.layout
    if layout.fsdp != "torch":
        return
    wrong = {
        f"pipeline_model_parallel_size {layout.pp}; it needs 1": layout.pp > 1,
        f"expert_model_parallel_size {layout.ep}; it needs 1": layout.ep > 1,
        "use_distributed_optimizer, as it shards the state itself; set that to false": (
            layout.distributed_optimizer
        ),
        "tied embeddings; set model.untie_embeddings_and_output_weights to true": not (
            run.model.untie_embeddings_and_output_weights
        ),
        "precision fp16; it takes bf16 or fp32": run.precision.weights == "fp16",
        "fp8_param, as it gathers BF16; leave that out": run.precision.fp8_param,
    }
    for sentence, found in wrong.items():
        if found:
            yield TORCH, f"can't go with {sentence}"


@RULES.rule("distributed/torch_fully_sharded_data_parallel.py: fully_shard without a policy")
def torch_fsdp_reduces_in_the_weights_format(run: Run) -> Found:
    """FSDP2 with BF16 weights and grad_reduce_in_fp32."""
    precision = run.precision
    if run.layout.fsdp == "torch" and precision.weights == "bf16" and precision.grad_reduce_in_fp32:
        yield (
            "grad_reduce_in_fp32",
            "use_torch_fsdp2 adds up and reduces gradients in the weights' format, bf16; set this"
            " to false, or take use_megatron_fsdp",
        )


@RULES.rule(ARGUMENTS)
def megatron_fsdp_has_the_distributed_optimizer(run: Run) -> Found:
    """Megatron's FSDP without the distributed optimizer."""
    if run.layout.fsdp == "megatron" and not run.layout.distributed_optimizer:
        yield MEGATRON, "needs use_distributed_optimizer: true"


@RULES.rule(f"{ADAPTER}: _get_dp_tp_mesh")
def megatron_fsdp_has_no_pipeline(run: Run) -> Found:
    """Megatron's FSDP with PP > 1: its mesh holds data, expert and tensor ranks alone."""
    layout = run.layout
    if layout.fsdp == "megatron" and layout.pp > 1:
        yield (
            MEGATRON,
            f"can't go with pipeline_model_parallel_size {layout.pp}: it takes all"
            f" {layout.world_size} ranks for data x tensor parallelism; it needs 1",
        )


@RULES.rule(f"{SOURCE}/param_and_grad_buffer.py: _init_each_parameter_group_buffers")
def megatron_fsdp_has_something_to_shard(run: Run) -> Found:
    """no_shard, which is data parallelism without FSDP."""
    if run.layout.fsdp == "megatron" and run.layout.sharding == "no_shard":
        yield (
            STRATEGY,
            "no_shard is what there is without FSDP; leave use_megatron_fsdp out, or take optim,"
            " optim_grads or optim_grads_params",
        )


@RULES.rule(f"{SOURCE}/param_and_grad_buffer.py: _bucket_group_gradient_reduce")
def megatron_fsdp_shards_over_several_ranks(run: Run) -> Found:
    """Sharded gradients of weights that one rank alone has are added to themselves."""
    layout = run.layout
    if layout.fsdp != "megatron" or layout.sharding not in ("optim_grads", "optim_grads_params"):
        return
    dense, expert = shards(layout)
    if dense == 1:
        yield (
            MEGATRON,
            f"has one rank to shard over: data {layout.dp} x context {layout.cp} / instances"
            f" {layout.optimizer_instances}; megatron-core then counts gradients twice. It needs 2",
        )
    elif run.model.num_moe_experts and layout.ep > 1 and expert == 1:
        yield (
            MEGATRON,
            f"has one rank to shard each expert over: {layout.world_size} ranks / (expert"
            f" {layout.ep} x expert tensor {layout.expert_tp}); megatron-core then counts their"
            " gradients twice. It needs 2",
        )


@RULES.rule(f"{SOURCE}/megatron_fsdp.py: MegatronFSDP")
def sharded_gradients_are_reduced_at_once(run: Run) -> Found:
    """overlap_grad_reduce false with a strategy that shards gradients."""
    layout = run.layout
    sharded = layout.fsdp == "megatron" and layout.sharding in ("optim_grads", "optim_grads_params")
    if sharded and not layout.overlap.grad_reduce and layout.dp * layout.cp > 1:
        yield (
            REDUCE,
            f"{layout.sharding} reduces gradients during the backward pass; leave this out, or take"
            " optim",
        )


@RULES.rule(f"{SOURCE}/param_and_grad_buffer.py: _bucket_group_gradient_reduce")
def whole_gradients_are_reduced_once(run: Run) -> Found:
    """optim with overlap_grad_reduce, which counts a rank's own gradients twice before 0.17."""
    layout = run.layout
    whole = layout.fsdp == "megatron" and layout.sharding == "optim"
    if whole and layout.overlap.grad_reduce and not has_megatron(run, "0.17.0"):
        yield (
            STRATEGY,
            "optim with overlap_grad_reduce (the default on GPUs) adds each rank's own gradients to"
            f" the sum once more before megatron-core 0.17; set {REDUCE} to false, or take"
            " optim_grads or optim_grads_params",
        )


@RULES.rule(f"{SOURCE}/param_and_grad_buffer.py: reduce_scatter_gradients")
def instances_add_their_gradients(run: Run) -> Found:
    """optim without overlap_grad_reduce, over several instances: each keeps its own gradients."""
    layout = run.layout
    whole = layout.fsdp == "megatron" and layout.sharding == "optim"
    if whole and layout.optimizer_instances > 1 and not layout.overlap.grad_reduce:
        yield (
            INSTANCES,
            f"{layout.optimizer_instances} copies under {STRATEGY} optim never add up their"
            f" gradients without {REDUCE}; take 1, or optim_grads or optim_grads_params",
        )


@RULES.rule("optimizer/__init__.py: _get_megatron_optimizer_based_on_param_groups")
def megatron_fsdp_keeps_its_state_in_fp32(run: Run) -> Found:
    """use_precision_aware_optimizer, which gets no gradients before 0.18, and no state to load."""
    if run.layout.fsdp == "megatron" and run.precision.precision_aware_optimizer:
        yield (
            "use_precision_aware_optimizer",
            "can't go with use_megatron_fsdp: before megatron-core 0.18 no weight would change, and"
            " later ones can't make that optimizer's state to go on from a checkpoint; leave it"
            " out",
        )


@RULES.rule(f"{SOURCE}/fully_shard.py: fully_shard")
def the_outer_group_shards_what_the_inner_does(run: Run) -> Found:
    """outer_dp_sharding_strategy optim: several instances, and all sharded inside."""
    layout = run.layout
    if layout.fsdp != "megatron" or layout.outer_sharding == "no_shard":
        return
    if layout.optimizer_instances == 1:
        yield OUTER, f"{layout.outer_sharding} shards over {INSTANCES}, which is 1; set that to 2"
    if layout.sharding != "optim_grads_params":
        yield OUTER, f"{layout.outer_sharding} needs {STRATEGY} optim_grads_params"
    if run.precision.fp8_param and run.precision.fp8_recipe == "mxfp8":
        yield OUTER, "can't go with fp8_param in mxfp8, whose transposed weights it does not shard"


@RULES.rule(f"{ADAPTER}: _init_dist_index")
def hybrid_fsdp_has_no_expert_groups(run: Run) -> Found:
    """Megatron's FSDP with several instances and expert parallelism, before 0.19."""
    layout = run.layout
    hybrid = layout.fsdp == "megatron" and layout.optimizer_instances > 1
    if hybrid and layout.ep > 1 and not has_megatron(run, "0.19.0"):
        yield (
            INSTANCES,
            f"{layout.optimizer_instances} under use_megatron_fsdp can't go with"
            f" expert_model_parallel_size {layout.ep} before megatron-core 0.19; take 1",
        )


@RULES.rule(f"{SOURCE}/megatron_fsdp.py: _register_fsdp_hooks")
def experts_overlap_calls_no_whole_layer(run: Run) -> Found:
    """Megatron's FSDP gathers weights as a layer is called, and EP overlap calls its parts."""
    layout = run.layout
    overlap = layout.fsdp == "megatron" and layout.overlap.moe_expert_parallel_comm
    if overlap and not has_megatron(run, "0.19.0"):
        yield (
            "parallel.overlap_moe_expert_parallel_comm",
            "can't go with use_megatron_fsdp before megatron-core 0.19; leave it out",
        )


@RULES.rule(f"{ADAPTER}: FullyShardedDataParallel")
def double_buffers_are_for_whole_layers(run: Run) -> Found:
    """fsdp_double_buffer (and nccl_ub) beside experts' overlapped communication."""
    layout = run.layout
    both = layout.fsdp_double_buffer and layout.overlap.moe_expert_parallel_comm
    if both and has_megatron(run, "0.19.0"):
        key = "parallel.nccl_ub" if layout.nccl_ub else DOUBLE
        yield key, "can't go with overlap_moe_expert_parallel_comm; leave one of them out"


@RULES.rule("distributed/distributed_data_parallel_config.py: __post_init__")
def registered_buffers_stay_where_they_are(run: Run) -> Found:
    """nccl_ub with the allocator's expandable segments, before torch 2.11."""
    settings = dict(run.machine.environment).get("PYTORCH_CUDA_ALLOC_CONF", "")
    moving = "expandable_segments:True" in settings.split(",")
    if run.layout.nccl_ub and moving and older(run.machine.torch or "0", "2.11.0"):
        yield (
            "parallel.nccl_ub",
            "can't go with expandable_segments:True before torch 2.11, and the profile's"
            f" PYTORCH_CUDA_ALLOC_CONF is {settings}",
        )


@RULES.rule(f"{ADAPTER}: FullyShardedDataParallel")
def fused_accumulation_knows_sharded_gradients(run: Run) -> Found:
    """gradient_accumulation_fusion with Megatron's FSDP: TransformerEngine 2.10."""
    layout, installed = run.layout, run.machine.transformer_engine
    fused = layout.fsdp == "megatron" and layout.fusions.gradient_accumulation
    if fused and older(installed, "2.10.0"):
        yield (
            "gradient_accumulation_fusion",
            f"needs TransformerEngine 2.10 under use_megatron_fsdp, and here is {installed}; leave"
            " it out",
        )
