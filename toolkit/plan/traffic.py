"""Seconds of communication that stay in view: between tensor, context, expert, pipeline and data
ranks; a ring moves ``(n - 1) / n`` of its data past each rank.

Ranks are dealt out as Megatron does (``tp-cp-ep-dp-pp``): tensor ranks are neighbours, then
context ranks, and so on; a group that spans more GPUs than a node has goes over the network.
"""

from __future__ import annotations

from collections.abc import Sequence

from toolkit.plan.activations import norm_share, tokens_per_rank
from toolkit.plan.compute import routed_tokens
from toolkit.plan.hardware import Hardware, Tuning
from toolkit.plan.kernels import Kernels, Linear, Seconds
from toolkit.plan.memory import gradient_width, shards
from toolkit.plan.parameters import Numel
from toolkit.plan.shape import Layout, ModelShape


def inside_node(hardware: Hardware, span: int) -> bool:
    """Whether a group that spans ``span`` neighbouring GPUs stays in one node."""
    return span <= hardware.gpus_per_node


def bandwidth(hardware: Hardware, span: int) -> float:
    """Bytes a second of a ring over such a group."""
    return hardware.gpu.nvlink if inside_node(hardware, span) else hardware.network


def tensor(
    kernels: Kernels,
    model: ModelShape,
    layout: Layout,
    pairs: Sequence[tuple[Linear, Linear]],
) -> Seconds:
    """Gathers before the first, and scatters behind the second, matrix of each of ``pairs``.

    With ``tp_comm_overlap`` they run in TP chunks beside their own matrix: the first chunk stays in
    view, and what the matrix has no room for. Without it the forward's are in view, and of the
    backward's the gather of the output's gradient. The backward's others run beside the other
    gradient's matrix in either case.
    """
    if layout.tp == 1:
        return Seconds()
    hardware = kernels.hardware
    elements = tokens_per_rank(layout) * model.hidden_size * (layout.tp - 1) / layout.tp
    rate = bandwidth(hardware, layout.tp)
    low = kernels.value if kernels.format == kernels.wide or not layout.sequence_parallel else 1
    gather, scatter = elements * low / rate, elements * kernels.value / rate
    ring = layout.overlap.tp_comm and layout.sequence_parallel
    chunks = layout.tp if ring else 1
    cost = hardware.tuning.contention
    forward = backward = 0.0
    for column, row in pairs:
        forward += _chunked(gather, column.output, chunks, cost)
        forward += _chunked(scatter, row.output, chunks, cost)
        backward += _chunked(gather, row.of_input, chunks, cost)
        backward += _over(gather, column.of_input, cost) + _over(scatter, column.of_weights, cost)
        forward, backward = forward + 2 * hardware.tuning.hop, backward + hardware.tuning.hop
    if ring:  # the parts that a ring brings are summed up by a kernel of its own
        summed = kernels.streamed(2 * kernels.value * elements, 1)
        forward += len(pairs) * summed
    return Seconds(forward, backward)


def _chunked(spent: float, room: float, chunks: int, cost: float) -> float:
    """Of a ring in chunks beside a matrix, what is in view; of one chunk, all."""
    if chunks == 1:
        return spent
    return max(spent / chunks, spent - room) + cost * min(spent, room)


def _over(spent: float, room: float, cost: float) -> float:
    """Of a message beside a matrix, what finds no room, and what it costs the matrix."""
    return max(0.0, spent - room) + cost * min(spent, room)


def context(kernels: Kernels, model: ModelShape, layout: Layout, attention: Seconds) -> Seconds:
    """Keys and values handed round beside attention (p2p), or exchanged before it and behind."""
    if layout.cp == 1:
        return Seconds()
    hardware, cp = kernels.hardware, layout.cp
    span = layout.tp * cp
    rate = bandwidth(hardware, span)
    tokens = tokens_per_rank(layout) * kernels.value
    query = model.num_attention_heads * model.kv_channels / layout.tp
    pair = 2 * model.num_query_groups * model.kv_channels / layout.tp
    wait = hardware.tuning.hop
    if layout.cp_comm_type == "p2p":
        ring = (cp - 1) * tokens * pair / rate
        share, tuning = (cp - 1) / cp, hardware.tuning
        forward = _beside(tuning, ring, attention.forward * share) + (cp - 1) * wait
        backward = _beside(tuning, 2 * ring, attention.backward * share) + (cp - 1) * wait
        return Seconds(forward, backward)
    if layout.cp_comm_type == "all_gather":
        gather = (cp - 1) * tokens * pair / rate + wait
        return Seconds(gather, 2 * gather)
    exchange = tokens * (2 * query + pair) * (cp - 1) / cp / rate + 2 * wait
    return Seconds(exchange, exchange)


