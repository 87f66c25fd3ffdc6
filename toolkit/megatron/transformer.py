"""megatron-core's ``TransformerConfig`` from our settings: the one place that fills it."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from toolkit.errors import ToolkitError
from toolkit.megatron.config import ModelConfig, ParallelConfig
from toolkit.megatron.experts import ExpertSettings
from toolkit.megatron.fusions import fused_kernels, gpu_kernels, have
from toolkit.megatron.settings import NumericsSettings

MODEL = frozenset(ExpertSettings.model_fields)
MOE_KERNELS = (
    "moe_token_dispatcher_type",
    "moe_grouped_gemm",
    "moe_permute_fusion",
    "moe_router_fusion",
    "moe_shared_expert_overlap",
)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def precision_on(numerics: NumericsSettings, device: torch.device) -> str:
    """The number format on ``device``: ``fp32``, ``bf16`` or ``fp16``, with ``auto`` resolved."""
    if numerics.precision == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    return numerics.precision


def transformer_config(
    model: ModelConfig,
    parallel: ParallelConfig,
    numerics: NumericsSettings | None = None,
    device: torch.device | None = None,
) -> TransformerConfig:
    """megatron-core's configuration of the layers; the one place that fills it.

    Weights are left unset: ``initialize.initialize_weights`` or a checkpoint fills them.

    Raises:
        ToolkitError: a number format that this device has no arithmetic for, a GPU without
            TransformerEngine, or settings that contradict each other.
    """
    numerics = numerics or NumericsSettings()
    device = device or torch.device("cpu")
    gpu = device.type == "cuda"
    if not gpu:
        _refuse_on_cpu(parallel, numerics)
    elif not have("transformer_engine"):
        raise ToolkitError(
            "TransformerEngine is not installed: on GPUs the layers are its modules",
            hint="use the GPU image, or pip install megatron-toolkit[gpu]",
        )
    precision = precision_on(numerics, device)
    return _accepted(
        **_shape(model),
        **_layout(parallel, gpu),
        **_experts(model, parallel, gpu),
        **_recompute(numerics),
        **_low_precision(numerics),
        **fused_kernels(model, parallel, numerics, precision, gpu=gpu),
        deallocate_pipeline_outputs=parallel.pipeline_model_parallel_size > 1,
        params_dtype=DTYPES[precision],
        pipeline_dtype=DTYPES[precision],
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        # Not perform_initialization=False: the layers then forget to mark their weights as sharded,
        # and the gradient's norm counts some shards only.
        init_method=_leave,
        output_layer_init_method=_leave,
        embedding_init_method=_leave,
        use_cpu_initialization=not gpu or parallel.fsdp == "torch",
    )


def _accepted(**settings: Any) -> TransformerConfig:
    """megatron-core's configuration; what it refuses, ``toolkit check`` refuses before it."""
    try:
        return TransformerConfig(**settings)
    except (ValueError, AssertionError) as error:
        raise ToolkitError(
            f"megatron-core refuses these settings: {error}",
            hint="toolkit check says what is wrong, and which values work",
        ) from error


def _refuse_on_cpu(parallel: ParallelConfig, numerics: NumericsSettings) -> None:
    """Name the settings that only a GPU's kernels and streams can do."""
    asked = {
        f"fp8: {numerics.fp8}": numerics.fp8 is not None,
        f"fp4: {numerics.fp4}": numerics.fp4 is not None,
        "parallel.overlap_p2p_comm": parallel.overlap_p2p_comm,
        "parallel.tp_comm_overlap": parallel.tp_comm_overlap,
        "parallel.moe_grouped_gemm": parallel.moe_grouped_gemm,
        "parallel.moe_permute_fusion": parallel.moe_permute_fusion,
        "parallel.moe_router_fusion": parallel.moe_router_fusion,
        "parallel.moe_token_dispatcher_type: flex": parallel.moe_token_dispatcher_type == "flex",
        "parallel.moe_shared_expert_overlap": parallel.moe_shared_expert_overlap,
        "parallel.nccl_ub": parallel.nccl_ub,
        "parallel.overlap_moe_expert_parallel_comm": parallel.overlap_moe_expert_parallel_comm,
        **gpu_kernels(numerics),
    }
    found = [name for name, needed in asked.items() if needed]
    if found:
        raise ToolkitError(
            f"{', '.join(found)} needs a GPU; this rank runs on the CPU",
            hint="leave it out here, or set it for the cluster's runs alone",
        )


