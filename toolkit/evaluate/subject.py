"""One model under evaluation, with all that a measure needs of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from toolkit.data.sources import is_named
from toolkit.errors import StageError
from toolkit.evaluate.scoring import Loss, Tokens, Windows, score


@dataclass(frozen=True)
class Subject:
    """A model in memory, its tokenizer, and how it is to be measured."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    windows: Windows
    seed: int
    locate: Callable[[str], Path]
    """Where a reference of the pipeline file lies."""
    tick: Callable[[float], None]
    """Told the share of the present measure that is done."""
    chat_template: str | None = None
    """The tokenizer's, or that of another model in the table where it has none."""

    def source(self, reference: str) -> str:
        """A data source as the readers take it; names (sample:, hf:, URLs) stay as they are."""
        return reference if is_named(reference) else str(self.locate(reference))

    def score(self, sequences: Sequence[Tokens], source: str) -> list[Loss]:
        """The losses of sequences from ``source``.

        Raises:
            StageError: a loss is not a finite number.
        """
        losses = score(self.model, sequences, self.windows, self.tick)
        if not all(math.isfinite(loss.total) for loss in losses):
            raise StageError(
                f"{self.name} gives a loss that is not finite on {source}",
                hint="its weights are damaged, or its activations overflow the dtype: "
                "look at its training's curves, or set dtype: float32",
            )
        return losses
