"""Each weight's place in the whole model, as Megatron's sharded state dicts tell it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from megatron.core import parallel_state
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.mapping import apply_factories
from megatron.core.models.gpt import GPTModel

EXTRA_STATE = "_extra_state"
"""TransformerEngine's own state of a layer: the history of FP8 scales, else nothing."""


def sharding_metadata() -> dict[str, Any]:
    """What every ``sharded_state_dict`` of ours is asked with.

    The layers of a model are one tensor with the layer as its first axis, and the distributed
    optimizer's state is kept per parameter (``fully_reshardable``), gathered over the
    data-parallel ranks when saved: that alone lets a checkpoint be loaded at any TP, PP and DP.
    The alternative, ``dp_reshardable``, saves without that exchange and fits one TP and PP only.
    """
    return {
        "singleton_local_shards": False,
        "chained_optim_avoid_prefix": True,
        "distrib_optim_sharding_type": "fully_reshardable",
        "distrib_optim_fully_reshardable_mem_efficient": False,
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
    }


def model_keys(chunks: int) -> list[str]:
    """The keys of a rank's chunks in a checkpoint: ``model``, or ``model0`` and on (Megatron's)."""
    return ["model"] if chunks == 1 else [f"model{n}" for n in range(chunks)]


def sharded_weights(chunk: GPTModel) -> Iterator[ShardedTensor]:
    """The chunk's weights, each with its key, its place and a view of the data.

    The two halves of a gated MLP's first matrix come as two tensors: the ranks interleave them.
    """
    state = chunk.sharded_state_dict(metadata=sharding_metadata())
    apply_factories(state)
    yield from _walk(state)


def _walk(value: object) -> Iterator[ShardedTensor]:
    if isinstance(value, ShardedTensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _walk(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _walk(item)
