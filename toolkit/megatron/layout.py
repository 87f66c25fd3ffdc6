"""What follows from a parallel layout and a number of ranks; free of torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from toolkit.errors import ToolkitError
from toolkit.megatron.config import PretrainConfig


def padded_vocab_size(vocab_size: int, divisible_by: int, tensor_model_parallel_size: int) -> int:
    """Rows of the embedding: ``vocab_size`` rounded up to a multiple of both other arguments.

    Megatron-LM rounds up to their product instead. With the least common multiple the shape is
    the same for every power of two, so that a checkpoint fits every layout.
    """
    multiple = math.lcm(divisible_by, tensor_model_parallel_size)
    return -(-vocab_size // multiple) * multiple


@dataclass(frozen=True)
class Layout:
    """The sizes that follow from a valid configuration and a number of ranks."""

    world_size: int
    tensor_model_parallel_size: int
    pipeline_model_parallel_size: int
    virtual_pipeline_model_parallel_size: int | None
    context_parallel_size: int
    expert_model_parallel_size: int
    expert_tensor_parallel_size: int
    data_parallel_size: int
    num_microbatches: int

    @property
    def copies(self) -> int:
        """Ranks that have the same weights: data times context parallelism."""
        return self.data_parallel_size * self.context_parallel_size


def layout_of(config: PretrainConfig, world_size: int) -> Layout:
    """The layout of ``config`` on ``world_size`` ranks.

    ``toolkit check`` knows all the rules of layouts (``toolkit.plan.layout``); here stand those
    that depend on how many ranks there really are.

    Raises:
        ToolkitError: the ranks, or the global batch, do not divide.
    """
    parallel = config.parallel
    for holders, what in (
        (parallel.model_parallel_size, "model"),
        (parallel.expert_ranks, "experts"),
    ):
        if world_size % holders:
            raise ToolkitError(
                f"{world_size} ranks are not a multiple of the {holders} that hold one copy of the"
                f" {what}",
                hint="toolkit check says which layouts work",
            )
    copies, chunks = world_size // parallel.model_parallel_size, parallel.model_chunks
    step = config.micro_batch_size * copies
    if config.global_batch_size % step:
        raise ToolkitError(
            f"global_batch_size {config.global_batch_size} is not a multiple of {step}"
            f" (micro_batch_size {config.micro_batch_size} x data_parallel_size {copies})",
            hint="toolkit check says which values work",
        )
    return Layout(
        world_size=world_size,
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=chunks if chunks > 1 else None,
        context_parallel_size=parallel.context_parallel_size,
        expert_model_parallel_size=parallel.expert_model_parallel_size,
        expert_tensor_parallel_size=parallel.expert_tensor_size,
        data_parallel_size=copies,
        num_microbatches=config.global_batch_size // step,
    )
