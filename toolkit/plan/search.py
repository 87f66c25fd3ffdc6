"""Every layout of a run on so many GPUs: those that are valid and fit, ranked by step time.

The grid is built so that most of it divides; what is left is asked of the rules
(``toolkit.plan.layout``), best first, so that few are asked.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, replace

from toolkit.plan.breakdown import LABELS
from toolkit.plan.ends import from_the_last
from toolkit.plan.layout import is_valid, violations
from toolkit.plan.memory import StageMemory, fullest
from toolkit.plan.shape import Layout, Recompute, Run, Sharding
from toolkit.plan.throughput import Estimate, Estimator

MICRO_BATCHES = (1, 2, 4, 8)
RECOMPUTES = (
    Recompute(),
    Recompute(granularity="selective", modules=("layernorm",)),
    Recompute(granularity="selective", modules=("layernorm", "mlp")),
    Recompute(granularity="full", method="uniform", num_layers=1),
)
"""From the fastest to the smallest: a heavier one is tried only where the lighter does not fit."""
EXPERT_RECOMPUTES = (
    Recompute(),
    Recompute(granularity="selective", modules=("layernorm", "moe_act")),
    Recompute(granularity="selective", modules=("moe",)),
    Recompute(granularity="full", method="uniform", num_layers=1),
)
RETRIED = 100  # of the fastest, those that are tried with another last stage, too
SHORTEST_PART = 2048
"""Tokens below which a context-parallel rank's part of a sequence is not cut further."""
FULL_SHARDING: Sharding = "optim_grads_params"


@dataclass(frozen=True)
class Candidate:
    """One layout that fits, or that would be faster and does not."""

    estimate: Estimate
    memory: StageMemory
    """Of its fullest stage."""

    @property
    def layout(self) -> Layout:
        """How it is cut."""
        return self.estimate.layout


@dataclass(frozen=True)
class Found:
    """What a search found."""

    best: tuple[Candidate, ...]
    """Valid and fitting, the fastest first."""
    too_large: Candidate | None
    """The fastest valid one that does not fit, where it would be faster than the best."""
    looked_at: int
    """Layouts whose memory was reckoned."""
    smallest: Candidate | None = None
    """Where none fits, the valid one that needs the least memory."""
    refused: tuple[str, ...] = ()
    """Where none is valid, what the rules say of the one that they refuse least."""


def search(run: Run, estimator: Estimator, *, keep: int = 6, fsdp: bool = True) -> Found:
    """The fastest layouts of ``run`` on its ``world_size``; batch, sequence and overlap are kept.

    Args:
        run: what is to run; its own TP, PP, and so on are not looked at.
        estimator: of the run's model, precision and hardware.
        keep: how many to return.
        fsdp: whether Megatron's FSDP is one of the choices.
    """
    room, margin = estimator.hardware.gpu.memory, estimator.hardware.tuning.fragmentation
    fitting: list[Candidate] = []
    large: list[Candidate] = []
    unfit: list[tuple[float, int, Layout]] = []
    looked_at = 0
    for layout in _grid(run, estimator.hardware.gpus_per_node, fsdp=fsdp):
        for tried in _lightest_first(run, layout):
            looked_at += 1
            memory = fullest(run.model, tried, run.precision, room, margin)
            if memory.total <= room:
                fitting.append(Candidate(estimator.estimate(tried), memory))
                break
            if tried.recompute.granularity is None and memory.total < 2 * room:
                large.append(Candidate(estimator.estimate(tried), memory))
            unfit.append((memory.total, looked_at, tried))
    fitting += _from_the_last(run, fitting, estimator)
    best = _valid(run, fitting, keep)
    if not best:
        return _nothing(run, estimator, [c.layout for c in fitting], sorted(unfit), looked_at)
    limit = best[0].estimate.step_seconds
    too_large = _valid(run, [c for c in large if c.estimate.step_seconds < limit], 1)
    return Found(best, too_large[0] if too_large else None, looked_at)


