"""Settings of fully sharded data parallelism: Megatron's own, or PyTorch's FSDP2.

The names are those of megatron-core's ``DistributedDataParallelConfig`` and of Megatron-LM's flags.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from toolkit.stage import Settings

Count = Annotated[int, Field(ge=1)]
ShardingStrategy = Literal["no_shard", "optim", "optim_grads", "optim_grads_params"]
OF_MEGATRON = (
    "data_parallel_sharding_strategy",
    "outer_dp_sharding_strategy",
    "fsdp_double_buffer",
    "nccl_ub",
    "suggested_communication_unit_size",
    "keep_fp8_transpose_cache",
)
OF_TORCH = ("torch_fsdp2_reshard_after_forward",)


class FSDPSettings(Settings):
    """Sharding of the weights, too, over the data-parallel ranks."""

    use_megatron_fsdp: bool = Field(
        default=False, description="Shard the model with Megatron's own FSDP (GPUs)."
    )
    use_torch_fsdp2: bool = Field(
        default=False, description="Shard the model with PyTorch's FSDP2 (fully_shard)."
    )
    data_parallel_sharding_strategy: ShardingStrategy | None = Field(
        default=None,
        description="What Megatron's FSDP shards; by default all of it, optim_grads_params.",
    )
    outer_dp_sharding_strategy: Literal["no_shard", "optim"] = Field(
        default="no_shard",
        description="What Megatron's FSDP shards over its num_distributed_optimizer_instances.",
    )
    fsdp_double_buffer: bool = Field(
        default=False,
        description="Have Megatron's FSDP gather into two buffers that stay allocated.",
    )
    nccl_ub: bool = Field(
        default=False,
        description="Register those buffers with NCCL, which then takes fewer of a GPU's cores.",
    )
    suggested_communication_unit_size: Count | None = Field(
        default=None,
        description="Weights that Megatron's FSDP gathers ahead and reduces at a time; by default"
        " those of two layers, and at least 10^9.",
    )
    keep_fp8_transpose_cache: bool = Field(
        default=False,
        description="Have Megatron's FSDP keep the transposed copies of FP8 weights.",
    )
    torch_fsdp2_reshard_after_forward: bool = Field(
        default=True,
        description="Have FSDP2 free whole weights after the forward pass, and gather them again.",
    )

    @property
    def fsdp(self) -> Literal["megatron", "torch"] | None:
        """Whose FSDP it is; Megatron's where both are asked, which ``toolkit check`` refuses."""
        if self.use_megatron_fsdp:
            return "megatron"
        return "torch" if self.use_torch_fsdp2 else None

    @property
    def sharding_strategy(self) -> ShardingStrategy:
        """What is sharded under FSDP, the default filled in; FSDP2 shards everything."""
        return self.data_parallel_sharding_strategy or "optim_grads_params"

    @model_validator(mode="after")
    def _settings_are_of_the_chosen_one(self) -> Self:
        if self.use_megatron_fsdp and self.use_torch_fsdp2:
            raise ValueError("use_megatron_fsdp and use_torch_fsdp2 are two ways; set one of them")
        for chosen, names in (("use_megatron_fsdp", OF_MEGATRON), ("use_torch_fsdp2", OF_TORCH)):
            changed = [n for n in names if getattr(self, n) != type(self).model_fields[n].default]
            if changed and not getattr(self, chosen):
                verb = "go" if len(changed) > 1 else "goes"
                raise ValueError(
                    f"{', '.join(changed)} {verb} with {chosen}: true, which is not set"
                )
        if self.use_torch_fsdp2 and getattr(self, "overlap_grad_reduce", None) is not None:
            raise ValueError(
                "use_torch_fsdp2 always reduces gradients during the backward pass; leave"
                " overlap_grad_reduce out"
            )
        return self
