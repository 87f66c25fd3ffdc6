"""Text to token ids, by gigatoken, by our WordPiece, or by the tokenizer's own library.

A special token that stands literally in a text stays text: ``<|endoftext|>`` in a document is
encoded as those thirteen characters. Nothing is added before or after a text. Each encoder works
on one thread: processes, each with its own, measure faster than threads in one. Libraries are
imported by the encoder that needs them: a worker process starts with one of them alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from toolkit.data.bpe_ranks import Ranks
from toolkit.data.encoded import Encoded, Encoder, Unsupported, joined
from toolkit.data.gigatoken_encoder import GigatokenEncoder, open_gigatoken
from toolkit.data.tokenizer_folder import TokenizerFolder, open_sentencepiece
from toolkit.errors import DataError, ToolkitError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = [
    "Encoded",
    "Encoder",
    "GigatokenEncoder",
    "SentencePieceEncoder",
    "TiktokenEncoder",
    "TokenizersEncoder",
    "Unsupported",
    "WordPieceEncoder",
    "open_encoder",
    "open_gigatoken",
]


class TokenizersEncoder:
    """Hugging Face's ``tokenizers``."""

    name = "tokenizers"

    def __init__(self, tokenizer: Tokenizer, *, parse_special_tokens: bool = False) -> None:
        self._tokenizer, self._as_text = tokenizer, not parse_special_tokens
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode_batch(self, texts: list[str]) -> Encoded:
        """Encode texts; threads as ``TOKENIZERS_PARALLELISM`` and ``RAYON_NUM_THREADS`` say."""
        self._tokenizer.encode_special_tokens = self._as_text  # others may use the same tokenizer
        found = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return joined([np.array(encoding.ids, np.uint32) for encoding in found])


class WordPieceEncoder:
    """BERT's WordPiece by ``tokenizers``, each word once: see ``word_piece.py``.

    Raises:
        Unsupported: the tokenizer is another, or special tokens are to be found in texts.
    """

    name = "word-piece"

    def __init__(self, tokenizer_json: str | None, *, parse_special_tokens: bool = False) -> None:
        from toolkit.data.word_piece import WordPiece, is_bert

        if parse_special_tokens or tokenizer_json is None or not is_bert(tokenizer_json):
            raise Unsupported("not BERT's WordPiece")
        self._words = WordPiece(tokenizer_json)

    def encode_batch(self, texts: list[str]) -> Encoded:
        """Encode texts."""
        found = [self._words.encode(text) for text in texts]
        lengths = np.fromiter(map(len, found), np.int64, len(found)) // np.dtype(np.uint32).itemsize
        return Encoded(np.frombuffer(bytearray().join(found), np.uint32), lengths)


class SentencePieceEncoder:
    """Google's sentencepiece; user-defined symbols are pieces like others, control symbols text."""

    name = "sentencepiece"

    def __init__(self, model: Path) -> None:
        self._processor = open_sentencepiece(model)

    def encode_batch(self, texts: list[str]) -> Encoded:
        """Encode texts."""
        return joined([np.array(self._processor.encode(text), np.uint32) for text in texts])


class TiktokenEncoder:
    """OpenAI's tiktoken, for its own files and for tekken's."""

    name = "tiktoken"

    def __init__(self, ranks: Ranks, *, parse_special_tokens: bool = False) -> None:
        from tiktoken import Encoding

        self._encoding = Encoding(
            "ranks",
            pat_str=ranks.pattern,
            mergeable_ranks=dict(ranks.ids),
            special_tokens=dict(ranks.special_tokens) if parse_special_tokens else {},
        )

    def encode_batch(self, texts: list[str]) -> Encoded:
        """Encode texts.

        Raises:
            DataError: a run of blanks is longer than its regular expressions can take.
        """
        return joined([self._encode(text) for text in texts])

    def _encode(self, text: str) -> npt.NDArray[np.uint32]:
        try:
            return np.array(self._encoding.encode(text, allowed_special="all"), np.uint32)
        except ValueError as error:
            raise DataError(
                f"tiktoken can't split a text of {len(text):,} characters ({error}), which begins "
                f"{text[:40]!r}",
                hint="cut it, or leave out documents of white space that long",
            ) from error


def open_encoder(
    tokenizer: TokenizerFolder, backend: str, *, parse_special_tokens: bool = False
) -> Encoder:
    """The encoder of a tokenizer by a backend that ``choose_backend`` named.

    Raises:
        ToolkitError: the backend is no library of this tokenizer, or can't parse special tokens.
    """
    if backend == "gigatoken":
        return open_gigatoken(tokenizer, parse_special_tokens=parse_special_tokens)
    if backend == WordPieceEncoder.name:
        return WordPieceEncoder(tokenizer.json, parse_special_tokens=parse_special_tokens)
    if backend != tokenizer.library:
        raise ToolkitError(
            f"backend {backend} does not read this tokenizer",
            where=str(tokenizer.files[0]),
            hint=f"set backend: auto, gigatoken or {tokenizer.library}",
        )
    if tokenizer.json is not None:
        return TokenizersEncoder(tokenizer.opened, parse_special_tokens=parse_special_tokens)
    if tokenizer.kind != "sentencepiece":
        return TiktokenEncoder(tokenizer.ranks, parse_special_tokens=parse_special_tokens)
    if parse_special_tokens:
        raise ToolkitError(
            "sentencepiece finds no special tokens in text",
            where=str(tokenizer.files[0]),
            hint="set parse_special_tokens: false, or put a tokenizer.json beside the model",
        )
    return SentencePieceEncoder(tokenizer.files[0])