def _nothing(
    run: Run,
    estimator: Estimator,
    refused: list[Layout],
    unfit: list[tuple[float, int, Layout]],
    looked_at: int,
) -> Found:
    """Why nothing was found: all that is valid is too large, or nothing is valid."""
    for _, _, layout in unfit:
        if is_valid(replace(run, layout=layout)):
            margin = estimator.hardware.tuning.fragmentation
            memory = fullest(run.model, layout, run.precision, float("inf"), margin)
            smallest = Candidate(estimator.estimate(layout), memory)
            return Found((), None, looked_at, smallest)
    given = run.layout
    alone = Layout(given.world_size, global_batch_size=given.global_batch_size)
    alone = replace(alone, seq_length=given.seq_length)
    tried = [*refused, *(layout for _, _, layout in unfit)] or [alone]
    told = [tuple(violations(replace(run, layout=layout))) for layout in tried]
    least = min(told, key=len)
    return Found((), None, looked_at, refused=tuple(f"{v.key}: {v.message}" for v in least))


def _from_the_last(run: Run, fitting: list[Candidate], estimator: Estimator) -> list[Candidate]:
    """Of the fastest that count both ends as layers, those that take both from the last stage."""
    both = (c for c in fitting if c.layout.account_for_embedding and c.layout.account_for_loss)
    fastest = heapq.nsmallest(RETRIED, both, key=lambda c: c.estimate.step_seconds)
    room, margin = estimator.hardware.gpu.memory, estimator.hardware.tuning.fragmentation
    found = []
    for layout in filter(None, (from_the_last(run.model, c.layout) for c in fastest)):
        memory = fullest(run.model, layout, run.precision, room, margin)
        if memory.total <= room:
            found.append(Candidate(estimator.estimate(layout), memory))
    return found


def _valid(run: Run, candidates: list[Candidate], keep: int) -> tuple[Candidate, ...]:
    """The fastest that the rules accept, of each way to cut the model the fastest alone.

    Layouts that differ only in their microbatches, in interleaving, in recomputation, or in where
    the ends of the model count as layers, are one way.
    """
    queue = [
        (c.estimate.step_seconds, c.memory.total, number, c) for number, c in enumerate(candidates)
    ]
    heapq.heapify(queue)
    found: dict[tuple[object, ...], Candidate] = {}
    while queue and len(found) < keep:
        candidate = heapq.heappop(queue)[-1]
        way = cut(candidate.layout)
        if way not in found and is_valid(replace(run, layout=candidate.layout)):
            found[way] = candidate
    return tuple(found.values())


def cut(layout: Layout) -> tuple[object, ...]:
    """What makes a layout another way to cut the model: TP, PP, CP, EP, and FSDP."""
    return (layout.tp, layout.pp, layout.cp, layout.ep, layout.expert_tp, layout.fsdp)


def _lightest_first(run: Run, layout: Layout) -> Iterator[Layout]:
    choices = EXPERT_RECOMPUTES if run.model.num_moe_experts else RECOMPUTES
    for recompute in choices:
        yield replace(layout, recompute=recompute) if recompute.granularity else layout


