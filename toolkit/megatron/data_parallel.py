"""What reduces gradients over the data-parallel ranks: Megatron's buffers, or one of two FSDPs."""

from __future__ import annotations

from megatron.core.distributed.data_parallel_base import _BaseDataParallel
from megatron.core.models.gpt import GPTModel

from toolkit.megatron.buffers import with_buffers
from toolkit.megatron.config import PretrainConfig
from toolkit.megatron.layout import Layout
from toolkit.megatron.megatron_fsdp import shard_with_megatron
from toolkit.megatron.torch_fsdp import shard_with_torch


def data_parallel(
    config: PretrainConfig, layout: Layout, model: GPTModel, *, later: bool, gpu: bool
) -> _BaseDataParallel:
    """Wrap a chunk of the model, whose weights are set, as ``config.parallel`` says.

    Args:
        config: the stage's settings.
        layout: what follows from them.
        model: the chunk.
        later: whether the rank has another chunk before this one.
        gpu: whether it computes on a GPU.
    """
    parallel = config.parallel
    if parallel.fsdp == "torch":
        return shard_with_torch(config, model)
    asked = parallel.overlap_grad_reduce
    overlap = gpu and layout.copies > 1 if asked is None else asked
    wrap = shard_with_megatron if parallel.fsdp == "megatron" else with_buffers
    return wrap(config, model, overlap_grad_reduce=overlap, whole=later)
