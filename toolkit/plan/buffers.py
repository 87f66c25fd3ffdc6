"""How a rank's weights lie in Megatron's buffers, padding included, and who has which shard.

``_ParamAndGradBuffer`` (``distributed/param_and_grad_buffer.py``): the weights of a model chunk in
reverse order, dense ones and experts apart; with the distributed optimizer every weight begins at a
multiple of 64 elements and every bucket is as long as a multiple of 128 and of the ranks, which get
an equal part of each bucket.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from toolkit.plan.parameters import (
    Weight,
    embedding_weights,
    layer_weights,
    output_weights,
    stage_layer_numbers,
)
from toolkit.plan.shape import Layout, ModelShape, stage_layers

START, END = 64, 128
"""Multiples, in elements: of where a weight begins, and of how long a bucket is."""
TIED = ("word_embeddings.weight", "output_layer.weight")
"""Weights that two stages have in common lie in buckets of their own."""


@dataclass(frozen=True)
class Buffers:
    """All buffers of one rank."""

    numel: int
    """Elements, padding included."""
    fullest_shard: int
    """Weights, by number, whose optimizer state the fullest of the sharing ranks has."""


def buffers(model: ModelShape, layout: Layout, stage: int, padded_vocab: int) -> Buffers:
    """The buffers of a rank of a pipeline stage.

    Without the distributed optimizer there is no padding, and no shard.
    """
    copies = layout.dp * layout.cp // layout.optimizer_instances
    groups = {False: copies, True: max(1, layout.expert_dp // layout.optimizer_instances)}
    total = fullest = 0
    for expert, ranks in groups.items():
        gaps: Counter[int] = Counter()
        length = part = 0
        for chunk in _chunks(model, layout, stage, padded_vocab):
            chosen = [weight for weight in chunk if weight.expert == expert]
            for bucket in _buckets(chosen, model, layout, ranks):
                length += bucket.length
                part += bucket.length // ranks
                for begin, end in bucket.gaps:
                    _spread(gaps, begin, end, bucket.length // ranks)
        total += length
        fullest += part - min(gaps[rank] for rank in range(ranks)) if part else 0
    return Buffers(total, fullest)


@dataclass
class _Bucket:
    """A stretch of a buffer, by its padding."""

    length: int
    gaps: list[tuple[int, int]]


def _spread(gaps: Counter[int], begin: int, end: int, part: int) -> None:
    """Count a stretch of padding to the ranks in whose parts it lies."""
    while begin < end:
        rank = begin // part
        stop = min(end, (rank + 1) * part)
        gaps[rank] += stop - begin
        begin = stop


def _buckets(
    weights: list[Weight], model: ModelShape, layout: Layout, ranks: int
) -> Iterator[_Bucket]:
    sharded = layout.distributed_optimizer
    start, end = (START, math.lcm(ranks, END)) if sharded else (1, 1)
    most = max(40_000_000, 1_000_000 * ranks) if layout.overlap.grad_reduce else None
    position, gaps = 0, list[tuple[int, int]]()

    def closed() -> _Bucket:
        length = -(-position // end) * end
        return _Bucket(length, [*gaps, (position, length)])

    for weight in reversed(weights):
        begin = -(-position // start) * start
        gaps.append((position, begin))
        position = begin
        alone = sharded and _is_tied(weight, model, layout)
        if alone and position:
            yield closed()
            position, gaps = 0, []
        position += weight.numel
        if alone or (most is not None and position >= most):
            yield closed()
            position, gaps = 0, []
    if position:
        yield closed()


def _is_tied(weight: Weight, model: ModelShape, layout: Layout) -> bool:
    tied = not model.untie_embeddings_and_output_weights
    return tied and layout.pp > 1 and weight.name in TIED


def _chunks(
    model: ModelShape, layout: Layout, stage: int, padded_vocab: int
) -> Iterator[list[Weight]]:
    """The weights of each model chunk of a stage, in the order in which they are made."""
    numbers = iter(stage_layer_numbers(model, layout)[stage])
    last = layout.pp - 1
    for chunk, layers in enumerate(stage_layers(model, layout)[stage]):
        weights: list[Weight] = []
        if stage == 0 and chunk == 0:
            weights += embedding_weights(model, layout, padded_vocab)
        for _ in range(layers):
            moe = model.is_moe_layer(next(numbers))
            weights += _by_expert(layer_weights(model, layout, moe=moe), model, layout)
        if stage == last and chunk == layout.vpp - 1:
            weights += output_weights(model, layout, padded_vocab, shared_is_here=last == 0)
        yield weights


def _by_expert(weights: Iterable[Weight], model: ModelShape, layout: Layout) -> Iterator[Weight]:
    """One after the other the experts of a layer, which are counted together elsewhere."""
    together: list[Weight] = []
    for weight in weights:
        if weight.expert:
            together.append(weight)
            continue
        yield from _each(together, model, layout)
        together = []
        yield weight
    yield from _each(together, model, layout)


def _each(together: list[Weight], model: ModelShape, layout: Layout) -> Iterator[Weight]:
    local = (model.num_moe_experts or 1) // layout.ep
    for _ in range(local if together else 0):
        for weight in together:
            yield Weight(weight.name, weight.numel // local, True, weight.linear)
