"""Text to token ids: gigatoken where it agrees with ``tokenizers``, else ``tokenizers`` itself.

A special token that stands literally in a text stays text: ``<|endoftext|>`` in a document is
encoded as those thirteen characters.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from toolkit.errors import ToolkitError

logger = logging.getLogger(__name__)

PROBE_DOCUMENTS, PROBE_CHARACTERS = 256, 1 << 20
"""How many documents, and how much of them at most, the parity probe encodes twice."""
HARD_TEXTS = (
    " leading and trailing ",
    "tabs\tand\r\nnew lines\n\n\n  indented\n",
    "don't we'll I'M 1234567890 3.14159 x**2 != y",
    "na\u00efve e\u0301 \u4e2d\u6587\u5b57\u7b26 \u0645\u0631\u062d\u0628\u0627",
    "\U0001f469\u200d\U0001f680 \u00a0\u2003|\ufeff|\x00|\x7f",
)
"""Texts on which implementations are known to differ: blanks, numbers, scripts, controls."""


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


class TokenizersEncoder:
    """The reference: Hugging Face's ``tokenizers``."""

    name = "tokenizers"

    def __init__(self, tokenizer_json: str) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer_json)
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode_batch(self, texts: list[str]) -> Encoded:
        """Encode texts; threads as ``TOKENIZERS_PARALLELISM`` and ``RAYON_NUM_THREADS`` say."""
        ids = [e.ids for e in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        tokens = np.concatenate([np.zeros(0, np.uint32), *(np.array(i, np.uint32) for i in ids)])
        return Encoded(tokens, lengths)


class GigatokenEncoder:
    """The fast one, some hundred times faster than ``tokenizers`` on byte-level BPE.

    Raises:
        ImportError: gigatoken is not installed.
        ValueError: a tokenizer of a kind that it doesn't have.
    """

    name = "gigatoken"

    def __init__(self, tokenizer_json: str) -> None:
        import gigatoken

        self._tokenizer = gigatoken.Tokenizer.from_json(_without_special_tokens(tokenizer_json))

    def encode_batch(self, texts: list[str]) -> Encoded:
        """Encode texts on the threads that ``RAYON_NUM_THREADS`` gives."""
        layout = self._tokenizer.encode_batch(texts).layout
        offsets = np.asarray(layout.offsets.data, np.int64)
        tokens = np.asarray(layout.content.data, np.uint32)[offsets[0] : offsets[-1]]
        return Encoded(tokens, np.diff(offsets))


def _without_special_tokens(tokenizer_json: str) -> str:
    """A ``tokenizer.json`` that finds no special token in a text, and adds none around it."""
    settings: dict[str, Any] = json.loads(tokenizer_json)
    added = settings.get("added_tokens") or []
    settings["added_tokens"] = [token for token in added if not token.get("special")]
    settings["post_processor"] = settings["truncation"] = settings["padding"] = None
    return json.dumps(settings)


def choose_encoder(
    tokenizer_json: str, documents: Sequence[str], backend: str = "auto"
) -> tuple[Encoder, str]:
    """The encoder to use, and why in one sentence.

    Args:
        tokenizer_json: content of the file.
        documents: some of those to come; gigatoken must agree with ``tokenizers`` on them, and on
            ``HARD_TEXTS`` and the special tokens written out.
        backend: ``tokenizers`` for that alone; ``gigatoken`` for an error where it can't be used;
            ``auto`` for the fastest that is right.

    Raises:
        ToolkitError: ``gigatoken`` is asked for and can't be used.
    """
    reference = TokenizersEncoder(tokenizer_json)
    if backend == "tokenizers":
        return reference, "asked for"
    fast, why_not = _gigatoken(tokenizer_json)
    texts = _probe_texts(tokenizer_json, documents)
    if fast is not None:
        why_not = _difference(reference, fast, texts)
        if not why_not:
            return fast, f"equal to tokenizers on {len(texts)} probe texts"
    if backend == "gigatoken":
        raise ToolkitError(
            f"backend gigatoken can't be used: {why_not}", hint="set backend: auto or tokenizers"
        )
    logger.warning("falling back from gigatoken to tokenizers, which is slower: %s", why_not)
    return reference, f"gigatoken can't be used: {why_not}"


def _gigatoken(tokenizer_json: str) -> tuple[GigatokenEncoder | None, str]:
    try:
        return GigatokenEncoder(tokenizer_json), ""
    except ImportError as error:
        return None, f"not installed ({error})"
    except (ValueError, RuntimeError, NotImplementedError) as error:
        return None, f"it doesn't take this tokenizer ({str(error).partition(chr(10))[0]})"


def _probe_texts(tokenizer_json: str, documents: Sequence[str]) -> list[str]:
    added = json.loads(tokenizer_json).get("added_tokens") or []
    literals = [f"a {token['content']}b{token['content']}" for token in added]
    size = max(1, PROBE_CHARACTERS // max(1, min(len(documents), PROBE_DOCUMENTS)))
    return [*HARD_TEXTS, *literals, *(text[:size] for text in documents[:PROBE_DOCUMENTS])]


def _difference(reference: Encoder, other: Encoder, texts: list[str]) -> str:
    """What the first text is that two encoders encode differently; nothing where none is."""
    expected, found = reference.encode_batch(texts), other.encode_batch(texts)
    if np.array_equal(expected.lengths, found.lengths) and np.array_equal(
        expected.tokens, found.tokens
    ):
        return ""
    for text in texts:
        one, two = reference.encode_batch([text]).tokens, other.encode_batch([text]).tokens
        if not np.array_equal(one, two):
            return (
                f"its tokens differ on {text[:60]!r}: {two[:12].tolist()} for {one[:12].tolist()}"
            )
    return "its tokens differ between batches"
