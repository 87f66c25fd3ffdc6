"""What every encoder gives, and what it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt


class Unsupported(Exception):
    """Why an encoder can't take a tokenizer."""


@dataclass(frozen=True)
class Encoded:
    """The tokens of a batch of texts, one after another."""

    tokens: npt.NDArray[np.uint32]
    lengths: npt.NDArray[np.int64]
    """Tokens of each text."""


class Encoder(Protocol):
    """What turns texts to tokens."""

    name: str

    def encode_batch(self, texts: list[str]) -> Encoded:
        """Encode texts, adding nothing before or after them."""


def joined(tokens: list[npt.NDArray[np.uint32]]) -> Encoded:
    """The tokens of each text, put together."""
    lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
    if len(tokens) == 1:  # which may be large
        return Encoded(tokens[0], lengths)
    return Encoded(np.concatenate([np.zeros(0, np.uint32), *tokens]), lengths)
