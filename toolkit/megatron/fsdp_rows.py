"""The rows of each weight that a rank has under FSDP, and their place in the whole model.

FSDP cuts every weight by rows, and not always evenly, and megatron-core's sharded state dicts
know even cuts alone. So each weight's place is looked up before it is cut, and every rank writes
and reads its own rows, in the form in which the distributed optimizer's checkpoints are: a run may
go on with other ranks, and with or without FSDP.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.mapping import ShardedBase, ShardedTensorFactory
from megatron.core.models.gpt import GPTModel
from torch import Tensor, distributed

from toolkit.megatron.sharding import EXTRA_STATE, sharding_metadata


@dataclass(frozen=True)
class Stretch:
    """Rows of a weight that lie together in the whole model; a gated MLP's first has two."""

    first: int
    rows: int
    place: ShardedTensor
    """Without data."""


@dataclass(frozen=True)
class Places:
    """Where a chunk's state belongs, by the names of its weights and of what is besides."""

    weights: dict[str, list[Stretch]]
    besides: dict[str, ShardedBase]
    """Buffers, and the state of TransformerEngine's layers: not cut; without data."""


def find_places(model: GPTModel) -> Places:
    """Where this rank's state belongs; asked before FSDP cuts the weights.

    TransformerEngine's state counts in FP8 and FP4 alone, as in every other checkpoint.
    """
    low = bool(model.config.fp8 or model.config.fp4)
    state = model.sharded_state_dict(metadata=sharding_metadata())
    weights = dict(model.named_parameters())
    besides = {
        name: entry.without_data()
        for name, entry in state.items()
        if name not in weights and (low or not name.endswith(EXTRA_STATE))
    }
    return Places(
        {name: list(_stretches(state[name], weight)) for name, weight in weights.items()}, besides
    )


def _stretches(entry: Any, weight: Tensor) -> Iterator[Stretch]:
    if isinstance(entry, ShardedTensor):
        yield Stretch(0, weight.shape[0], entry.without_data())
        return
    assert isinstance(entry, ShardedTensorFactory)
    # What a factory makes of the numbers of rows tells which rows each of its tensors has.
    numbers = torch.arange(weight.shape[0]).view(-1, *[1] * (weight.dim() - 1))
    counted = replace(entry, data=numbers.expand(weight.shape))
    for tensor in _tensors(counted.build()):
        assert tensor.data.shape[1:] == weight.shape[1:], f"{tensor.key} is not cut by rows"
        yield Stretch(int(tensor.data.flatten()[0]), tensor.data.shape[0], tensor.without_data())


def _tensors(value: Any) -> Iterator[ShardedTensor]:
    if isinstance(value, ShardedTensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    else:
        for item in value:
            yield from _tensors(item)


@dataclass(frozen=True)
class Shard:
    """One weight's rows on this rank."""

    first: int
    """The number of the first row, in the weight as it was before it was cut."""
    copy: int
    """Which of the ranks with the same rows this is."""
    master: Tensor
    """What the optimizer updates, and its key in the optimizer's state."""
    dtype: torch.dtype
    """The format that the model computes in."""
    model: Tensor | None = None
    """What the model computes with; None where it is made of the master."""


Shards = dict[str, Shard]


def first_rows(
    rows: Mapping[str, Tensor], group: distributed.ProcessGroup, position: int
) -> dict[str, int]:
    """The number of the first row on this rank, of weights dealt out to the ranks of ``group``.

    Args:
        rows: this rank's own, by the weights' names.
        group: all ranks that have some.
        position: this rank's place in the order in which they were dealt out.
    """
    own = (position, {name: tensor.shape[0] for name, tensor in rows.items()})
    dealt: list[tuple[int, dict[str, int]]] = [own] * group.size()
    distributed.all_gather_object(dealt, own, group=group)
    before = [counts for place, counts in dealt if place < position]
    return {name: sum(counts[name] for counts in before) for name in rows}


def local(tensor: Tensor) -> Tensor:
    """A distributed tensor's own part, in place; any other tensor as it is."""
    found = tensor.detach()
    part: Tensor = found.to_local() if hasattr(found, "to_local") else found
    return part


def placed(
    stretches: list[Stretch], shard: Shard, rows: Tensor, prefix: str = ""
) -> list[ShardedTensor]:
    """The parts of ``rows``, this rank's own of a weight, each with its place; views of them."""
    found = []
    for stretch in stretches:
        begin = max(stretch.first, shard.first)
        end = min(stretch.first + stretch.rows, shard.first + rows.shape[0])
        if begin < end:
            part = rows[begin - shard.first : end - shard.first]
            found.append(_placed(stretch, begin - stretch.first, part, shard.copy, prefix))
    return found


def _placed(stretch: Stretch, offset: int, part: Tensor, copy: int, prefix: str) -> ShardedTensor:
    place = stretch.place
    whole = place.prepend_axis_num
    start = list(place.global_offset)
    start[whole] += offset
    data = part.view(*[1] * whole, *part.shape)
    return ShardedTensor(
        key=prefix + place.key,
        data=data,
        dtype=data.dtype,
        local_shape=tuple(data.shape),
        global_shape=place.global_shape,
        global_offset=tuple(start),
        axis_fragmentations=None,  # cut unevenly
        replica_id=(*place.replica_id[:2], copy),
        allow_shape_mismatch=place.allow_shape_mismatch,
    )
