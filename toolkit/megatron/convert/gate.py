"""The gate: nothing is published whose logits differ from those of what it was made from.

Both models run in float32 on the same fixed token sequences: several short ones, and one as long
as the model takes. The side that was written is always read back from disk first.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from torch import Tensor
from transformers import PreTrainedModel

from toolkit.errors import StageError
from toolkit.megatron.config import TrainedModel

logger = logging.getLogger(__name__)

SHORT_SEQUENCES = 4
SHORT_TOKENS = 32
SEED = 1
ROUNDING = 1e-5
"""Share of the largest logit below which float32 sums in another order explain a difference."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far two models' logits on the same sequences are apart, and where most."""

    max_difference: float
    """Infinite where either model gave a value that is not finite."""
    sequence: int
    position: int
    token: int
    """Vocabulary entry of the largest difference."""
    largest_logit: float
    """Largest magnitude of the reference's logits: what the difference is to be held against."""
    lengths: tuple[int, ...]
    """Tokens of each sequence."""

    def info(self) -> dict[str, Any]:
        """The figures for an artifact's ``info``."""
        return {
            "max_logit_difference": self.max_difference,
            "largest_logit": self.largest_logit,
            "sequence_lengths": list(self.lengths),
        }


def token_sequences(model: TrainedModel, longest: int) -> list[Tensor]:
    """The fixed inputs: int64 tensors [1, length], ids drawn evenly from the real vocabulary.

    The last has ``longest`` tokens, or as many as the model has positions for.
    """
    positions = model.max_position_embeddings
    generator = torch.Generator().manual_seed(SEED)
    lengths = [min(SHORT_TOKENS, positions)] * SHORT_SEQUENCES + [min(longest, positions)]
    return [torch.randint(model.vocab_size, (1, length), generator=generator) for length in lengths]


@torch.inference_mode()
def megatron_logits(
    network: GPTModel, model: TrainedModel, sequences: Sequence[Tensor]
) -> list[Tensor]:
    """Logits [length, vocabulary] of each sequence, in float32, padding tokens left out.

    ``network`` is a whole model on one rank, in float32.
    """
    network.eval()
    logits = []
    for tokens in sequences:
        length = tokens.shape[1]
        positions = torch.arange(length)[None]
        # megatron-core's masks say what is hidden, not what is seen.
        mask = torch.ones(length, length, dtype=torch.bool).triu(1)[None, None]
        output = network(tokens, positions, mask)
        logits.append(output[0, :, : model.vocab_size].float())
    return logits


@torch.inference_mode()
def hf_logits(network: PreTrainedModel, sequences: Sequence[Tensor]) -> list[Tensor]:
    """Logits [length, vocabulary] of each sequence, in float32."""
    network.eval()
    return [network(tokens, use_cache=False).logits[0].float() for tokens in sequences]


def compare(reference: Sequence[Tensor], other: Sequence[Tensor]) -> Comparison:
    """Hold the logits of two models on the same sequences against each other.

    Args:
        reference: logits [length, vocabulary] of each sequence.
        other: the same of the other model.

    Raises:
        StageError: the vocabularies differ in size.
    """
    compared = [_compare(*both) for both in enumerate(zip(reference, other, strict=True))]
    worst = max(compared, key=lambda found: found.max_difference)
    return replace(
        worst,
        largest_logit=max(found.largest_logit for found in compared),
        lengths=tuple(len(logits) for logits in reference),
    )


def _compare(sequence: int, both: tuple[Tensor, Tensor]) -> Comparison:
    expected, found = both
    if expected.shape != found.shape:
        raise StageError(f"logits of shape {list(found.shape)}, {list(expected.shape)} expected")
    difference = (expected - found).abs().nan_to_num(nan=math.inf)
    place = int(difference.argmax())
    position, token = divmod(place, difference.shape[1])
    return Comparison(
        max_difference=difference[position, token].item(),
        sequence=sequence,
        position=position,
        token=token,
        largest_logit=expected.abs().max().item(),
        lengths=(len(expected),),
    )


def require(found: Comparison, tolerance: float, where: Path) -> None:
    """Refuse what differs by more than ``tolerance``.

    Raises:
        StageError: with the figure, the place, and what may be the matter.
    """
    if found.max_difference <= tolerance:
        logger.info(
            "logits agree: largest difference %.2e, allowed %.0e", found.max_difference, tolerance
        )
        return
    raise StageError(
        f"the converted model's logits differ by {found.max_difference:.3g}, "
        f"{tolerance:.3g} is allowed (sequence {found.sequence + 1} of {len(found.lengths)}, "
        f"position {found.position}, token {found.token}); nothing was published",
        where=str(where),
        hint=_advice(found),
    )


def _advice(found: Comparison) -> str:
    share = found.max_difference / found.largest_logit if found.largest_logit else math.inf
    if share < ROUNDING:
        return (
            f"the largest logit is {found.largest_logit:.4g}: this is float32 rounding, and a "
            f"tolerance of {10 * found.max_difference:.0e} would take it"
        )
    return (
        f"the largest logit is {found.largest_logit:.4g}: this is no rounding. Either the weights "
        "were damaged on the way, or the two models don't compute the same"
    )
