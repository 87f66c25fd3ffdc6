"""Megatron's contiguous gradient buffers around a chunk of the model: without FSDP."""

from __future__ import annotations

from typing import Any

from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.models.gpt import GPTModel

from toolkit.megatron.config import PretrainConfig


def with_buffers(
    config: PretrainConfig, model: GPTModel, *, overlap_grad_reduce: bool, whole: bool
) -> DistributedDataParallel:
    """Wrap a chunk; its buffers are in buckets unless ``whole``."""
    parallel = config.parallel
    settings = DistributedDataParallelConfig(
        overlap_grad_reduce=overlap_grad_reduce,
        overlap_param_gather=parallel.overlap_param_gather,
        use_distributed_optimizer=config.use_distributed_optimizer,
        num_distributed_optimizer_instances=parallel.num_distributed_optimizer_instances,
        reuse_grad_buf_for_mxfp8_param_ag=config.fp8_param and config.fp8_recipe == "mxfp8",
        **common(config),
    )
    return DistributedDataParallel(
        config=model.config, ddp_config=settings, module=model, disable_bucketing=whole
    )


def common(config: PretrainConfig) -> dict[str, Any]:
    """Of ``DistributedDataParallelConfig``, what Megatron's FSDP has in common with the buffers."""
    return {
        "grad_reduce_in_fp32": config.grad_reduce_in_fp32,
        "fp8_param_gather": config.fp8_param,
        "check_for_nan_in_grad": False,  # our guard looks, and may skip the batch instead
    }
