"""PyTorch's FSDP2 around a chunk of the model: ``use_torch_fsdp2``.

megatron-core's wrapper shards every transformer layer, the embedding and the output layer by rows
over the data-parallel (and context-parallel) ranks. What its schedules call besides is added here.
"""

from __future__ import annotations

from typing import Any

from megatron.core.distributed import TorchFullyShardedDataParallel
from megatron.core.distributed.torch_fully_sharded_data_parallel_config import (
    TorchFullyShardedDataParallelConfig,
)
from megatron.core.models.gpt import GPTModel
from torch.distributed.fsdp import FSDPModule

from toolkit.megatron.config import PretrainConfig
from toolkit.megatron.fsdp_rows import Places, Shard, Shards, find_places, first_rows, local


class TorchFSDP(TorchFullyShardedDataParallel):  # type: ignore[misc]
    """megatron-core's ``TorchFullyShardedDataParallel``, whole.

    The original takes no ``force_all_reduce`` before 0.17, though ``finalize_model_grads`` gives
    one: no step could end. And it leaves gradients as they are when asked to scale them, which
    the loss of packed rows needs.
    """

    places: Places
    """Where its state belongs in the whole model."""

    def finish_grad_sync(self, force_all_reduce: bool = False) -> None:
        """Nothing is left to do: torch reduces in the backward pass."""

    def scale_gradients(self, scaling_factor: float) -> None:
        """Multiply the sum of the ranks' gradients; torch has divided it by the ranks."""
        scale = scaling_factor * self.process_group.size()
        for weight in self.parameters():
            if weight.grad is not None:
                weight.grad.mul_(scale)

    def shards(self) -> Shards:
        """This rank's rows of every weight; every rank calls this."""
        for module in self.module.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # weights may be whole since an evaluation
        weights: dict[str, Any] = dict(self.module.named_parameters())
        own = {name: local(weight) for name, weight in weights.items()}
        first = first_rows(own, self.process_group, self.process_group.rank())
        return {
            name: Shard(
                first=first[name],
                copy=0,
                master=getattr(weight, "main_param", weight),  # an FP32 copy, of BF16 weights
                dtype=weight.dtype,
                model=own[name],
            )
            for name, weight in weights.items()
        }

    def weights_changed(self) -> None:
        """Nothing is left to do: the model computes with the rows that were written."""


def shard_with_torch(config: PretrainConfig, model: GPTModel) -> TorchFSDP:
    """Shard a chunk, whose weights are set, over the ranks that have the same ones."""
    settings = TorchFullyShardedDataParallelConfig(
        reshard_after_forward=config.parallel.torch_fsdp2_reshard_after_forward
    )
    places = find_places(model)
    sharded = TorchFSDP(config=model.config, ddp_config=settings, module=model)
    sharded.places = places
    return sharded
