"""What encodes: gigatoken, or our WordPiece, where its tokens are those of the tokenizer's own
library, else that library.

One process probes and hands the name to the others, which open their encoder with it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from toolkit.data.encoders import (
    Encoder,
    GigatokenEncoder,
    Unsupported,
    WordPieceEncoder,
    open_encoder,
)
from toolkit.data.tokenizer_folder import TokenizerFolder
from toolkit.errors import ToolkitError

logger = logging.getLogger(__name__)

PROBE_DOCUMENTS, PROBE_CHARACTERS = 128, 1 << 17
"""How many documents, and how much of them at most, the parity probe encodes twice."""
PROBE_LITERALS = 64
"""How many of the special tokens it looks for, written out in a text."""
HARD_TEXTS = (
    " leading and trailing ",
    "tabs\tand\r\nnew lines\n\n\n  indented\n",
    "don't we'll I'M 1234567890 3.14159 x**2 != y",
    "na\u00efve e\u0301 \u4e2d\u6587\u5b57\u7b26 \u0645\u0631\u062d\u0628\u0627",
    "\U0001f469\u200d\U0001f680 \u00a0\u2003|\ufeff|\x00|\x7f",
    "\u2581 \u2581\u2581 \uff21\uff11 \u00bd \ufb01 \u0130\u0131 \u0e33 \u1100\u1161",
    "a  b   c\n \n\t\n  \u3000\u2028\u0085 \r\r",
    "https://example.org/a_b?c=d&e=%20#f user@host.tld /usr/lib/x86_64-linux-gnu CamelCaseWords",
    "=" * 100 + "-" * 33 + "\n" + " " * 70 + "0" * 41 + "a" * 300,
)
"""Texts on which implementations are known to differ: blanks, numbers, scripts, controls."""


def choose_backend(
    tokenizer: TokenizerFolder,
    documents: Sequence[str],
    backend: str = "auto",
    *,
    parse_special_tokens: bool = False,
) -> tuple[str, str]:
    """The backend to give to ``open_encoder``, and why, in one sentence.

    Args:
        tokenizer: the tokenizer.
        documents: some of those to come; gigatoken must agree with the tokenizer's own library on
            the beginnings of the first, on ``HARD_TEXTS`` and on special tokens written out.
        backend: the library's name for that alone; ``gigatoken`` for an error where it can't be
            used; ``auto`` for the fastest that is right.
        parse_special_tokens: as the encoder will be opened.

    Raises:
        ToolkitError: the backend that is asked for can't be used.
    """
    reference = open_encoder(
        tokenizer,
        tokenizer.library if backend in ("auto", "gigatoken") else backend,
        parse_special_tokens=parse_special_tokens,
    )
    if backend == tokenizer.library:
        return backend, "asked for"
    texts = probe_texts(tokenizer, documents)
    why_not = []
    for fast in (GigatokenEncoder.name, WordPieceEncoder.name)[: 1 if backend != "auto" else 2]:
        problem = _problem(tokenizer, fast, reference, texts, parse_special_tokens)
        if problem is None:
            return fast, f"equal to {tokenizer.library} on {len(texts)} probe texts"
        why_not.append(problem)
    if backend == "gigatoken":
        raise ToolkitError(
            f"backend gigatoken can't be used: {why_not[0]}",
            hint=f"set backend: auto or {tokenizer.library}",
        )
    logger.warning(
        "falling back from gigatoken to %s, which is slower: %s", tokenizer.library, why_not[0]
    )
    return tokenizer.library, f"gigatoken can't be used: {why_not[0]}"


def probe_texts(tokenizer: TokenizerFolder, documents: Sequence[str]) -> list[str]:
    """The texts that both backends must agree on."""
    count = max(1, min(len(documents), PROBE_DOCUMENTS))
    beginnings = [text[: PROBE_CHARACTERS // count] for text in documents[:PROBE_DOCUMENTS]]
    literals = [f"a {token}b{token}" for token in tokenizer.special_tokens()[:PROBE_LITERALS]]
    return [*HARD_TEXTS, *literals, *beginnings]


def _problem(
    tokenizer: TokenizerFolder,
    backend: str,
    reference: Encoder,
    texts: list[str],
    parse_special_tokens: bool,
) -> str | None:
    """What is wrong with a backend for this tokenizer."""
    try:
        fast = open_encoder(tokenizer, backend, parse_special_tokens=parse_special_tokens)
        return _difference(reference, fast, texts)
    except ImportError as error:
        return f"not installed ({error})"
    except (Unsupported, ValueError, RuntimeError, NotImplementedError) as error:
        return f"it doesn't take this tokenizer ({str(error).partition(chr(10))[0]})"
    except BaseException as error:
        # What pyo3 raises for a panic in Rust is no Exception, and can't be imported.
        if type(error).__name__ != "PanicException":
            raise
        return f"it breaks off on a probe text ({str(error).partition(chr(10))[0]})"


def _difference(reference: Encoder, other: Encoder, texts: list[str]) -> str | None:
    """What the first text is that two encoders encode differently."""
    expected, found = reference.encode_batch(texts), other.encode_batch(texts)
    if np.array_equal(expected.lengths, found.lengths) and np.array_equal(
        expected.tokens, found.tokens
    ):
        return None
    for text in texts:
        one, two = reference.encode_batch([text]).tokens, other.encode_batch([text]).tokens
        if not np.array_equal(one, two):
            return (
                f"its tokens differ on {text[:60]!r}: {two[:12].tolist()} for {one[:12].tolist()}"
            )
    return "its tokens differ between batches"
