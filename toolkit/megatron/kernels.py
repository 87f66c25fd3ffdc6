"""Settings of the fused kernels; the names are those of ``TransformerConfig`` of megatron-core.

Left out, each is what fits the device and the model: see ``toolkit.megatron.fusions``.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from toolkit.stage import Operational, Settings

Choice = Annotated[bool | None, Operational()]


class KernelSettings(Settings):
    """Which operations run as one kernel, and which kernels attention runs in.

    They change speed, memory, and the last bits of the result.
    """

    attention_backend: Annotated[
        Literal["auto", "flash", "fused", "unfused", "local"], Operational()
    ] = Field(
        default="auto",
        description="Attention on GPUs: TransformerEngine's own choice, FlashAttention, cuDNN"
        " (fused), or whole matrices of scores (unfused); local is megatron-core's on CPUs.",
    )
    bias_activation_fusion: Choice = Field(
        default=None,
        description="Bias and activation in one kernel; by default on GPUs where there is one.",
    )
    bias_dropout_fusion: Choice = Field(
        default=None,
        description="Bias, dropout and residual sum in one kernel; by default on GPUs.",
    )
    apply_rope_fusion: Choice = Field(
        default=None,
        description="Rotary positions in one kernel (TransformerEngine); by default on GPUs.",
    )
    gradient_accumulation_fusion: Choice = Field(
        default=None,
        description="Add to the main gradients inside the matrix product (apex); by default on"
        " GPUs with apex.",
    )
    cross_entropy_loss_fusion: Choice = Field(
        default=None,
        description="The loss in few kernels; by default on GPUs in bf16, since the native ones"
        " round the logits' gradient to it.",
    )
    cross_entropy_fusion_impl: Annotated[Literal["native", "te"], Operational()] = Field(
        default="native",
        description="The fused loss of megatron-core, or TransformerEngine's, which until 2.17"
        " works in the logits' own memory (Megatron-LM's training script calls that unstable).",
    )
