"""Megatron's own FSDP around a chunk of the model: ``use_megatron_fsdp``.

Its optimizer works on rows of FP32 copies of the weights (``ParamAndGradBuffer``), from which the
model's own are made. It runs on CPUs, too; no GPU has run it here yet.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallelConfig, FullyShardedDataParallel
from megatron.core.models.gpt import GPTModel

from toolkit.megatron.buffers import common
from toolkit.megatron.config import PretrainConfig
from toolkit.megatron.fsdp_rows import Places, Shard, Shards, find_places, first_rows, local
from toolkit.megatron.model import accepted


class MegatronFSDP(FullyShardedDataParallel):  # type: ignore[misc]
    """megatron-core's ``FullyShardedDataParallel``, with what a checkpoint asks of it."""

    places: Places
    """Where its state belongs in the whole model."""

    def shards(self) -> Shards:
        """This rank's rows of every weight; every rank calls this."""
        found: Shards = {}
        weights = dict(self.param_and_grad_buffer.optimizer_named_parameters)
        for expert in (False, True):
            own = {
                name: weight
                for name, weight in weights.items()
                if getattr(weight.orig_param, "allreduce", True) is not expert
            }
            if own:  # dense models need have no group of experts
                found |= self._shards(own, expert)
        return found

    def _shards(self, weights: dict[str, Any], expert: bool) -> Shards:
        """Of the weights that one group of ranks shares."""
        index = self.megatron_fsdp_dist_index
        inner = index.get_fsdp_group(is_expert_parallel=expert)
        outer = index.get_outer_fsdp_group() if index.use_hybrid_fsdp else None
        copy = outer.rank() if outer is not None else 0
        rows = {name: local(weight) for name, weight in weights.items()}
        if outer is not None and self.ddp_config.outer_dp_sharding_strategy != "no_shard":
            both = index.get_dp_group(is_expert_parallel=expert)
            copy, first = 0, first_rows(rows, both, index.get_logical_hybrid_fsdp_rank())
        else:
            first = first_rows(rows, inner, inner.rank())
        return {
            name: Shard(first[name], copy, weight, weight.orig_param.dtype)
            for name, weight in weights.items()
        }

    def weights_changed(self) -> None:
        """Make the model's weights of the optimizer's copies, as after a step."""
        self.param_and_grad_buffer.copy_main_weights_to_model_weights()
        self.start_param_sync()


def shard_with_megatron(
    config: PretrainConfig, model: GPTModel, *, overlap_grad_reduce: bool, whole: bool
) -> MegatronFSDP:
    """Shard a chunk, whose weights are set; ``whole`` leaves it in one bucket."""
    places, device = find_places(model), next(model.parameters()).device
    sharded = MegatronFSDP(
        config=model.config,
        ddp_config=ddp_config(config, overlap_grad_reduce, gpu=device.type == "cuda"),
        module=model,
        disable_bucketing=whole,
        device=device,
    )
    sharded.places = places
    scale_inner_gradients(sharded.param_and_grad_buffer)
    return sharded


def scale_inner_gradients(buffer: Any) -> None:
    """Have each instance divide its gradients by all ranks, where the outer ranks share them, too.

    megatron-core 0.17 to 0.19 make the buffer of an instance without the factor of the whole one:
    the gradients, and their norm, would be the ranks' sum in place of the mean.
    """
    for group in buffer.parameter_groups:
        inner = getattr(group, "hfsdp_helper_gbuf", None)
        if inner is not None:
            inner.gradient_scaling_factor = group.main_grad_buffer.gradient_scaling_factor


def ddp_config(
    config: PretrainConfig, overlap_grad_reduce: bool, *, gpu: bool
) -> DistributedDataParallelConfig:
    """megatron-core's configuration, of what this version of it has."""
    settings = _settings(config, overlap_grad_reduce)
    settings["gradient_reduce_div_fusion"] = gpu  # a kind of sum that NCCL has, and gloo has not
    return DistributedDataParallelConfig(**accepted(DistributedDataParallelConfig, **settings))


def _settings(config: PretrainConfig, overlap_grad_reduce: bool) -> dict[str, Any]:
    """The settings, under the names of all the versions of megatron-core."""
    parallel = config.parallel
    names = (
        "overlap_param_gather",
        "num_distributed_optimizer_instances",
        "outer_dp_sharding_strategy",
        "fsdp_double_buffer",
        "nccl_ub",
        "suggested_communication_unit_size",
        "keep_fp8_transpose_cache",
    )
    return (
        common(config)
        | {name: getattr(parallel, name) for name in names}
        | {
            "use_megatron_fsdp": True,
            "use_distributed_optimizer": True,
            "data_parallel_sharding_strategy": parallel.sharding_strategy,
            "overlap_grad_reduce": overlap_grad_reduce,
            # 0.17 and later ask for the formats by these names in place of grad_reduce_in_fp32.
            "megatron_fsdp_main_grads_dtype": torch.float32 if config.grad_reduce_in_fp32 else None,
        }
    )