def _shape(model: ModelConfig) -> dict[str, Any]:
    """The fields that ``ModelConfig`` and ``TransformerConfig`` have in common, and defaults."""
    common = (
        "num_layers",
        "hidden_size",
        "num_attention_heads",
        "normalization",
        "layernorm_epsilon",
        "qk_layernorm",
        "gated_linear_unit",
        "add_bias_linear",
        "add_qkv_bias",
        "hidden_dropout",
        "attention_dropout",
        "init_method_std",
    )
    return {name: getattr(model, name) for name in common} | {
        "num_query_groups": model.query_groups,
        "ffn_hidden_size": model.ffn_size,
        "kv_channels": model.head_size,
    }


def _layout(parallel: ParallelConfig, gpu: bool) -> dict[str, Any]:
    """How the model is cut, and what is sent meanwhile."""
    common = (
        "tensor_model_parallel_size",
        "pipeline_model_parallel_size",
        "sequence_parallel",
        "context_parallel_size",
        "expert_model_parallel_size",
        "expert_tensor_parallel_size",
        "num_layers_in_first_pipeline_stage",
        "num_layers_in_last_pipeline_stage",
        "account_for_embedding_in_pipeline_split",
        "account_for_loss_in_pipeline_split",
        "pipeline_model_parallel_layout",
        "overlap_moe_expert_parallel_comm",
        "delay_wgrad_compute",
        "tp_comm_overlap",
        "tp_comm_overlap_ag",
        "tp_comm_overlap_rs",
        "tp_comm_overlap_rs_dgrad",
        "tp_comm_bootstrap_backend",
    )
    chunks = parallel.model_chunks
    interleaved = chunks > 1
    # Without a word on it, megatron-core takes the number of chunks from a layout's stages; the
    # groups and the schedule would then be those of another number.
    told = interleaved or len(parallel.layout_stages) > parallel.pipeline_model_parallel_size
    # The interleaved schedule's batches send both ways between a pair of ranks, and two of them mix
    # up which is which. One by one the messages are ordered; on a GPU they overlap with the work
    # (gloo would send from memory that is free again by then).
    overlap = (
        interleaved and gpu if parallel.overlap_p2p_comm is None else parallel.overlap_p2p_comm
    )
    return {name: getattr(parallel, name) for name in common} | {
        "virtual_pipeline_model_parallel_size": chunks if told else None,
        "microbatch_group_size_per_vp_stage": parallel.microbatch_group_size_per_vp_stage,
        "cp_comm_type": parallel.cp_comm_type if parallel.context_parallel_size > 1 else None,
        "hierarchical_context_parallel_sizes": parallel.hierarchical_context_parallel_sizes,
        "overlap_p2p_comm": overlap,
        "batch_p2p_comm": not interleaved,
    }


def _experts(model: ModelConfig, parallel: ParallelConfig, gpu: bool) -> dict[str, Any]:
    """The mixture of experts; nothing in a dense model."""
    if model.num_moe_experts is None:
        return {}
    names = (*ExpertSettings.model_fields, *MOE_KERNELS)
    found = {name: getattr(model if name in MODEL else parallel, name) for name in names}
    if not gpu and parallel.expert_tensor_size > 1:
        # Ranks that share an expert gather their tokens, as many as each has; gloo gathers only
        # tensors of one size, which this dispatcher's are. The results are the same.
        found["moe_token_dispatcher_type"] = "allgather"
    return found | {"moe_ffn_hidden_size": model.expert_ffn_size}


def _recompute(numerics: NumericsSettings) -> dict[str, Any]:
    names = (
        "recompute_granularity",
        "recompute_method",
        "recompute_num_layers",
        "recompute_modules",
        "distribute_saved_activations",
    )
    return {name: getattr(numerics, name) for name in names}


def _low_precision(numerics: NumericsSettings) -> dict[str, Any]:
    """Passed through to TransformerEngine's recipes (``fp8_utils.py`` and ``fp4_utils.py``)."""
    layers = (
        "first_last_layers_bf16",
        "num_layers_at_start_in_bf16",
        "num_layers_at_end_in_bf16",
    )
    fp8 = (
        "fp8",
        "fp8_recipe",
        "fp8_param",
        "fp8_dot_product_attention",
        "fp8_margin",
        "fp8_amax_history_len",
        "fp8_amax_compute_algo",
    )
    names = (*fp8, *layers) if numerics.fp8 else ("fp4", "fp4_recipe", *layers)
    asked = numerics.fp8 or numerics.fp4
    return {name: getattr(numerics, name) for name in names} if asked else {}


def _leave(weight: Tensor) -> Tensor:
    """Megatron's initialization, left out."""
    return weight
