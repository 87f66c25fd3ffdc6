"""The order in which a pipeline's ranks work: what is in flight, and how long a step takes.

1F1B and its interleaved form, as ``pipeline_parallel/schedules.py`` has them
(``get_pp_rank_microbatches``, ``get_schedule_table``): a rank warms up with forward passes, then
does a forward and a backward pass in turns, then the backward passes that are left.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from toolkit.plan.shape import Layout

Chunks = Sequence[Sequence[float]]
"""Seconds of one microbatch, by pipeline rank and model chunk."""
Turn = tuple[int, int]
"""A microbatch and a model chunk."""


def warmup(layout: Layout, stage: int) -> int:
    """Forward passes of one model chunk that a stage is ahead of its backward passes."""
    behind = layout.pp - stage - 1
    if layout.vpp == 1:
        return behind
    return behind * 2 + (layout.vpp - 1) * (layout.microbatch_group or layout.pp)


def chunks_in_flight(layout: Layout, stage: int) -> int:
    """The most microbatches, of one model chunk each, that a stage keeps at once."""
    return min(layout.num_microbatches * layout.vpp, warmup(layout, stage) + 1)


def most_kept(layout: Layout, stage: int, kept: Sequence[float]) -> float:
    """The most that a stage keeps at once, of chunks that keep so much of a microbatch each."""
    values = sorted(set(kept))
    if len(values) == 1:
        return chunks_in_flight(layout, stage) * values[0]
    group = layout.microbatch_group or layout.pp
    kinds = tuple(values.index(each) for each in kept)
    ahead = warmup(layout, stage)
    # Behind the warm-up the same is in flight after every round of a group through the chunks.
    rounds = 3 + ahead // (group * layout.vpp)
    batches = _shortened(layout.num_microbatches, group, rounds)
    counted = _in_flight(kinds, batches, group, ahead)
    return max(sum(n * v for n, v in zip(counts, values, strict=True)) for counts in counted)


def _shortened(batches: int, group: int, rounds: int) -> int:
    """As many whole groups as are needed, and the rest that the last group is."""
    return min(batches, batches % group + rounds * group)


@lru_cache(maxsize=4096)
def _in_flight(
    kinds: tuple[int, ...], batches: int, group: int, ahead: int
) -> frozenset[tuple[int, ...]]:
    """All that is in flight at some time: how many of each kind of chunk."""
    order = _turns(batches, len(kinds), group)
    counts = [0] * (max(kinds) + 1)
    found = set()
    for number, (_, chunk) in enumerate(order):
        counts[kinds[chunk]] += 1
        if number >= ahead or number == len(order) - 1:
            found.add(tuple(counts))
        if number >= ahead:
            done = order[number - ahead][1]
            counts[kinds[len(kinds) - 1 - done]] -= 1
    return frozenset(found)


@lru_cache(maxsize=1024)
def _turns(batches: int, chunks: int, group: int) -> tuple[Turn, ...]:
    """The forward passes of a rank in order: a group of microbatches, chunk after chunk."""
    return tuple(
        (batch, chunk)
        for begin in range(0, batches, group)
        for chunk in range(chunks)
        for batch in range(begin, min(batches, begin + group))
    )


def step_seconds(layout: Layout, forward: Chunks, backward: Chunks) -> float:
    """Seconds of all microbatches through chunks that may each take another time.

    Messages take no time here. Of many microbatches the last ones are not gone through: when the
    pipeline is full every further group takes as long as the one before it.
    """
    group = layout.microbatch_group or layout.pp
    batches, rounds = layout.num_microbatches, 4 if layout.vpp > 1 else 8
    short = _shortened(batches, group, rounds)
    took = _walk(layout, forward, backward, short)
    if short == batches:
        return took
    more = _walk(layout, forward, backward, short + group)
    return took + (more - took) * (batches - short) / group


def _walk(layout: Layout, forward: Chunks, backward: Chunks, batches: int) -> float:
    """Go through the passes of every rank, each as soon as what it waits for is done."""
    pp, vpp = layout.pp, layout.vpp
    turns = _turns(batches, vpp, layout.microbatch_group or pp)
    passes = [_passes(turns, vpp, warmup(layout, rank)) for rank in range(pp)]
    done: dict[tuple[bool, int, int], float] = {}
    clock, at = [0.0] * pp, [0] * pp
    left = sum(len(own) for own in passes)
    while left:
        for rank in range(pp):
            own = passes[rank]
            while at[rank] < len(own):
                ahead, batch, chunk = own[at[rank]]
                # All chunks of all ranks are one row; what comes in is from the neighbour there.
                place = chunk * pp + rank
                before = place - 1 if ahead else place + 1
                ready = 0.0
                if 0 <= before < pp * vpp:
                    came = done.get((ahead, batch, before))
                    if came is None:
                        break
                    ready = came
                seconds = forward[rank][chunk] if ahead else backward[rank][chunk]
                clock[rank] = max(clock[rank], ready) + seconds
                done[ahead, batch, place] = clock[rank]
                at[rank] += 1
                left -= 1
    return max(clock)


def _passes(turns: Sequence[Turn], chunks: int, ahead: int) -> list[tuple[bool, int, int]]:
    """A rank's passes in order: whether forward, the microbatch and the chunk."""
    ahead = min(ahead, len(turns))
    back = [(False, batch, chunks - 1 - chunk) for batch, chunk in turns]
    found = [(True, *turn) for turn in turns[:ahead]]
    for number, turn in enumerate(turns[ahead:]):
        found += [(True, *turn), back[number]]
    return found + back[len(turns) - ahead :]
