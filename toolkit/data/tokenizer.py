"""The ``train-tokenizer`` stage: byte-level BPE (Sennrich et al. 2016, as GPT-2 has it)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from toolkit.artifacts import Artifact
from toolkit.context import StageContext
from toolkit.data.config import END_OF_TURN, EOD_TOKEN, TrainTokenizerConfig
from toolkit.data.documents import DocumentReader
from toolkit.data.encoders import open_encoder
from toolkit.data.inputs import expand_inputs
from toolkit.data.sources import Source
from toolkit.data.tokenizer_folder import open_tokenizer, write_tokenizer
from toolkit.errors import DataError

logger = logging.getLogger(__name__)

MEASURED = 1 << 20
"""Bytes of the training text on which bytes per token are measured."""


def run(config: TrainTokenizerConfig, context: StageContext) -> Artifact:
    """Train on the sources and publish a ``tokenizer`` artifact.

    Raises:
        DataError: the sources can't be read, or hold no text.
    """
    texts = Texts(expand_inputs(config.sources, context), config, context)
    tokenizer = train(texts, config)
    built = context.building()
    write_tokenizer(built, tokenizer, config)
    return context.publish(built, "tokenizer", info=_info(built, texts, config))


def train(texts: Texts, config: TrainTokenizerConfig) -> Tokenizer:
    """A byte-level BPE tokenizer: GPT-2's splitting, no unknown token, nothing normalized.

    The same texts in the same order give the same tokenizer, whatever the number of threads.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    # With its blanks left untrimmed a token's offsets are its own: loss masks count on it.
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        max_token_length=config.max_token_length,
        special_tokens=[AddedToken(t, special=True) for t in config.special_tokens()],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(iter(texts), trainer)
    if not texts.bytes:
        raise DataError("the sources hold no text", where=", ".join(config.sources))
    return tokenizer


class Texts:
    """The texts to train on, at most ``max_bytes`` of them; iterate once.

    Each file gives its beginning, in proportion to its size, so that a cut leaves no file out. What
    has no size (samples, a hub's data sets) comes first, with equal shares; files take what it
    leaves.
    """

    def __init__(
        self, sources: list[Source], config: TrainTokenizerConfig, context: StageContext
    ) -> None:
        self._sources, self._config, self._context = sources, config, context
        self.bytes = self.documents = 0
        self.cut = False
        """Whether ``max_bytes`` left some text out."""
        self.measured: list[str] = []
        """The first texts, about a megabyte of them."""

    def __iter__(self) -> Iterator[str]:
        unsized = [source for source in self._sources if not source.size]
        sized = [source for source in self._sources if source.size]
        for done, source in enumerate(unsized):
            yield from self._of(source, self._left // (len(self._sources) - done))
        size_left = sum(source.size for source in sized)
        for source in sized:
            budget = self._left * source.size // size_left
            size_left -= source.size
            yield from self._of(source, budget)
        if self.cut:
            logger.info("trained on %s bytes of text; max_bytes left the rest out", self.bytes)

    @property
    def _left(self) -> int:
        return self._config.max_bytes - self.bytes

    def _of(self, source: Source, budget: int) -> Iterator[str]:
        reader = DocumentReader([source], self._config.text_key, None, self._config.sample_by)
        for document in reader:
            if budget <= 0:
                self.cut = True
                return
            content = document.text.encode()
            self.cut = self.cut or len(content) > budget
            text = content[:budget].decode(errors="ignore")
            budget -= len(content)
            self._count(text)
            yield text

    def _count(self, text: str) -> None:
        self.bytes += len(text.encode())
        self.documents += 1
        if self.bytes <= MEASURED or not self.measured:
            self.measured.append(text[:MEASURED])
        self._context.progress(self.bytes / 1e6, unit="MB", documents=self.documents)


def _info(built: Any, texts: Texts, config: TrainTokenizerConfig) -> dict[str, Any]:
    folder = open_tokenizer(built)
    if folder.vocab_size < config.vocab_size:
        logger.warning(
            "the text gives %s tokens, not the %s of vocab_size: no further pair occurs %s times; "
            "what comes after uses the real size",
            *(folder.vocab_size, config.vocab_size, config.min_frequency),
        )
    encoded = open_encoder(folder, folder.library).encode_batch(texts.measured)
    measured = sum(len(text.encode()) for text in texts.measured)
    return {
        "vocab_size": folder.vocab_size,
        "requested_vocab_size": config.vocab_size,
        "eod_token": EOD_TOKEN,
        "eod_id": folder.vocabulary[EOD_TOKEN],
        "eos_token": END_OF_TURN[config.chat_template],
        "chat_template": config.chat_template,
        "sha256": folder.sha256,
        "documents": texts.documents,
        "text_bytes": texts.bytes,
        "bytes_per_token": round(measured / len(encoded.tokens), 3),
        "sources": list(config.sources),
    }
