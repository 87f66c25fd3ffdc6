"""Memory of a rank, by pipeline stage: what stays, what a step adds, and a margin.

Checked against Megatron-LM's ``tools/report_theoretical_memory.py`` (``benchmarks/memory.py``) and,
on the CPU, against the tensors of real ranks (``tests/plan/test_memory.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from toolkit.plan.activations import (
    BYTES,
    layer_bytes,
    norm_share,
    recomputes_attention,
    score_bytes,
    stage_bytes,
    tokens_per_rank,
)
from toolkit.plan.buffers import buffers
from toolkit.plan.hardware import FRAGMENTATION
from toolkit.plan.parameters import (
    Numel,
    embedding_weights,
    layer_weights,
    numel,
    output_weights,
    stage_layer_kinds,
    stage_numel,
    telling_stages,
)
from toolkit.plan.shape import Layout, ModelShape, Precision

GIB = 2**30
RUNTIME_BYTES = 4 * GIB
"""CUDA's context and kernels, cuBLAS's and TransformerEngine's workspaces and user buffers, NCCL's
buffers for each of a run's groups. An estimate, made knowing which layouts were published."""


@dataclass(frozen=True)
class StageMemory:
    """Bytes on the fullest rank of one pipeline stage."""

    stage: int
    parameters: int
    """Weights on the rank, by number."""
    weights: float
    gradients: float
    """The main gradients: the buffer that microbatches add up in."""
    optimizer: float
    """Adam's two states and, of weights below FP32, the FP32 copy."""
    activations: float
    """Kept for the backward pass, of all microbatches in flight."""
    temporary: float
    """At the fullest moment: logits and loss, a recomputed layer, gathered shards, FP8 copies; or
    what the optimizer's step needs above the activations, which are free by then."""
    margin: float
    """The runtime's own, and what fragmentation takes."""

    @property
    def total(self) -> float:
        """All of it."""
        kept = self.weights + self.gradients + self.optimizer
        return kept + self.activations + self.temporary + self.margin


def memory_by_stage(
    model: ModelShape,
    layout: Layout,
    precision: Precision,
    stages: Sequence[int] | None = None,
    fragmentation: float = FRAGMENTATION,
) -> list[StageMemory]:
    """The memory of one rank of each pipeline stage, or of the given ones alone.

    Shards are taken to be equal, and padding for nothing; see ``with_padding``.
    """
    chosen = range(layout.pp) if stages is None else stages
    return [stage_memory(model, layout, precision, stage, fragmentation) for stage in chosen]


def with_padding(
    stage: StageMemory, model: ModelShape, layout: Layout, precision: Precision
) -> StageMemory:
    """The same of the stage's fullest rank, to the byte: with the padding of Megatron's buffers.

    With FSDP, which has others, it is left as it is.
    """
    if layout.fsdp is not None:
        return stage
    found = buffers(model, layout, stage.stage, model.padded_vocab_size(layout.tp))
    shard = found.fullest_shard if layout.distributed_optimizer else stage.parameters
    return replace(
        stage,
        weights=BYTES[precision.weights] * found.numel,
        gradients=gradient_width(precision) * found.numel,
        optimizer=optimizer_width(precision) * shard,
    )


def largest(stages: Sequence[StageMemory]) -> StageMemory:
    """The stage whose ranks need most."""
    return max(stages, key=lambda s: s.total)


def fullest(
    model: ModelShape, layout: Layout, precision: Precision, room: float, margin: float
) -> StageMemory:
    """The fullest of the stages that can be it; the first is enough where it does not fit into
    ``room`` bytes."""
    first = memory_by_stage(model, layout, precision, [0], margin)[0]
    if layout.pp == 1 or first.total > room:
        return first
    others = [stage for stage, _ in telling_stages(model, layout) if stage]
    return largest([first, *memory_by_stage(model, layout, precision, others, margin)])


def stage_memory(
    model: ModelShape,
    layout: Layout,
    precision: Precision,
    stage: int,
    fragmentation: float = FRAGMENTATION,
) -> StageMemory:
    """The memory of one rank of one stage; ``fragmentation`` is a share of what is allocated."""
    count = stage_numel(model, layout, stage, model.padded_vocab_size(layout.tp))
    weights = _weight_bytes(count, layout, precision)
    gradients = _gradient_bytes(count, layout, precision)
    optimizer = _optimizer_bytes(count, layout, precision)
    activations = stage_bytes(model, layout, precision, stage)
    temporary = _temporary_bytes(model, layout, precision, stage, count)
    stepping = step_width(precision) * _optimizer_share(count, layout)
    temporary = max(temporary, stepping - activations)  # the step comes when these are free again
    allocated = weights + gradients + optimizer + activations + temporary
    margin = RUNTIME_BYTES + fragmentation * allocated
    return StageMemory(
        stage, count.total, weights, gradients, optimizer, activations, temporary, margin
    )


