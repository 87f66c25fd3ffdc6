"""Perplexity, and bits per byte, of texts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from toolkit.data.readers import read_records
from toolkit.errors import DataError, ToolkitError
from toolkit.evaluate.config import PerplexityConfig
from toolkit.evaluate.figures import Figure, Kind, Scored
from toolkit.evaluate.scoring import Tokens
from toolkit.evaluate.subject import Subject

NOTE = (
    "Perplexity is the exponential of the mean loss per token. Every token of a document is scored "
    "exactly once; long documents are read in overlapping windows. The first token is predicted "
    "from the token that begins or separates documents; none that ends a document is scored. Bits "
    "per byte divides the same loss by the text's UTF-8 bytes, so it can be compared between "
    "tokenizers. Standard errors take a document as the unit."
)
PERPLEXITY = Kind("perplexity", "Perplexity", unit="tokens", better="lower", headline=True)
BITS = Kind("bits_per_byte", "Bits per byte", unit="bytes", better="lower")
SEPARATOR = "<|endoftext|>"


@dataclass
class Texts:
    """The documents of one source, and what was left out."""

    documents: list[str]
    empty: int = 0
    cut: bool = False
    """Whether max_bytes or max_documents ended the reading."""


def perplexity(subject: Subject, settings: PerplexityConfig, source: str) -> list[Scored]:
    """Perplexity and bits per byte of the source's documents.

    Raises:
        DataError: a record without the text, or a source without any.
    """
    texts = read_texts(subject.source(source), settings)
    start = start_token(subject.tokenizer)
    sequences = [_encode(subject.tokenizer, start, text) for text in texts.documents]
    losses = subject.score(sequences, source)
    over = [loss.total for loss in losses]
    tokens = [float(loss.tokens) for loss in losses]
    sizes = [float(len(text.encode())) for text in texts.documents]
    bits = [total / math.log(2) for total in over]
    figures = (Figure(PERPLEXITY, over, tokens, exponential=True), Figure(BITS, bits, sizes))
    counts = {
        "documents": len(texts.documents),
        "empty": texts.empty,
        "tokens": int(sum(tokens)),
        "bytes": int(sum(sizes)),
        "cut_short": texts.cut,
        "loss": math.fsum(over) / sum(tokens),
    }
    return [Scored(source, figures, counts)]


def read_texts(source: str, settings: PerplexityConfig) -> Texts:
    """The documents of a source, as far as max_documents and max_bytes allow.

    Raises:
        DataError: a record without the text, or no text at all.
    """
    texts = Texts([])
    left = settings.max_bytes or math.inf
    for text in _documents(source, settings):
        if not text.strip():
            texts.empty += 1
            continue
        if left <= 0 or len(texts.documents) == settings.max_documents:
            texts.cut = True
            break
        raw = text.encode()
        if len(raw) > left:
            texts.cut = True
            text = _shorten(raw, int(left))
        if text:
            texts.documents.append(text)
        left -= len(raw)
    if not texts.documents:
        raise DataError("no text to score", where=source)
    return texts


def start_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of the token that begins, or separates, documents.

    A chat model's eos often ends a turn instead, so it is the last choice: models before and after
    chat training are to be asked the same.

    Raises:
        ToolkitError: the tokenizer has none.
    """
    if tokenizer.bos_token_id is not None:
        return int(tokenizer.bos_token_id)
    separator = tokenizer.get_vocab().get(SEPARATOR, tokenizer.eos_token_id)
    if separator is None:
        raise ToolkitError(
            f"the tokenizer has no bos_token, no {SEPARATOR} and no eos_token: nothing to predict "
            "the first token of a document from",
            where=str(tokenizer.name_or_path),
            hint="set bos_token or eos_token in its tokenizer_config.json",
        )
    return int(separator)


def _documents(source: str, settings: PerplexityConfig) -> Iterator[str]:
    key = settings.text_key
    for record in read_records(source, sample_by=settings.sample_by):
        text = record.value.get(key)
        if not isinstance(text, str):
            found = f"is {type(text).__name__}" if key in record.value else "is missing"
            keys = ", ".join(record.value)
            raise DataError(
                f"the text {key!r} {found}", where=record.where, hint=f"text_key names it; {keys=}"
            )
        yield text


def _shorten(raw: bytes, size: int) -> str:
    """The text's first ``size`` bytes, back to the last whole word."""
    text = raw[:size].decode("utf-8", errors="ignore")
    words = text.rstrip() if text[-1:].isspace() else text.rpartition(" ")[0].rstrip()
    return words or text


def _encode(tokenizer: PreTrainedTokenizerBase, start: int, text: str) -> Tokens:
    """A special token's name in a text is text."""
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
    tokens = [start, *ids["input_ids"]]
    return Tokens(tokens, [False, *[True] * (len(tokens) - 1)])