def _grid(run: Run, gpus_per_node: int, *, fsdp: bool) -> Iterator[Layout]:
    """Layouts whose degrees divide what they must; none recomputes."""
    model, given = run.model, run.layout
    world = given.world_size
    apart = world == given.tp * given.pp  # no gradients to reduce: nothing is said of overlap
    overlap = replace(given.overlap, grad_reduce=given.overlap.grad_reduce or apart)
    plain = replace(given, recompute=Recompute(), fsdp=None, optimizer_instances=1, overlap=overlap)
    plain = replace(plain, stages=(), stages_mistake=None, sharding=FULL_SHARDING)
    plain = replace(plain, outer_sharding="no_shard", fsdp_double_buffer=False, nccl_ub=False)
    plain = replace(plain, reshard_after_forward=True)
    for tp in _divisors(min(world, gpus_per_node), gpus_per_node):
        if model.num_attention_heads % tp or model.ffn_hidden_size % tp:
            continue
        for cp in _contexts(given, world // tp):
            for ep in _expert_groups(run, world):
                base = replace(
                    plain,
                    tp=tp,
                    cp=cp,
                    ep=ep,
                    etp=1 if model.num_moe_experts and tp > 1 else None,
                    sequence_parallel=tp > 1,
                    overlap=replace(plain.overlap, tp_comm=plain.overlap.tp_comm and tp > 1),
                )
                yield from _pipelines(run, base)
                if fsdp and ep == 1 and world > tp:
                    yield from _fsdp(base)


def _contexts(given: Layout, ranks: int) -> Iterator[int]:
    cp = 1
    while ranks % cp == 0 and (
        cp == 1 or (given.seq_length % (2 * cp) == 0 and given.seq_length // cp >= SHORTEST_PART)
    ):
        yield cp
        cp *= 2


def _expert_groups(run: Run, world: int) -> Iterator[int]:
    experts = run.model.num_moe_experts
    if not experts:
        yield 1
        return
    yield from (ep for ep in _divisors(experts, experts) if world % ep == 0)


def _fsdp(base: Layout) -> Iterator[Layout]:
    """Data parallelism alone, beside tensor and context parallelism, with all state sharded."""
    sharded = replace(
        base,
        pp=1,
        vpp=1,
        distributed_optimizer=True,
        fsdp="megatron",
        overlap=replace(base.overlap, p2p=False),
        first_stage_layers=None,
        last_stage_layers=None,
        stages=(),
        stages_mistake=None,
        account_for_embedding=False,
        account_for_loss=False,
        microbatch_group=None,
    )
    yield from _batches(sharded)


def _pipelines(run: Run, base: Layout) -> Iterator[Layout]:
    """Pipelines of equal stages, and those that count the two ends of the model as layers."""
    layers = run.model.num_layers
    ranks = base.world_size // (base.tp * base.cp)
    for ends in ((False, False), (False, True), (True, True)):
        counted = layers + sum(ends)
        for pp in _divisors(ranks, counted):
            if counted % pp or (pp == 1 and any(ends)):
                continue
            if base.ep > 1 and base.world_size % (base.ep * base.expert_tp * pp):
                continue
            cut = replace(
                base,
                pp=pp,
                first_stage_layers=None,
                last_stage_layers=None,
                stages=(),
                stages_mistake=None,
                account_for_embedding=ends[0],
                account_for_loss=ends[1],
                microbatch_group=None,
            )
            for layout in _batches(cut):
                yield from _interleavings(layout, counted // pp)


def _batches(layout: Layout) -> Iterator[Layout]:
    if layout.world_size % layout.model_parallel_size:
        return
    for size in MICRO_BATCHES if layout.cp == 1 else (1,):  # half the cut is better than twice both
        if layout.global_batch_size % (size * layout.dp) == 0:
            overlap = layout.overlap
            if layout.dp * layout.cp == 1:  # nothing to reduce, and nothing to gather
                overlap = replace(overlap, grad_reduce=False, param_gather=False)
            yield replace(layout, micro_batch_size=size, overlap=overlap)


def _interleavings(layout: Layout, per_stage: int) -> Iterator[Layout]:
    yield replace(layout, vpp=1, overlap=replace(layout.overlap, p2p=False))
    if layout.pp == 1 or layout.num_microbatches % layout.pp:
        return
    for vpp in _divisors(per_stage, per_stage):
        if vpp > 1:
            yield replace(layout, vpp=vpp, overlap=replace(layout.overlap, p2p=True))


def _divisors(number: int, most: int) -> list[int]:
    return [d for d in range(1, min(number, most) + 1) if number % d == 0]


def why_slower(other: Estimate, best: Estimate) -> str:
    """What a layout loses by against the best, and what it wins back, in shares of the best's step:
    ``+2.1 % pipeline bubble, +0.8 % recomputation, -0.5 % uneven stages``."""
    step = best.step_seconds
    changes = [
        (mine - theirs, name)
        for (name, mine), theirs in zip(other.spent.items(), best.spent.values(), strict=True)
    ]
    losses = sorted((c for c in changes if c[0] > 0.0005 * step), reverse=True)[:2]
    gains = sorted(c for c in changes if c[0] < -0.0005 * step)[:1]
    told = [f"{change / step:+.1%} {LABELS[name]}" for change, name in losses + gains]
    return ", ".join(told) if told else "as fast, and takes more memory"
