"""The arithmetic of a parallel layout, free of torch: what must divide what, and what follows.

The rules are Megatron-LM's (``parallel_state.py``, ``transformer_config.py``, ``schedules.py`` and
``num_microbatches_calculator.py``). ``toolkit check`` and the run itself both ask here, so that
both refuse the same things in the same words.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
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


def data_parallel_size(world_size: int, model_parallel_size: int) -> int:
    """Copies of the model among ``world_size`` ranks; the caller has checked that it divides."""
    return world_size // model_parallel_size


def num_microbatches(global_batch_size: int, micro_batch_size: int, data_parallel: int) -> int:
    """Microbatches that each rank accumulates per step; the caller has checked that it divides."""
    return global_batch_size // (micro_batch_size * data_parallel)


@dataclass(frozen=True)
class Layout:
    """The sizes that follow from a valid configuration and a number of ranks."""

    world_size: int
    tensor_model_parallel_size: int
    pipeline_model_parallel_size: int
    virtual_pipeline_model_parallel_size: int | None
    data_parallel_size: int
    num_microbatches: int


def layout_of(config: PretrainConfig, world_size: int) -> Layout:
    """The layout of ``config`` on ``world_size`` ranks.

    Raises:
        ToolkitError: naming everything that does not divide.
    """
    problems = list(layout_problems(config, world_size))
    if problems:
        lines = "\n".join(f"  {key}: {message}" for key, message in problems)
        raise ToolkitError(f"the layout does not work on {world_size} ranks:\n{lines}")
    parallel = config.parallel
    copies = data_parallel_size(world_size, parallel.model_parallel_size)
    return Layout(
        world_size=world_size,
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline_model_parallel_size,
        data_parallel_size=copies,
        num_microbatches=num_microbatches(
            config.global_batch_size, config.micro_batch_size, copies
        ),
    )


def layout_problems(config: PretrainConfig, world_size: int) -> Iterator[tuple[str, str]]:
    """Everything that keeps ``config`` from running on ``world_size`` ranks: (key, message)."""
    yield from _tensor_problems(config)
    yield from _pipeline_problems(config)
    yield from _batch_problems(config, world_size)


def _tensor_problems(config: PretrainConfig) -> Iterator[tuple[str, str]]:
    key = "parallel.tensor_model_parallel_size"
    size, model = config.parallel.tensor_model_parallel_size, config.model
    divisible = (
        ("num_attention_heads", model.num_attention_heads),
        ("ffn_hidden_size", model.ffn_size),
    )
    for name, value in divisible:
        if value % size:
            yield key, f"{size} does not divide {name} {value}; {valid_divisors(value)}"
    groups = model.query_groups
    if groups % size and size % groups:
        yield (
            key,
            f"{size} and num_query_groups {groups} must be multiples one of the other;"
            f" {valid_divisors(groups)}",
        )


def _pipeline_problems(config: PretrainConfig) -> Iterator[tuple[str, str]]:
    parallel, layers = config.parallel, config.model.num_layers
    size, chunks = parallel.pipeline_model_parallel_size, parallel.model_chunks
    if layers % size:
        key = "parallel.pipeline_model_parallel_size"
        yield key, f"{size} does not divide num_layers {layers}; {valid_divisors(layers)}"
    elif (layers // size) % chunks:
        per_rank = layers // size
        yield (
            "parallel.virtual_pipeline_model_parallel_size",
            f"{chunks} does not divide the {per_rank} layers of a pipeline rank"
            f" (num_layers {layers} / pipeline_model_parallel_size {size});"
            f" {valid_divisors(per_rank)}",
        )
    recompute = config.recompute_num_layers
    if recompute is not None and recompute > layers // (size * chunks):
        yield (
            "recompute_num_layers",
            f"{recompute} is more than the {layers // (size * chunks)} layers that a rank holds"
            " in one part of the pipeline",
        )


def _batch_problems(config: PretrainConfig, world_size: int) -> Iterator[tuple[str, str]]:
    parallel = config.parallel
    ranks = parallel.model_parallel_size
    if world_size % ranks:
        yield (
            "parallel",
            f"{world_size} ranks are not a multiple of the {ranks} that hold one copy of the model"
            f" (tensor {parallel.tensor_model_parallel_size}"
            f" x pipeline {parallel.pipeline_model_parallel_size})",
        )
        return
    copies = data_parallel_size(world_size, ranks)
    step = config.micro_batch_size * copies
    if config.global_batch_size % step:
        nearest = max(step, config.global_batch_size // step * step)
        yield (
            "global_batch_size",
            f"{config.global_batch_size} is not a multiple of {step} (micro_batch_size"
            f" {config.micro_batch_size} x data_parallel_size {copies}); {nearest} is",
        )
        return
    batches = num_microbatches(config.global_batch_size, config.micro_batch_size, copies)
    stages = parallel.pipeline_model_parallel_size
    if parallel.model_chunks > 1 and batches % stages:
        yield (
            "global_batch_size",
            f"the interleaved schedule needs microbatches in multiples of"
            f" pipeline_model_parallel_size {stages}; {config.global_batch_size} makes {batches},"
            f" {step * stages} makes {stages}",
        )


def valid_divisors(number: int) -> str:
    """The valid set for an error message: ``valid are 1, 2, 4``."""
    divisors = [str(n) for n in range(1, min(number, 1024) + 1) if number % n == 0]
    return f"valid are {', '.join(divisors)}"
