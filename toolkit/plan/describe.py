"""From a pretraining stage's settings to the shapes that planning reckons with."""

from __future__ import annotations

import json

from toolkit.megatron.config import ModelConfig, ParallelConfig, PretrainConfig
from toolkit.megatron.pipeline_layout import LayoutMistake, LayoutSetting, stages_of
from toolkit.plan.settings import UNREAD_OF_BUFFERS, UNREAD_OF_FSDP
from toolkit.plan.shape import (
    Fusions,
    Layout,
    Machine,
    ModelShape,
    MoeKernels,
    Overlap,
    Precision,
    Recompute,
    Run,
)

UNREAD = {*UNREAD_OF_BUFFERS, *UNREAD_OF_FSDP}
SAME_IN_MODEL = (
    "num_layers",
    "hidden_size",
    "num_attention_heads",
    "max_position_embeddings",
    "make_vocab_size_divisible_by",
    "gated_linear_unit",
    "activation_func",
    "add_bias_linear",
    "add_qkv_bias",
    "qk_layernorm",
    "normalization",
    "position_embedding_type",
    "rotary_percent",
    "untie_embeddings_and_output_weights",
    "hidden_dropout",
    "attention_dropout",
    "num_moe_experts",
    "moe_router_topk",
    "moe_shared_expert_intermediate_size",
    "moe_shared_expert_gate",
    "moe_router_pre_softmax",
    "moe_router_score_function",
    "moe_router_num_groups",
    "moe_router_group_topk",
    "moe_router_enable_expert_bias",
    "moe_router_load_balancing_type",
    "moe_aux_loss_coeff",
    "moe_expert_capacity_factor",
    "moe_pad_expert_input_to_capacity",
)
SAME_IN_PRECISION = (
    "fp8",
    "fp8_recipe",
    "fp8_dot_product_attention",
    "fp8_param",
    "fp4",
    "fp4_recipe",
    "first_last_layers_bf16",
    "num_layers_at_start_in_bf16",
    "num_layers_at_end_in_bf16",
    "grad_reduce_in_fp32",
    "main_grads_dtype",
    "main_params_dtype",
    "exp_avg_dtype",
    "exp_avg_sq_dtype",
)


def run_of(
    config: PretrainConfig,
    world_size: int,
    vocab_size: int | None = None,
    machine: Machine | None = None,
) -> Run:
    """The whole of a stage on ``world_size`` ranks; ``machine`` is what a profile says of GPUs."""
    return Run(
        model_shape(config.model, vocab_size),
        layout_shape(config, world_size),
        precision_of(config),
        machine or Machine(),
    )


def model_shape(model: ModelConfig, vocab_size: int | None = None) -> ModelShape:
    """A model with its defaults filled in; ``vocab_size`` is without padding.

    Without one it is the published model's, where the settings name it.
    """
    return ModelShape(
        **{name: getattr(model, name) for name in SAME_IN_MODEL},
        ffn_hidden_size=model.ffn_size,
        num_query_groups=model.query_groups,
        kv_channels=model.head_size,
        kv_channels_follow=model.kv_channels is None,
        vocab_size=vocab_size or model.vocab_size,
        moe_ffn_hidden_size=(
            model.expert_ffn_size if model.num_moe_experts else model.moe_ffn_hidden_size or 0
        ),
        moe_layers=tuple(model.moe_layers),
    )


