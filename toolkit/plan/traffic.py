"""Seconds of communication that stay in view: between tensor, context, expert, pipeline and data
ranks; a ring moves ``(n - 1) / n`` of its data past each rank.

Ranks are dealt out as Megatron does (``tp-cp-ep-dp-pp``): tensor ranks are neighbours, then
context ranks, and so on; a group that spans more GPUs than a node has goes over the network.
"""

from __future__ import annotations

from toolkit.plan.activations import norm_share, tokens_per_rank
from toolkit.plan.compute import Kernels, Seconds, routed_tokens
from toolkit.plan.hardware import Hardware
from toolkit.plan.memory import gradient_width, shards
from toolkit.plan.parameters import Numel
from toolkit.plan.shape import Layout, ModelShape


def inside_node(hardware: Hardware, span: int) -> bool:
    """Whether a group that spans ``span`` neighbouring GPUs stays in one node."""
    return span <= hardware.gpus_per_node


def bandwidth(hardware: Hardware, span: int) -> float:
    """Bytes a second of a ring over such a group."""
    return hardware.gpu.nvlink if inside_node(hardware, span) else hardware.network


def contention(hardware: Hardware, span: int) -> float:
    """What a second of hidden communication costs the kernels beside it, in seconds."""
    tuning = hardware.tuning
    near = inside_node(hardware, span)
    return tuning.contention_nvlink if near else tuning.contention_network


def tensor(kernels: Kernels, model: ModelShape, layout: Layout, *, moe: bool) -> Seconds:
    """Gathers before, and scatters behind, the matrices of attention and of the MLP.

    With ``tp_comm_overlap`` they run in TP chunks beside the matrices: the first chunk and a little
    more stay in view. Without it the forward's are in view, and of the backward's those of the
    output's gradient; the others run beside the other gradient's matrix in either case.
    """
    if layout.tp == 1:
        return Seconds()
    hardware = kernels.hardware
    share = (layout.tp - 1) / layout.tp
    elements = tokens_per_rank(layout) * model.hidden_size * share
    rate = bandwidth(hardware, layout.tp)
    wait = hardware.tuning.hop * (1 if layout.overlap.tp_comm else 2)
    low = kernels.value if kernels.format == "bf16" else 1
    gather = elements * low / rate
    scatter = elements * kernels.value / rate
    if not layout.sequence_parallel:
        gather = scatter
    pairs = 1 if moe else 2
    hidden = pairs * (gather + scatter) * contention(hardware, layout.tp)
    seen = 1.0
    if layout.overlap.tp_comm:
        seen = min(1.0, 1 / layout.tp + hardware.tuning.tp_exposed)
    forward = pairs * (gather + scatter + wait) * seen
    return Seconds(forward, pairs * (gather + wait) * seen + hidden)


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
        forward = _beside(ring, attention.forward * (cp - 1) / cp) + (cp - 1) * wait
        backward = _beside(2 * ring, attention.backward * (cp - 1) / cp) + (cp - 1) * wait
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
    seen = 0.2 if layout.overlap.moe_expert_parallel_comm else 1.0
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
    if layout.fsdp is not None:
        once = _gather(kernels, layout, count), _reduce(kernels, layout, count)
        hidden = (2 * once[0] + once[1]) * _contention(kernels.hardware, layout)
        late = _beside(once[0], forward) + _beside(once[0] + once[1], backward)
        return layout.num_microbatches * (late + hidden)
    times = min(layout.num_microbatches, layout.pp) if layout.vpp > 1 else 1
    reduce, gather = _reduce(kernels, layout, count), _gather(kernels, layout, count)
    if not layout.distributed_optimizer:
        reduce, gather = reduce + gather, 0.0  # one all-reduce
    spent = 0.0
    cost = _contention(kernels.hardware, layout)
    spent += _beside(reduce, backward * times, cost) if layout.overlap.grad_reduce else reduce
    spent += _beside(gather, forward * times, cost) if layout.overlap.param_gather else gather
    return spent


def _beside(spent: float, room: float, cost: float = 0.0) -> float:
    """What of ``spent`` stays in view beside ``room`` seconds of work, a tenth of it at least."""
    return max(spent - room, 0.1 * spent) + cost * min(spent, room)


def _contention(hardware: Hardware, layout: Layout) -> float:
    return contention(hardware, layout.world_size // layout.pp)


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