def expert(kernels: Kernels, model: ModelShape, layout: Layout) -> Seconds:
    """Tokens sent to their experts and back, forward and backward.

    What stays in the node and what leaves it go at the same time. The flex dispatcher (DeepEP)
    sends a token to each other node once, whichever number of its experts is there; the others
    send it once for each expert.
    """
    group = layout.ep * layout.expert_tp
    if group == 1:
        return Seconds()
    hardware = kernels.hardware
    each = routed_tokens(model, layout) * model.hidden_size * kernels.value
    nodes = max(1, group // hardware.gpus_per_node)
    near = each * (min(group, hardware.gpus_per_node) - 1) / group / hardware.gpu.nvlink
    away = each * (nodes - 1) / nodes
    if layout.moe.token_dispatcher == "flex":
        reached = (nodes - 1) * (1 - (1 - 1 / nodes) ** model.moe_router_topk)
        away = each / model.moe_router_topk * reached
    once = max(near, away / hardware.network)
    beside = layout.overlap.moe_expert_parallel_comm
    seen = hardware.tuning.experts_late if beside else 1.0
    both = (2 * once + 4 * hardware.tuning.hop) * seen
    return Seconds(both, both)


def pipeline_send(kernels: Kernels, model: ModelShape, layout: Layout) -> float:
    """Seconds of one message from stage to stage."""
    if layout.pp == 1:
        return 0.0
    sent = tokens_per_rank(layout) * model.hidden_size * kernels.value / norm_share(layout)
    hardware = kernels.hardware
    return sent / bandwidth(hardware, layout.world_size) + hardware.tuning.hop


def data(kernels: Kernels, layout: Layout, count: Numel, forward: float, backward: float) -> float:
    """Seconds in view, of a step, of summing gradients and handing round the weights.

    Args:
        kernels: on which hardware, in which precision.
        layout: the run's.
        count: weights on the rank.
        forward: seconds of one microbatch's forward pass, beside which weights are gathered.
        backward: the same of the backward pass, for the gradients.
    """
    tuning = kernels.hardware.tuning
    if layout.fsdp is not None:
        once = _gather(kernels, layout, count), _reduce(kernels, layout, count)
        hidden = (2 * once[0] + once[1]) * tuning.contention
        late = _beside(tuning, once[0], forward) + _beside(tuning, sum(once), backward)
        return layout.num_microbatches * (late + hidden)
    times = min(layout.num_microbatches, layout.pp) if layout.vpp > 1 else 1
    reduce, gather = _reduce(kernels, layout, count), _gather(kernels, layout, count)
    if not layout.distributed_optimizer:
        reduce, gather = 2 * reduce, 0.0  # an all-reduce moves twice as much, and all of it at once
    hidden = 0.0
    if layout.overlap.grad_reduce:
        hidden += min(reduce, backward * times)
        reduce = _beside(tuning, reduce, backward * times)
    if layout.overlap.param_gather:
        hidden += min(gather, forward * times)
        gather = _beside(tuning, gather, forward * times)
    return reduce + gather + hidden * tuning.contention


def _beside(tuning: Tuning, spent: float, room: float) -> float:
    """What of ``spent`` stays in view beside ``room`` seconds of work."""
    return max(spent - room, tuning.late * spent)


def _reduce(kernels: Kernels, layout: Layout, count: Numel) -> float:
    return _ring(kernels, layout, count, gradient_width(kernels.precision))


def _gather(kernels: Kernels, layout: Layout, count: Numel) -> float:
    low = kernels.precision.fp8_param
    linear = count.linear / max(1, count.total) if low else 0.0
    return _ring(kernels, layout, count, kernels.value * (1 - linear) + linear)


def _ring(kernels: Kernels, layout: Layout, count: Numel, width: float) -> float:
    """Seconds to pass the weights round, of ``width`` bytes each: dense ones and experts."""
    hardware = kernels.hardware
    dense, expert_ranks = shards(layout)
    spent = 0.0
    for numel, ranks, inner in (
        (count.dense, dense, layout.tp),
        (count.expert, expert_ranks, layout.ep * layout.expert_tp),
    ):
        if ranks > 1:
            span = inner * ranks
            here = max(1, hardware.gpus_per_node // inner)
            rate = hardware.gpu.nvlink
            if not inside_node(hardware, span):  # the node's adapters carry its ranks' one ring
                rate = min(rate, hardware.network * min(here, ranks))
            spent += numel * width * (ranks - 1) / ranks / rate + hardware.tuning.hop * 10
    return spent
