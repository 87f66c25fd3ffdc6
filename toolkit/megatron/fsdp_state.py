"""The model's and the optimizer's part of a checkpoint under FSDP, row by row.

The names and the form are those of the distributed optimizer's checkpoints
(``DistributedOptimizer.sharded_param_state_fully_reshardable``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import ChainedOptimizer
from torch import Tensor

from toolkit.megatron.fsdp_rows import Places, Shard, Shards, local, placed
from toolkit.megatron.sharding import model_keys

MOMENTS = ("exp_avg", "exp_avg_sq")
STATE = "optimizer.state"


class FSDPChunk(Protocol):
    """A part of the model under either FSDP."""

    places: Places
    """Where its state belongs in the whole model."""

    def shards(self) -> Shards:
        """This rank's rows of every weight; every rank calls this."""

    def weights_changed(self) -> None:
        """Have the model compute with what was written into the shards."""


def weights(chunks: Sequence[FSDPChunk], models: Sequence[GPTModel]) -> dict[str, Any]:
    """Where weights alone are to be read into; FP32 copies take them in the model's format."""
    keys = model_keys(len(chunks))
    return {
        key: _weights(chunk, chunk.shards(), model, is_loading=True)
        for key, chunk, model in zip(keys, chunks, models, strict=True)
    }


def weights_read(
    chunks: Sequence[FSDPChunk], models: Sequence[GPTModel], loaded: dict[str, Any]
) -> None:
    """Have the model compute with the weights that were read, and take what is besides them."""
    for key, chunk, model in zip(model_keys(len(chunks)), chunks, models, strict=True):
        besides = {name: loaded[key][name] for name in chunk.places.besides}
        model.load_state_dict(besides, strict=False)
        chunk.weights_changed()


def whole(
    chunks: Sequence[FSDPChunk],
    models: Sequence[GPTModel],
    optimizer: ChainedOptimizer,
    *,
    is_loading: bool,
) -> dict[str, Any]:
    """The model and the optimizer, to be written or to be read into."""
    shards = [chunk.shards() for chunk in chunks]
    state: dict[str, Any] = {}
    keys = model_keys(len(chunks))
    for key, chunk, own, model in zip(keys, chunks, shards, models, strict=True):
        # The model's weights are made of the FP32 copies, which are read with the optimizer.
        read = {n: s for n, s in own.items() if not is_loading or s.model is not None}
        state[key] = _weights(chunk, read, model, is_loading=is_loading)
    (part,) = optimizer.chained_optimizers
    return state | {"optimizer": _optimizer(chunks, shards, part)}


def restore(
    chunks: Sequence[FSDPChunk],
    models: Sequence[GPTModel],
    loaded: dict[str, Any],
    optimizer: ChainedOptimizer,
) -> None:
    """Go on from a state of which the tensors have been read in place."""
    weights_read(chunks, models, loaded)
    (part,) = optimizer.chained_optimizers
    _restore_steps(loaded["optimizer"], part)


def _weights(
    chunk: FSDPChunk, shards: Shards, model: GPTModel, *, is_loading: bool
) -> dict[str, Any]:
    """The weights in ``shards``, written in the model's format, and the buffers besides them."""
    state: dict[str, Any] = {}
    for name, shard in shards.items():
        rows = local(shard.master) if shard.model is None else shard.model
        if rows.numel():
            kept = rows if is_loading else rows.to(shard.dtype)
            state[name] = placed(chunk.places.weights[name], shard, kept)
    if chunk.places.besides:
        values = model.state_dict(keep_vars=True)
        state |= {n: replace(entry, data=values[n]) for n, entry in chunk.places.besides.items()}
    return state


def _optimizer(
    chunks: Sequence[FSDPChunk], shards: Sequence[Shards], optimizer: Any
) -> dict[str, Any]:
    """Masters and moments by rows, and beside them the groups with their step."""
    optimizer.init_state_fn(optimizer.optimizer, optimizer.config)
    tensors: dict[int, dict[str, list[ShardedTensor]]] = {}
    for chunk, own in zip(chunks, shards, strict=True):
        for name, stretches in chunk.places.weights.items():
            if local(own[name].master).numel():
                tensors[len(tensors)] = {
                    key: placed(stretches, own[name], rows, f"{STATE}.{key}.")
                    for key, rows in _kept(own[name], optimizer)
                }
    found: dict[str, Any] = {
        "optimizer": {"param_groups": list(_groups(optimizer))},
        "param_state": tensors,
        "param_state_sharding_type": "fully_reshardable",
    }
    if getattr(optimizer, "grad_scaler", None) is not None:
        found["grad_scaler"] = optimizer.grad_scaler.state_dict()
    return found


def _kept(shard: Shard, optimizer: Any) -> Iterator[tuple[str, Tensor]]:
    yield "param", local(shard.master)
    state = optimizer.optimizer.state[shard.master]
    for key in MOMENTS:
        yield key, local(state[key])


def _groups(optimizer: Any) -> Iterator[dict[str, Any]]:
    """The groups of weights without the weights, each with the step that all are at.

    torch's AdamW counts in every weight's state, a GPU's fused Adam in the groups.
    """
    inner = optimizer.optimizer
    # A weight without a row here has no gradient, and counts no steps.
    steps = [int(state["step"]) for state in inner.state.values() if "step" in state]
    for group in inner.param_groups:
        own = {key: value for key, value in group.items() if key != "params"}
        yield own | {"step": max(steps)} if steps else own


def _restore_steps(loaded: dict[Any, Any], optimizer: Any) -> None:
    """Set the step and the loss scale; tensors were read in place.

    Args:
        loaded: what a checkpoint has under ``optimizer``; with experts dealt out, one such for
            each of its two optimizers.
        optimizer: the one that goes on.
    """
    found = loaded if "optimizer" in loaded else loaded[0]
    steps = [group["step"] for group in found["optimizer"]["param_groups"] if "step" in group]
    step = int(max(steps, default=0))
    inner = optimizer.optimizer
    for state in inner.state.values():
        if "step" in state:
            state["step"].fill_(step)
    if not isinstance(inner, torch.optim.AdamW):  # a fused Adam's groups have none before a step
        for group in inner.param_groups:
            group["step"] = step
    if "grad_scaler" in found and getattr(optimizer, "grad_scaler", None) is not None:
        optimizer.grad_scaler.load_state_dict(found["grad_scaler"])