def layout_shape(config: PretrainConfig, world_size: int) -> Layout:
    """A layout with its defaults filled in, those of a GPU where they differ."""
    parallel = config.parallel
    stages, mistake = _stages(parallel.pipeline_model_parallel_layout)
    return Layout(
        world_size=world_size,
        tp=parallel.tensor_model_parallel_size,
        pp=parallel.pipeline_model_parallel_size,
        vpp=parallel.model_chunks,
        cp=parallel.context_parallel_size,
        ep=parallel.expert_model_parallel_size,
        etp=parallel.expert_tensor_parallel_size,
        sequence_parallel=parallel.sequence_parallel,
        cp_comm_type=parallel.cp_comm_type,
        hierarchical_cp=tuple(parallel.hierarchical_context_parallel_sizes or ()),
        microbatch_group=parallel.microbatch_group_size_per_vp_stage,
        first_stage_layers=parallel.num_layers_in_first_pipeline_stage,
        last_stage_layers=parallel.num_layers_in_last_pipeline_stage,
        account_for_embedding=parallel.account_for_embedding_in_pipeline_split,
        account_for_loss=parallel.account_for_loss_in_pipeline_split,
        stages=stages,
        stages_mistake=mistake,
        micro_batch_size=config.micro_batch_size,
        global_batch_size=config.global_batch_size,
        seq_length=config.sequence,
        distributed_optimizer=config.use_distributed_optimizer,
        optimizer_instances=parallel.num_distributed_optimizer_instances,
        fsdp=parallel.fsdp,
        sharding=parallel.sharding_strategy,
        outer_sharding=parallel.outer_dp_sharding_strategy,
        fsdp_double_buffer=parallel.fsdp_double_buffer or parallel.nccl_ub,
        nccl_ub=parallel.nccl_ub,
        reshard_after_forward=parallel.torch_fsdp2_reshard_after_forward,
        recompute=_recompute(config),
        overlap=_overlap(parallel, world_size),
        moe=_moe_kernels(parallel),
        fusions=_fusions(config),
        unread=_unread(parallel),
    )


def precision_of(config: PretrainConfig) -> Precision:
    """The number formats; ``auto`` is what it is on GPUs."""
    return Precision(
        weights="bf16" if config.precision == "auto" else config.precision,
        precision_aware_optimizer=config.use_precision_aware_optimizer,
        **{name: getattr(config, name) for name in SAME_IN_PRECISION},
    )


def _stages(layout: LayoutSetting | None) -> tuple[tuple[str, ...], str | None]:
    """The letters of a layout's stages, or why it can't be read."""
    if layout is None:
        return (), None
    try:
        stages = stages_of(layout)
    except LayoutMistake as mistake:
        return (), str(mistake)
    return stages, None if stages else "holds no stage"


def _recompute(config: PretrainConfig) -> Recompute:
    return Recompute(
        granularity=config.recompute_granularity,
        method=config.recompute_method,
        num_layers=config.recompute_num_layers,
        modules=tuple(config.recompute_modules or ()),
        distribute_saved_activations=config.distribute_saved_activations,
    )


def _unread(parallel: ParallelConfig) -> tuple[tuple[str, str], ...]:
    """Settings that change no rule, memory or time here, where they are not the defaults."""
    given = parallel.model_dump(mode="json", include=UNREAD, exclude_defaults=True)
    return tuple((name, json.dumps(value)) for name, value in given.items())


def _overlap(parallel: ParallelConfig, world_size: int) -> Overlap:
    reduce, p2p = parallel.overlap_grad_reduce, parallel.overlap_p2p_comm
    # Context-parallel ranks have the same weights, too, and reduce the gradients with the others.
    alone = parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size
    return Overlap(
        grad_reduce=world_size > alone if reduce is None else reduce,
        param_gather=parallel.overlap_param_gather,
        p2p=parallel.model_chunks > 1 if p2p is None else p2p,
        tp_comm=parallel.tp_comm_overlap,
        moe_expert_parallel_comm=parallel.overlap_moe_expert_parallel_comm,
        delay_wgrad_compute=parallel.delay_wgrad_compute,
    )


def _moe_kernels(parallel: ParallelConfig) -> MoeKernels:
    return MoeKernels(
        token_dispatcher=parallel.moe_token_dispatcher_type,
        grouped_gemm=parallel.moe_grouped_gemm,
        permute_fusion=parallel.moe_permute_fusion,
        router_fusion=parallel.moe_router_fusion,
        shared_expert_overlap=parallel.moe_shared_expert_overlap,
    )


def _fusions(config: PretrainConfig) -> Fusions:
    return Fusions(
        attention_backend=config.attention_backend,
        bias_activation=config.bias_activation_fusion,
        bias_dropout=config.bias_dropout_fusion,
        rope=config.apply_rope_fusion,
        gradient_accumulation=config.gradient_accumulation_fusion,
        cross_entropy=config.cross_entropy_loss_fusion,
        cross_entropy_impl=config.cross_entropy_fusion_impl,
    )
