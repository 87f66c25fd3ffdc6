"""The fused kernels of a model on a device: what was asked for, or what fits."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from megatron.core.transformer.enums import AttnBackend
from torch import Tensor

from toolkit.errors import ToolkitError
from toolkit.megatron.config import ModelConfig, ParallelConfig
from toolkit.megatron.kernels import KernelSettings

FUSIONS = (
    "bias_activation_fusion",
    "bias_dropout_fusion",
    "apply_rope_fusion",
    "gradient_accumulation_fusion",
    "cross_entropy_loss_fusion",
)
ACCUMULATION = "fused_weight_gradient_mlp_cuda"
"""Apex's module of ``gradient_accumulation_fusion``."""

FLASH = ("flash_attn", "flash_attn_3")
"""FlashAttention's modules, of its second and third generation."""


def gpu_kernels(settings: KernelSettings) -> dict[str, bool]:
    """Which of the settings name kernels that only GPUs have, as a user would write them."""
    backend = settings.attention_backend
    asked: dict[str, bool] = {f"{name}: true": bool(getattr(settings, name)) for name in FUSIONS}
    return asked | {f"attention_backend: {backend}": backend not in ("auto", "local")}


def fused_kernels(
    model: ModelConfig,
    parallel: ParallelConfig,
    settings: KernelSettings,
    precision: str,
    *,
    gpu: bool,
) -> dict[str, Any]:
    """The activation, attention's kernels, and the fused ones, as ``TransformerConfig`` has them.

    Raises:
        ToolkitError: kernels that are not installed, or that TransformerEngine's layers have none
            of.
    """
    activation, has_kernel = activation_of(model)
    grouped_biases = parallel.moe_grouped_gemm and model.add_bias_linear
    fitting = {
        "bias_activation_fusion": gpu and has_kernel and _suits_experts(model),
        "bias_dropout_fusion": gpu and not (model.num_moe_experts and grouped_biases),
        "apply_rope_fusion": gpu and model.position_embedding_type == "rope",
        "gradient_accumulation_fusion": gpu and parallel.fsdp is None and have(ACCUMULATION),
        "cross_entropy_loss_fusion": gpu and precision == "bf16",
    }
    found: dict[str, Any] = {name: _chosen(settings, name, fitting[name]) for name in FUSIONS}
    if gpu:
        _refuse_missing(settings)
    # megatron-core tells its fused GELU by this function, and computes the tanh approximation.
    tanh = found["bias_activation_fusion"] and activation is not F.silu
    return found | {
        "activation_func": F.gelu if tanh else activation,
        "attention_backend": AttnBackend[settings.attention_backend if gpu else "auto"],
        "cross_entropy_fusion_impl": settings.cross_entropy_fusion_impl,
        "transformer_impl": "transformer_engine" if gpu else "local",
        # Of megatron-core's own layers, which GPUs don't run here.
        "masked_softmax_fusion": False,
        "persist_layer_norm": False,
    }


def _suits_experts(model: ModelConfig) -> bool:
    """Whether the experts, if any, are what the kernel that weighs their output is written for."""
    plain = model.activation_func == "silu" and not model.add_bias_linear
    return model.num_moe_experts is None or plain


def _refuse_missing(settings: KernelSettings) -> None:
    """Name the kernels that were asked for and are not there."""
    if settings.gradient_accumulation_fusion and not have(ACCUMULATION):
        raise ToolkitError(
            "gradient_accumulation_fusion: apex's fused_weight_gradient_mlp_cuda is not installed",
            hint="build apex with its CUDA extensions, or leave the setting out",
        )
    if settings.attention_backend == "flash" and not any(map(have, FLASH)):
        raise ToolkitError(
            "attention_backend: flash: the package flash-attn is not installed",
            hint="pip install flash-attn, or take auto or fused",
        )
    if settings.attention_backend == "local":
        raise ToolkitError(
            "attention_backend: local is megatron-core's own attention, and on GPUs the layers are"
            " TransformerEngine's",
            hint="auto, flash, fused or unfused",
        )


def _chosen(settings: KernelSettings, name: str, fitting: bool) -> bool:
    asked = getattr(settings, name)
    return fitting if asked is None else bool(asked)


def activation_of(model: ModelConfig) -> tuple[Callable[..., Tensor], bool]:
    """The activation, and whether megatron-core has a kernel that fuses it with the bias.

    Its fused GELU is the tanh approximation, and asks for a bias (``fusions/fused_bias_gelu.py``).
    """
    if model.activation_func == "silu":
        return F.silu, model.gated_linear_unit
    if model.activation_func == "gelu":
        return F.gelu, False
    fused = model.gated_linear_unit or model.add_bias_linear
    return functools.partial(F.gelu, approximate="tanh"), fused


def have(module: str) -> bool:
    """Whether a module is installed, without importing it."""
    return importlib.util.find_spec(module) is not None
