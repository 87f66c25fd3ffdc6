"""Builds megatron-core's ``GPTModel`` from our settings, for CPUs and GPUs alike."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from toolkit.megatron import cpu_attention
from toolkit.megatron.config import ModelConfig, ParallelConfig
from toolkit.megatron.layout import padded_vocab_size
from toolkit.megatron.settings import NumericsSettings
from toolkit.megatron.transformer import transformer_config


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
        transformer_layer_spec=block_spec(config, device, vp_stage),
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
    # FSDP2 moves a layer at a time, and no more than this rank's rows stay on the GPU.
    return built if parallel.fsdp == "torch" else built.to(device)


def block_spec(
    config: TransformerConfig, device: torch.device, vp_stage: int | None = None
) -> TransformerBlockSubmodules:
    """The modules of this rank's layers, dense ones and those with experts.

    TransformerEngine's on a GPU, megatron-core's own on a CPU.
    """
    gpu = device.type == "cuda"
    spec = get_gpt_decoder_block_spec(
        config, gpu, normalization=config.normalization, vp_stage=vp_stage
    )
    if config.context_parallel_size > 1 and not gpu:
        cpu_attention.share_sequences(spec)
    return spec


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
