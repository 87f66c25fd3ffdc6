"""WordPiece as BERT has it, each word once: several times as fast as ``tokenizers`` alone.

What BERT's normalizer and splitting (``BertNormalizer``, ``BertPreTokenizer`` of ``tokenizers``) do
to ASCII is simple: controls are dropped, letters and digits are words, punctuation stands alone. So
that is done here; ``tokenizers`` encodes each word once, and its tokens are kept, for it comes
again. The same goes for what stands between blanks and is not all ASCII: neither step looks beyond
white space.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from toolkit.errors import DataError

LIMIT = 1 << 19
"""Entries that the memory may have, some 200 bytes each; then it starts anew."""
LONGEST = 32
"""Characters of what is kept: scripts without blanks have lines that never come again."""
_WORDS = re.compile(r"[A-Za-z0-9]+|[!-/:-@\[-`{-~]")
_DROPPED = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]+")
"""The controls, which the normalizer drops."""
_NOT_ASCII = re.compile(r"[^\x00-\x7f]\S*")


def is_bert(tokenizer_json: str) -> bool:
    """Whether a ``tokenizer.json`` is WordPiece with BERT's normalizer and splitting.

    Added tokens that are not special are found within words, so there must be none.
    """
    settings = orjson.loads(tokenizer_json)
    normalizer, splitting = settings.get("normalizer") or {}, settings.get("pre_tokenizer") or {}
    return (
        settings["model"].get("type") == "WordPiece"
        and normalizer.get("type") == "BertNormalizer"
        and normalizer.get("clean_text") is True
        and splitting.get("type") == "BertPreTokenizer"
        and all(token.get("special") for token in settings.get("added_tokens") or [])
    )


class WordPiece:
    """Encodes texts to the bytes of their ids (u32)."""

    def __init__(self, tokenizer_json: str) -> None:
        self._memory = Memory(tokenizer_json)
        self._lowercase = bool(orjson.loads(tokenizer_json)["normalizer"]["lowercase"])

    def encode(self, text: str) -> bytes:
        """The tokens of a text."""
        if _DROPPED.search(text):
            text = _DROPPED.sub("", text)
        return b"".join(self._parts(text))

    def _parts(self, text: str) -> Iterator[bytes]:
        at = 0
        for match in _NOT_ASCII.finditer(text):
            start = max(text.rfind(blank, at, match.start()) for blank in " \n\t\r") + 1
            start = max(start, at)
            yield self._ascii(text[at:start])
            at = match.end()
            yield self._memory[text[start:at]]
        yield self._ascii(text[at:])

    def _ascii(self, text: str) -> bytes:
        words = _WORDS.findall(text.lower() if self._lowercase else text)
        return b"".join(map(self._memory.__getitem__, words))


class Memory(dict[str, bytes]):
    """Tokens of texts, encoded by ``tokenizers`` when they first come."""

    def __init__(self, tokenizer_json: str) -> None:
        super().__init__()
        self._tokenizer = Tokenizer.from_str(tokenizer_json)
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def __missing__(self, text: str) -> bytes:
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        found = np.array(ids, np.uint32).tobytes()
        if len(text) <= LONGEST:
            if len(self) >= LIMIT:
                self.clear()
            self[text] = found
        return found


def bert_tokenizer(path: Path, settings: Mapping[str, Any]) -> Tokenizer:
    """BERT's tokenizer of a ``vocab.txt``, with the defaults of transformers' ``BertTokenizer``.

    Args:
        path: one token a line, in the order of their ids.
        settings: what ``tokenizer_config.json`` says: ``do_lower_case`` and the like.

    Raises:
        DataError: the token for unknown words is missing.
    """
    tokens = path.read_text(encoding="utf-8").split("\n")
    vocabulary = {token.rstrip("\r"): i for i, token in enumerate(tokens) if token.strip()}
    unknown = str(settings.get("unk_token") or "[UNK]")
    if unknown not in vocabulary:
        raise DataError(f"the vocabulary has no {unknown}", where=str(path))
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = (unknown, "[CLS]", "[SEP]", "[PAD]", "[MASK]")
    tokenizer.add_special_tokens([token for token in special if token in vocabulary])
    return tokenizer
