"""Log-likelihoods of chosen tokens: the one engine under perplexity, answer loss and preferences.

A sequence longer than the window is read in windows that overlap, as Hugging Face's guide on the
perplexity of fixed-length models and lm_eval's rolling windows do: the first window scores all its
tokens, each later one only the ``stride`` tokens that no window scored before, so every token is
scored exactly once, with at least ``seq_length - stride`` tokens of context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.nn import functional
from transformers import PreTrainedModel

Item = TypeVar("Item")
LOGITS_AT_ONCE = 1024
"""Positions whose logits are turned to float32 at once: 0.5 GB at a vocabulary of 128k."""


@dataclass(frozen=True)
class Tokens:
    """A token sequence, and which of its tokens count; the first one never does."""

    ids: Sequence[int]
    scored: Sequence[bool]


@dataclass(frozen=True)
class Loss:
    """Negative log-likelihood, in nats, summed over the tokens that count."""

    total: float
    tokens: int


@dataclass(frozen=True)
class Windows:
    """How long sequences are cut: at most ``seq_length`` inputs at a time."""

    seq_length: int
    stride: int
    batch_size: int = 8

    def cut(self, length: int) -> Iterator[tuple[int, int, int]]:
        """(start, first, end) of each window: reads from start, scores the tokens [first, end).

        The token at ``end - 1`` is a target only, so a window has ``end - start - 1`` inputs.
        """
        start, first, end = 0, 1, min(length, self.seq_length + 1)
        while first < end:
            yield start, first, end
            first, end = end, min(length, end + self.stride)
            start = max(0, end - self.seq_length - 1)


@dataclass(frozen=True)
class _Window:
    sequence: int
    ids: Sequence[int]
    scored: tuple[int, ...]
    """Places in ``ids`` of the tokens that count here."""


def score(
    model: PreTrainedModel,
    sequences: Sequence[Tokens],
    windows: Windows,
    tick: Callable[[float], None] | None = None,
) -> list[Loss]:
    """The loss of each sequence's tokens that count, in order.

    Args:
        model: a causal language model in evaluation mode.
        sequences: of any lengths.
        windows: how long ones are cut, and how many windows make a batch.
        tick: told, after each batch, the share of the work that is done.
    """
    pending = [w for index, tokens in enumerate(sequences) for w in _cut(index, tokens, windows)]
    pending.sort(key=lambda w: len(w.ids), reverse=True)
    totals, counts = [0.0] * len(sequences), [0] * len(sequences)
    done = 0
    for batch in _chunks(pending, windows.batch_size):
        for window, loss in zip(batch, _losses(model, batch), strict=True):
            totals[window.sequence] += loss
            counts[window.sequence] += len(window.scored)
        done += len(batch)
        if tick:
            tick(done / len(pending))
    return [Loss(total, count) for total, count in zip(totals, counts, strict=True)]


def _cut(index: int, tokens: Tokens, windows: Windows) -> Iterator[_Window]:
    for start, first, end in windows.cut(len(tokens.ids)):
        scored = tuple(i - start for i in range(first, end) if tokens.scored[i])
        if scored:
            yield _Window(index, tokens.ids[start : start + scored[-1] + 1], scored)


@torch.inference_mode()
def _losses(model: PreTrainedModel, batch: Sequence[_Window]) -> list[float]:
    """Padded on the right: a causal model's earlier positions never see it."""
    longest = max(len(window.ids) for window in batch) - 1
    inputs = torch.zeros(len(batch), longest, dtype=torch.long)
    mask = torch.zeros_like(inputs)
    for row, window in enumerate(batch):
        inputs[row, : len(window.ids) - 1] = torch.tensor(window.ids[:-1])
        mask[row, : len(window.ids) - 1] = 1
    ragged: dict[str, Any] = {} if mask.all() else {"attention_mask": mask.to(model.device)}
    logits = model(input_ids=inputs.to(model.device), use_cache=False, **ragged).logits
    return [_loss(logits[row], window) for row, window in enumerate(batch)]


def _loss(logits: torch.Tensor, window: _Window) -> float:
    """Sum over the window's tokens that count; ``logits`` [positions, vocabulary]."""
    total = 0.0
    for places in _chunks(window.scored, LOGITS_AT_ONCE):
        targets = torch.tensor([window.ids[p] for p in places], device=logits.device)
        rows = logits[torch.tensor(places, device=logits.device) - 1].float()
        losses = functional.cross_entropy(rows, targets, reduction="none")
        total += losses.double().sum().item()
    return total


def _chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (items[i : i + size] for i in range(0, len(items), size))
