"""Builds megatron-core's ``GPTModel`` from our settings, for CPUs and GPUs alike."""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from toolkit.errors import ToolkitError
from toolkit.megatron.config import ModelConfig, ParallelConfig
from toolkit.megatron.layout import padded_vocab_size
from toolkit.megatron.settings import NumericsSettings

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
        ToolkitError: a number format that this device has no arithmetic for, or a GPU without
            TransformerEngine.
    """
    numerics = numerics or NumericsSettings()
    device = device or torch.device("cpu")
    gpu = device.type == "cuda"
    if numerics.fp8 is not None and not gpu:
        raise ToolkitError(
            f"fp8: {numerics.fp8} needs a GPU (Ada, Hopper or newer); this rank runs on the CPU",
            hint="leave fp8 out here, or set it for the cluster's runs alone",
        )
    if gpu and not _have("transformer_engine"):
        raise ToolkitError(
            "TransformerEngine is not installed: on GPUs the layers are its modules",
            hint="use the GPU image, or pip install megatron-toolkit[gpu]",
        )
    precision = precision_on(numerics, device)
    return TransformerConfig(
        **_shape(model),
        **_layout(parallel, gpu),
        **_recompute(numerics),
        **(_fp8(numerics) if numerics.fp8 else {}),
        **_kernels(model, parallel, gpu),
        params_dtype=DTYPES[precision],
        pipeline_dtype=DTYPES[precision],
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        # Not perform_initialization=False: the layers then forget to mark their weights as sharded,
        # and the gradient's norm counts some shards only.
        init_method=_leave,
        output_layer_init_method=_leave,
        embedding_init_method=_leave,
        use_cpu_initialization=not gpu,
    )


def build_model(
    model: ModelConfig,
    parallel: ParallelConfig | None = None,
    numerics: NumericsSettings | None = None,
    *,
    vocab_size: int,
    device: torch.device | None = None,
    pre_process: bool = True,
    post_process: bool = True,
    vp_stage: int | None = None,
) -> GPTModel:
    """One rank's part of the model (or one chunk of it, under interleaving), weights not yet set.

    The embedding has ``padded_vocab_size`` rows. Logits of the padding are minus infinity, so that
    the loss is that of ``vocab_size`` classes whatever the layout and the padding.

    Needs Megatron's parallel groups: see ``distributed.process_groups``.
    """
    parallel = parallel or ParallelConfig()
    device = device or torch.device("cpu")
    config = transformer_config(model, parallel, numerics, device)
    padded = padded_vocab_size(
        vocab_size, model.make_vocab_size_divisible_by, parallel.tensor_model_parallel_size
    )
    built = GPTModel(
        config=config,
        transformer_layer_spec=layer_spec(model, device),
        vocab_size=padded,
        max_sequence_length=model.max_position_embeddings,
        pre_process=pre_process,
        post_process=post_process,
        parallel_output=True,
        share_embeddings_and_output_weights=not model.untie_embeddings_and_output_weights,
        position_embedding_type=model.position_embedding_type,
        rotary_percent=model.rotary_percent,
        rotary_base=model.rotary_base,
        rope_scaling=model.use_rope_scaling,
        rope_scaling_factor=model.rope_scaling_factor,
        vp_stage=vp_stage,
    )
    if post_process and padded > vocab_size:
        _silence_padding(built, vocab_size)
    return built.to(device)


def layer_spec(model: ModelConfig, device: torch.device) -> ModuleSpec:
    """The modules of a layer: TransformerEngine's on a GPU, megatron-core's own on a CPU."""
    if device.type == "cuda":
        return get_gpt_layer_with_transformer_engine_spec(qk_layernorm=model.qk_layernorm)
    return get_gpt_layer_local_spec(
        qk_layernorm=model.qk_layernorm, normalization=model.normalization
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
    interleaved = parallel.model_chunks > 1
    return {
        "tensor_model_parallel_size": parallel.tensor_model_parallel_size,
        "pipeline_model_parallel_size": parallel.pipeline_model_parallel_size,
        "virtual_pipeline_model_parallel_size": parallel.virtual_pipeline_model_parallel_size,
        # The interleaved schedule's batches send both ways between a pair of ranks, and two of
        # them mix up which is which. One by one the messages are ordered; on a GPU they overlap
        # with the work (gloo would send from memory that is free again by then).
        "overlap_p2p_comm": interleaved and gpu,
        "batch_p2p_comm": not interleaved,
    }


def _recompute(numerics: NumericsSettings) -> dict[str, Any]:
    return {
        "recompute_granularity": numerics.recompute_granularity,
        "recompute_method": numerics.recompute_method,
        "recompute_num_layers": numerics.recompute_num_layers,
    }


def _fp8(numerics: NumericsSettings) -> dict[str, Any]:
    """Passed through to TransformerEngine's recipe (``megatron/core/fp8_utils.py``)."""
    return {
        "fp8": numerics.fp8,
        "fp8_recipe": numerics.fp8_recipe,
        "fp8_margin": numerics.fp8_margin,
        "fp8_amax_history_len": numerics.fp8_amax_history_len,
        "fp8_amax_compute_algo": numerics.fp8_amax_compute_algo,
    }


def _kernels(model: ModelConfig, parallel: ParallelConfig, gpu: bool) -> dict[str, Any]:
    """The activation and the fused kernels: all of them on a GPU, none on a CPU."""
    activation, fused = _activation(model)
    return {
        "activation_func": F.gelu if gpu and fused and activation is not F.silu else activation,
        "bias_activation_fusion": gpu and fused,
        "bias_dropout_fusion": gpu,
        "apply_rope_fusion": gpu and model.position_embedding_type == "rope",
        "cross_entropy_loss_fusion": gpu,
        "gradient_accumulation_fusion": gpu and _have("fused_weight_gradient_mlp_cuda"),
        "masked_softmax_fusion": False,
        "persist_layer_norm": False,
        "deallocate_pipeline_outputs": parallel.pipeline_model_parallel_size > 1,
    }


def _activation(model: ModelConfig) -> tuple[Callable[..., Tensor], bool]:
    """The activation, and whether megatron-core has a kernel that fuses it with the bias.

    Its fused GELU is the tanh approximation, and asks for a bias (``fusions/fused_bias_gelu.py``).
    """
    if model.activation_func == "silu":
        return F.silu, model.gated_linear_unit
    if model.activation_func == "gelu":
        return F.gelu, False
    fused = model.gated_linear_unit or model.add_bias_linear
    return functools.partial(F.gelu, approximate="tanh"), fused


def _leave(weight: Tensor) -> Tensor:
    """Megatron's initialization, left out."""
    return weight


def _have(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _silence_padding(built: GPTModel, vocab_size: int) -> None:
    """Set the logits of the padding rows to minus infinity as they leave the output layer.

    Their gradient is zero then, so writing into the tensor behind autograd's back is exact, and
    costs neither a copy nor a node.
    """
    layer = built.output_layer
    first = layer.tp_group.rank() * layer.output_size_per_partition
    kept = max(0, min(vocab_size - first, layer.output_size_per_partition))
    if kept == layer.output_size_per_partition:
        return

    def silence(module: nn.Module, inputs: object, output: tuple[Tensor, Tensor | None]) -> None:
        output[0].detach()[..., kept:] = float("-inf")

    layer.register_forward_hook(silence)


def accepted(function: Callable[..., Any], **arguments: Any) -> dict[str, Any]:
    """Those of ``arguments`` that ``function`` takes: megatron-core's versions differ in some."""
    known = inspect.signature(function).parameters
    return {name: value for name, value in arguments.items() if name in known}
