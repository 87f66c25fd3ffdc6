"""Loss and perplexity on held-out text: each token once, the same samples every time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import distributed

from toolkit.errors import DataError
from toolkit.megatron.batches import Samples, load_batches
from toolkit.megatron.setup import Training
from toolkit.megatron.step import run_schedule


@dataclass(frozen=True)
class HeldOut:
    """The held-out samples that every evaluation goes through."""

    samples: Samples | None
    """None on a pipeline rank that reads no data."""
    count: int
    """Samples evaluated: at most ``eval_iters`` global batches, and no more than there are."""


def held_out(training: Training, dataset: object, vocab_size: int) -> HeldOut | None:
    """What to evaluate on; None where nothing is held out or ``eval_iters`` is 0.

    Every rank calls this; those without data learn the count from the others.
    """
    config = training.config
    known = len(dataset) if dataset is not None else 0  # type: ignore[arg-type]
    count = torch.tensor(known, device=training.device)
    distributed.all_reduce(count, op=distributed.ReduceOp.MAX)
    wanted = min(int(count.item()), config.eval_iters * config.global_batch_size)
    if wanted == 0:
        return None
    return HeldOut(Samples(dataset, vocab_size) if dataset is not None else None, wanted)


@torch.no_grad()
def evaluate(training: Training, part: HeldOut, each: Callable[[], None] = lambda: None) -> float:
    """The mean loss over the held-out tokens; perplexity is its exponential.

    Args:
        training: the model.
        part: the held-out samples.
        each: called after each global batch.

    Raises:
        DataError: of packed rows, none of the held-out ones has a token to predict.
    """
    batches = [_batches(training, part) for _ in training.chunks]
    total = torch.zeros(2, dtype=torch.float64, device=training.device)
    for chunk in training.chunks:
        chunk.eval()
    for _ in range(-(-part.count // training.config.global_batch_size)):
        total += run_schedule(training, batches, forward_only=True)
        each()
    for chunk in training.chunks:
        chunk.train()
    distributed.all_reduce(total)
    loss, tokens = total.tolist()
    if not tokens:
        raise DataError(
            "the held-out rows have no token to predict: their loss mask is 0 throughout",
            hint="give validation a larger share in split, or raise eval_iters",
        )
    return float(loss / tokens)


def _batches(training: Training, part: HeldOut):  # type: ignore[no-untyped-def]
    if part.samples is None:
        return iter(())
    return load_batches(part.samples, training.sharding.filled(part.count), training.device)


def perplexity(loss: float) -> float:
    """``exp(loss)``, infinite where a float can't hold it."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
