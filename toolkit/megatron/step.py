"""One optimizer step: forward and backward over the microbatches, agreement, update."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.utils import get_attr_wrapped_model
from torch import Tensor, distributed

from toolkit.megatron.batches import Batch, of_rank
from toolkit.megatron.guards import LossGuard, Verdict
from toolkit.megatron.optimizer import NonFiniteGradient
from toolkit.megatron.packed import examples_apart, joins_rows, packed_sequences
from toolkit.megatron.setup import Training

BatchIterators = Sequence[Iterator[Batch]]
"""One for each chunk of the model; a chunk without embedding or loss never asks its own."""


@dataclass(frozen=True)
class StepResult:
    """What one step did; the same on every rank."""

    loss: float
    """Mean over all tokens of the global batch, before the update."""
    grad_norm: float | None
    """Before clipping; None where the weights were not updated."""
    verdict: Verdict | None
    """What the guard said, if anything."""
    stop: bool
    """Whether any rank was asked to stop."""


def train_step(
    training: Training, batches: BatchIterators, guard: LossGuard, stop_requested: bool
) -> StepResult:
    """Take the next global batch; update the weights unless the guard objects."""
    for chunk in training.chunks:
        chunk.zero_grad_buffer()
    training.optimizer.zero_grad()
    sums = run_schedule(training, batches, forward_only=False)
    loss, stop = _agree(sums, stop_requested, training.device)
    verdict = guard.judge(loss)
    if verdict is not None:
        return StepResult(loss, None, verdict, stop)
    try:
        updated, grad_norm, _ = training.optimizer.step()
    except NonFiniteGradient as error:
        return StepResult(loss, None, guard.not_finite(str(error)), stop)
    if updated:
        training.scheduler.step(increment=training.config.global_batch_size)
    return StepResult(loss, grad_norm if updated else None, None, stop)


def run_schedule(training: Training, batches: BatchIterators, *, forward_only: bool) -> Tensor:
    """Run one global batch through the pipeline.

    Returns:
        (2,) float64: the sum of the losses and the number of tokens, of this rank's samples; zeros
        on the ranks that have no loss.
    """
    config = training.config
    joined = training.packed and joins_rows(training.device)
    rows = config.micro_batch_size
    step = functools.partial(forward_step, packed=training.packed, joined=joined)
    outputs = training.forward_backward(
        forward_step_func=step,
        data_iterator=list(batches) if len(batches) > 1 else batches[0],
        model=training.chunks if len(batches) > 1 else training.chunks[0],
        num_microbatches=training.layout.num_microbatches,
        seq_length=config.sequence * rows if joined else config.sequence,
        micro_batch_size=1 if joined else rows,
        forward_only=forward_only,
    )
    if not outputs:
        return torch.zeros(2, dtype=torch.float64, device=training.device)
    return torch.stack([o["loss"] for o in outputs]).sum(dim=0, dtype=torch.float64)


def forward_step(
    batches: Iterator[Batch],
    model: Any,
    packed: bool = False,
    joined: bool = False,
    return_schedule_plan: bool = False,
) -> tuple[Any, Any]:
    """Megatron's ``forward_step_func``: this chunk's output, and the function to its loss.

    Args:
        batches: asked for one, where this chunk needs it.
        model: the chunk.
        packed: whether rows hold several examples, which every chunk must keep apart.
        joined: whether packed rows go through the model as one long row.
        return_schedule_plan: whether the schedule wants the plan of the work in place of its output
            (``combined_1f1b.py``, where ``overlap_moe_expert_parallel_comm`` mixes two passes).
    """
    first = get_attr_wrapped_model(model, "pre_process")
    last = get_attr_wrapped_model(model, "post_process")
    batch = next(batches) if first or last or packed else None
    if batch is not None:
        group = parallel_state.get_context_parallel_group()
        batch = of_rank(batch, group.rank(), group.size())
    inputs, attention = _inputs(batch, joined)
    output = (model.build_schedule_plan if return_schedule_plan else model)(
        input_ids=inputs.tokens if inputs and first else None,
        position_ids=inputs.position_ids if inputs and first else None,
        labels=inputs.labels if inputs and last else None,
        **attention,
    )
    return output, functools.partial(masked_loss, batch.loss_mask) if batch else masked_loss


def _inputs(batch: Batch | None, joined: bool) -> tuple[Batch | None, dict[str, Any]]:
    """A microbatch as the model takes it, and what tells the attention its examples apart.

    Without packed rows the attention makes its causal mask by itself.
    """
    if batch is None or batch.cu_seqlens is None:
        return batch, {"attention_mask": None}
    if not joined:
        return batch, {"attention_mask": examples_apart(batch.position_ids)}
    names = ("tokens", "labels", "position_ids")
    row = replace(batch, **{name: getattr(batch, name).view(1, -1) for name in names})
    params = packed_sequences(batch.cu_seqlens, batch.tokens.shape[1])
    return row, {"attention_mask": None, "packed_seq_params": params}


def masked_loss(
    loss_mask: Tensor, losses: Tensor, non_loss_data: bool = False
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The sum of a microbatch's losses, its tokens, and both for the log.

    The schedule divides by the tokens and by the number of microbatches; of packed rows it divides
    the gradients by the tokens of the global batch (see ``build_training``).

    Args:
        loss_mask: (micro_batch_size, seq_length), 1 where a token counts.
        losses: of the same shape.
        non_loss_data: what Megatron's schedules pass for other outputs; not used.
    """
    mask = loss_mask.view(-1).float()
    total = torch.sum(losses.view(-1).float() * mask)
    tokens = mask.sum()
    seen = torch.stack([total.detach(), tokens])
    return total, tokens.to(torch.int), {"loss": seen}


def _agree(sums: Tensor, stop_requested: bool, device: torch.device) -> tuple[float, bool]:
    """The mean loss of the global batch, and whether anyone was asked to stop; on every rank.

    One all-reduce over all ranks. Tensor-parallel ranks add the same sums, which cancels out.
    """
    own = torch.cat([sums, torch.tensor([float(stop_requested)], dtype=sums.dtype, device=device)])
    distributed.all_reduce(own)
    total, tokens, stops = own.tolist()
    return total / max(tokens, 1.0), stops > 0
