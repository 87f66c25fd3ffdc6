"""Megatron's optimizer and schedule from our settings, and a step that can refuse a gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed.data_parallel_base import _BaseDataParallel
from megatron.core.optimizer import (
    ChainedOptimizer,
    OptimizerConfig,
    get_megatron_optimizer,
)
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from torch import distributed

from toolkit.megatron.config import PretrainConfig
from toolkit.megatron.transformer import DTYPES

STATE = ("main_grads_dtype", "main_params_dtype", "exp_avg_dtype", "exp_avg_sq_dtype")
STATE_DTYPES = DTYPES | {"fp8": torch.uint8}
"""TransformerEngine's optimizer keeps FP8 in bytes."""


class NonFiniteGradient(Exception):
    """The gradient's norm is not a number or infinite; no weight was changed."""


def build_optimizer(
    config: PretrainConfig, chunks: Sequence[_BaseDataParallel], precision: str
) -> ChainedOptimizer:
    """Adam over the chunks' gradient buffers, its state sharded over data-parallel ranks if asked.

    Its ``step`` raises ``NonFiniteGradient`` where Megatron's would write the bad values into the
    weights: the norm is looked at before anything is changed.
    """
    settings = OptimizerConfig(
        optimizer="adam",
        lr=config.lr,
        min_lr=config.lowest_lr,
        weight_decay=config.weight_decay,
        adam_beta1=config.adam_beta1,
        adam_beta2=config.adam_beta2,
        adam_eps=config.adam_eps,
        clip_grad=config.clip_grad,
        use_distributed_optimizer=config.use_distributed_optimizer,
        overlap_param_gather=config.parallel.overlap_param_gather,
        use_precision_aware_optimizer=config.use_precision_aware_optimizer,
        **{name: STATE_DTYPES[getattr(config, name)] for name in STATE},
        fp8_recipe=config.fp8_recipe if config.fp8 else None,
        # MXFP8 weights have no place in the buffer that is gathered: the gradients' serves.
        reuse_grad_buf_for_mxfp8_param_ag=config.fp8_param and config.fp8_recipe == "mxfp8",
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        params_dtype=DTYPES[precision],
    )
    optimizer = get_megatron_optimizer(settings, list(chunks))
    if not isinstance(optimizer, ChainedOptimizer):  # of Megatron's FSDP it is one alone
        optimizer = ChainedOptimizer([optimizer])
    if config.parallel.outer_dp_sharding_strategy != "no_shard":
        # Every instance has other rows, and Megatron would take the norm over its own.
        for part in optimizer.chained_optimizers:
            part.grad_stats_parallel_group = distributed.group.WORLD
    original = optimizer.get_grad_norm

    def finite_norm() -> float:
        norm = float(original())
        if not math.isfinite(norm):
            raise NonFiniteGradient(f"the gradient's norm is {norm}")
        return norm

    optimizer.get_grad_norm = finite_norm
    _allocate_state(optimizer)
    return optimizer


def _allocate_state(optimizer: ChainedOptimizer) -> None:
    """Give torch's AdamW the state it would make itself at its first step.

    Megatron reads the state's step when it saves or loads, even before the first one. The fused
    Adam of a GPU counts steps elsewhere.
    """
    for part in optimizer.chained_optimizers:
        if isinstance(part.optimizer, torch.optim.AdamW):
            for weight in part.get_parameters():
                part.optimizer.state[weight] |= {
                    "step": torch.tensor(0.0),
                    "exp_avg": torch.zeros_like(weight),
                    "exp_avg_sq": torch.zeros_like(weight),
                }


def build_scheduler(config: PretrainConfig, optimizer: ChainedOptimizer) -> OptimizerParamScheduler:
    """The learning rate over the samples seen: Megatron counts in samples, we in iterations."""
    batch = config.global_batch_size
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=config.lr,
        min_lr=config.lowest_lr,
        lr_warmup_steps=config.warmup_iters * batch,
        lr_decay_steps=config.decay_iters * batch,
        lr_decay_style=config.lr_decay_style,
        start_wd=config.weight_decay,
        end_wd=config.weight_decay,
        wd_incr_steps=config.train_iters * batch,
        wd_incr_style="constant",
        use_checkpoint_opt_param_scheduler=False,
        override_opt_param_scheduler=True,
        wsd_decay_steps=config.wsd_decay_iters * batch,
        lr_wsd_decay_style=config.lr_wsd_decay_style,
    )


def learning_rate(optimizer: ChainedOptimizer) -> float:
    """The rate of the next step; every rank has every group, if only an empty one."""
    groups: list[dict[str, Any]] = optimizer.param_groups
    return float(groups[0]["lr"])


def count_parameters(chunks: Sequence[torch.nn.Module], device: torch.device) -> int:
    """Weights of the whole model: each once, however it is sharded, replicated or tied."""
    dense = experts = 0
    for parameter in (p for chunk in chunks for p in chunk.parameters()):
        if getattr(parameter, "shared", False):
            continue
        if not getattr(parameter, "allreduce", True):  # Megatron's mark of an expert's weights
            experts += parameter.numel()
        elif (
            getattr(parameter, "tensor_model_parallel", False)
            or parallel_state.get_tensor_model_parallel_rank() == 0
        ):
            dense += parameter.numel()
    return _sum(dense, parallel_state.get_model_parallel_group(), device) + _sum(
        experts, parallel_state.get_expert_tensor_model_pipeline_parallel_group(), device
    )


def _sum(own: int, group: distributed.ProcessGroup, device: torch.device) -> int:
    total = torch.tensor(float(own), dtype=torch.float64, device=device)
    distributed.all_reduce(total, group=group)
    return int(total.item())
