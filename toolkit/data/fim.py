"""Fill-in-the-middle: documents cut in three at random and rearranged (Bavarian et al. 2022).

A document is cut between characters, before it is encoded, so that a model learns to go on from
any place. PSM is ``<prefix-token> prefix <suffix-token> suffix <middle-token> middle``; SPM is the
paper's variant 2, as Megatron-LM has it: ``<prefix-token> <suffix-token> suffix <middle-token>
prefix middle``. What becomes of a document follows from the seed and its text alone: neither the
number of shards or workers nor the order of the documents changes a byte.

SentencePiece puts a blank in front of every text. A cut is no beginning, so there the blank is kept
out, as Code Llama does it: a mark goes in front, and its tokens are taken off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest, xxh3_128_digest

from toolkit.data.encoders import Encoded, Encoder
from toolkit.data.fim_config import FIM_TOKENS, FimSettings
from toolkit.data.tokenizer_folder import TokenizerFolder
from toolkit.errors import ToolkitError

MARK = "\ue000"
"""A character of no script, which no tokenizer has joined with others."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a document."""

    special: tuple[int, ...]
    """Tokens in front of it."""
    text: str
    cut: bool = False
    """Whether it begins where the document was cut."""


def draws(key: bytes, count: int, seed: int) -> list[float]:
    """Numbers in [0, 1) that look random, the same for the same key and seed on every machine."""
    digest = xxh3_128_digest(key, seed=seed)
    return [(xxh3_64_intdigest(digest, seed=i) >> 11) / (1 << 53) for i in range(count)]


def cut(text: str, one: float, two: float) -> tuple[str, str, str]:
    """Prefix, middle and suffix, cut at two numbers in [0, 1); any of them may be empty."""
    places = len(text) + 1
    start, stop = sorted((int(one * places), int(two * places)))
    return text[:start], text[start:stop], text[stop:]


@dataclass(frozen=True)
class Fim:
    """Rearranges documents and encodes them.

    Picklable, for worker processes.
    """

    prefix: int
    middle: int
    suffix: int
    """Token ids."""
    fim_rate: float
    fim_spm_rate: float
    seed: int

    @classmethod
    def of(cls, settings: FimSettings, tokenizer: TokenizerFolder, seed: int) -> Self:
        """Find the tokens that the settings name.

        Raises:
            ToolkitError: the tokenizer hasn't them.
        """
        prefix, middle, suffix = _tokens(settings, tokenizer)
        return cls(
            tokenizer.id_of(prefix, "prefix_token"),
            tokenizer.id_of(middle, "middle_token"),
            tokenizer.id_of(suffix, "suffix_token"),
            settings.fim_rate,
            settings.fim_spm_rate,
            seed,
        )

    def pieces(self, text: str, key: bytes | None = None) -> list[Piece]:
        """A document as it is to be encoded; one piece, the text itself, where it stays whole.

        ``key`` is what the draw hangs on together with the seed: by default the text.
        """
        chosen, spm, one, two = draws(text.encode() if key is None else key, 4, self.seed)
        if chosen >= self.fim_rate:
            return [Piece((), text)]
        prefix, middle, suffix = cut(text, one, two)
        if spm < self.fim_spm_rate:
            return [
                Piece((self.prefix, self.suffix), suffix, cut=True),
                Piece((self.middle,), prefix),
                Piece((), middle, cut=True),
            ]
        return [
            Piece((self.prefix,), prefix),
            Piece((self.suffix,), suffix, cut=True),
            Piece((self.middle,), middle, cut=True),
        ]

    def apply(
        self, texts: Sequence[str], encoder: Encoder, keys: Sequence[bytes] | None = None
    ) -> Encoded:
        """Rearrange and encode a batch; the pieces of a document are encoded one by one.

        Args:
            texts: the documents.
            encoder: which leaves special tokens in texts as they are.
            keys: see ``pieces``.
        """
        given = [None] * len(texts) if keys is None else keys
        of = [self.pieces(text, key) for text, key in zip(texts, given, strict=True)]
        flat = [piece for pieces in of for piece in pieces]
        with_special = _insert(_encode(flat, encoder), [piece.special for piece in flat])
        firsts = np.cumsum([0, *(len(pieces) for pieces in of)], dtype=np.int64)[:-1]
        lengths = np.add.reduceat(with_special.lengths, firsts) if of else with_special.lengths
        return Encoded(with_special.tokens, lengths)


def _encode(pieces: Sequence[Piece], encoder: Encoder) -> Encoded:
    """The tokens of the pieces, without what the encoder puts in front of a text at a cut."""
    alone, after, letter = encoder.encode_batch([MARK, f"x{MARK}", "x"]).lengths
    marked = np.array([piece.cut and alone > after - letter for piece in pieces], np.bool_)
    texts = [MARK + p.text if m else p.text for p, m in zip(pieces, marked, strict=True)]
    encoded = encoder.encode_batch(texts)
    firsts = (np.cumsum(encoded.lengths) - encoded.lengths)[marked]
    kept = np.ones(len(encoded.tokens), np.bool_)
    kept[(firsts[:, None] + np.arange(alone)).ravel()] = False
    return Encoded(encoded.tokens[kept], encoded.lengths - alone * marked)


def _insert(encoded: Encoded, special: Sequence[tuple[int, ...]]) -> Encoded:
    """Each text with special tokens, two at most, in front of it."""
    counts = np.fromiter(map(len, special), np.int64, len(special))
    lengths = encoded.lengths + counts
    starts = np.cumsum(lengths) - lengths
    tokens = np.empty(int(lengths.sum()), np.uint32)
    inner = np.ones(len(tokens), np.bool_)
    for place in range(int(counts.max(initial=0))):
        here: npt.NDArray[np.int64] = starts[counts > place] + place
        tokens[here] = [ids[place] for ids in special if len(ids) > place]
        inner[here] = False
    tokens[inner] = encoded.tokens
    return Encoded(tokens, lengths)


def _tokens(settings: FimSettings, tokenizer: TokenizerFolder) -> tuple[str, str, str]:
    named = (settings.prefix_token, settings.middle_token, settings.suffix_token)
    if named[0] is not None and named[1] is not None and named[2] is not None:
        return (named[0], named[1], named[2])
    for tokens in FIM_TOKENS:
        if all(token in tokenizer.vocabulary for token in tokens):
            return tokens
    raise ToolkitError(
        "the tokenizer has none of the known tokens for fill-in-the-middle",
        where=str(tokenizer.folder),
        hint="name its prefix_token, middle_token and suffix_token, or train one with "
        f"additional_special_tokens: [{', '.join(FIM_TOKENS[0])}]",
    )