def shards(layout: Layout) -> tuple[int, int]:
    """Over how many ranks the state of dense weights, and of experts, is sharded."""
    copies, instances = (layout.dp * layout.cp, layout.expert_dp), layout.optimizer_instances
    return max(1, copies[0] // instances), max(1, copies[1] // instances)


def _sharded(count: Numel, layout: Layout) -> float:
    dense, expert = shards(layout)
    return count.dense / dense + count.expert / expert


def _shards_weights(layout: Layout) -> bool:
    return layout.fsdp is not None and (
        layout.fsdp == "torch" or layout.sharding == "optim_grads_params"
    )


def _shards_gradients(layout: Layout) -> bool:
    return layout.fsdp is not None and (
        layout.fsdp == "torch" or layout.sharding in ("optim_grads", "optim_grads_params")
    )


def _shards_optimizer(layout: Layout) -> bool:
    if layout.fsdp is not None:
        return layout.fsdp == "torch" or layout.sharding != "no_shard"
    return layout.distributed_optimizer


def _weight_bytes(count: Numel, layout: Layout, precision: Precision) -> float:
    """FP8 weights are kept twice, as they are and transposed: as many bytes as one in BF16."""
    held = _sharded(count, layout) if _shards_weights(layout) else count.total
    return BYTES[precision.weights] * held


def gradient_width(precision: Precision) -> int:
    """Bytes of one element of the main gradients."""
    full = precision.weights == "fp32" or precision.grad_reduce_in_fp32
    return 4 if full else BYTES[precision.weights]


def _gradient_bytes(count: Numel, layout: Layout, precision: Precision) -> float:
    held = _sharded(count, layout) if _shards_gradients(layout) else count.total
    return gradient_width(precision) * held


def optimizer_width(precision: Precision) -> int:
    """Bytes of the optimizer's state for one weight: of weights below FP32 an FP32 copy, too."""
    if precision.weights == "fp32":
        return 8
    if precision.precision_aware_optimizer:
        main = BYTES[precision.main_params_dtype]
        return main + BYTES[precision.exp_avg_dtype] + BYTES[precision.exp_avg_sq_dtype]
    return 12


def step_width(precision: Precision) -> int:
    """Bytes that the optimizer's step adds for one weight, and gives back.

    Of gradients below FP32 Megatron's optimizer makes an FP32 copy of its shard
    (``_copy_model_grads_to_main_grads``), unless it is the precision-aware one.
    """
    return 4 if gradient_width(precision) < 4 and not precision.precision_aware_optimizer else 0


def _optimizer_share(count: Numel, layout: Layout) -> float:
    """Weights, by number, whose state a rank has."""
    if not _shards_optimizer(layout):
        return count.total
    outer = 1 if layout.outer_sharding == "no_shard" else layout.optimizer_instances
    return _sharded(count, layout) / outer


def _optimizer_bytes(count: Numel, layout: Layout, precision: Precision) -> float:
    """Megatron's FSDP makes its FP32 copies of FP32 weights, too (``main_weight_buffer``)."""
    copied = layout.fsdp == "megatron" and precision.weights == "fp32"
    return (optimizer_width(precision) + 4 * copied) * _optimizer_share(count, layout)


def _temporary_bytes(
    model: ModelShape, layout: Layout, precision: Precision, stage: int, count: Numel
) -> float:
    work = _working_bytes(model, layout, precision, *stage_layer_kinds(model, layout, stage))
    if stage == layout.pp - 1:
        work = max(work, logits_bytes(model, layout, precision))
    if layout.fsdp == "torch" and not layout.reshard_after_forward:
        return work + BYTES[precision.weights] * count.total
    if _shards_weights(layout):
        return work + _gathered_bytes(model, layout, precision, stage)
    return work + _copies_bytes(count, precision)


def logits_bytes(model: ModelShape, layout: Layout, precision: Precision) -> float:
    """The final norm, the logits, and the softmax in FP32 that the loss keeps.

    megatron-core's loss makes that copy whether it is fused or not (``calculate_logits_max`` in
    ``tensor_parallel/cross_entropy.py``); TransformerEngine's, until 2.17, works in the logits.
    """
    width = BYTES[precision.weights]
    norm = 2 * width * model.hidden_size / norm_share(layout)
    softmax = 0 if layout.fusions.cross_entropy_impl == "te" else 4
    logits = (width + softmax) * model.padded_vocab_size(layout.tp) / layout.tp
    return tokens_per_rank(layout) * (norm + logits)


def _working_bytes(
    model: ModelShape, layout: Layout, precision: Precision, dense: int, experts: int
) -> float:
    """The gradients inside a layer's backward pass, and what is recomputed for it."""
    if not dense + experts:
        return 0.0
    moe = experts > 0
    width = BYTES[precision.weights]
    inner = model.moe_ffn_hidden_size * model.moe_router_topk if moe else model.ffn_hidden_size
    wide = inner * (3 if model.gated_linear_unit else 2) / layout.tp
    work = tokens_per_rank(layout) * width * (wide + 2 * model.hidden_size / norm_share(layout))
    scores = score_bytes(model, layout, width) / layout.tp
    if recomputes_attention(layout):
        scores *= 2  # again, and their gradient
    work += tokens_per_rank(layout) * scores
    if layout.recompute.granularity == "full":
        chunk = layout.recompute.num_layers or 1
        chunk = chunk if layout.recompute.method == "uniform" else 1
        work += chunk * layer_bytes(model, layout, precision, moe=moe)
    return work


def _copies_bytes(count: Numel, precision: Precision) -> float:
    """FP8 copies of BF16 weights, as they are and transposed, kept over a step's microbatches."""
    low = precision.fp8 is not None or precision.fp4 is not None
    return 2 * count.linear if low and not precision.fp8_param else 0.0


def _gathered_bytes(model: ModelShape, layout: Layout, precision: Precision, stage: int) -> float:
    """Whole weights and gradients of two units at a time: this one, and the next on its way."""
    layer = max(
        numel(layer_weights(model, layout, moe=moe)).total
        for moe in set(model.moe_layers or (False,))
    )
    ends = 0
    vocab = model.padded_vocab_size(layout.tp)
    if stage == 0:
        ends = numel(embedding_weights(model, layout, vocab)).total
    if stage == layout.pp - 1:
        tail = output_weights(model, layout, vocab, shared_is_here=stage == 0)
        ends = max(ends, numel(tail).total)
    unit = BYTES[precision.weights] + gradient_width(precision)
    return unit * (2 * layer + ends)
