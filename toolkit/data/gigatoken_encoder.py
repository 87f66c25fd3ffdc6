"""Text to token ids by gigatoken, with a bound on its memory."""

from __future__ import annotations

import resource
import tempfile
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from toolkit.data.bpe_ranks import (
    CL100K_PATTERN,
    GPT2_PATTERN,
    O200K_PATTERN,
    TEKKEN_PATTERN,
    Ranks,
)
from toolkit.data.encoded import Encoded, Unsupported, joined
from toolkit.data.tokenizer_folder import TokenizerFolder

SEPARATOR = "\x00toolkit-document-{}\x01"
"""Stands between the texts of a batch that gigatoken encodes in one call, with a number in it.

No end of it is also a beginning: so none comes about where a text meets the separator.
"""
RESTARTS = 16
"""How many separators are tried."""
CACHE_BYTES = 384 << 20
"""By how much a process may grow through gigatoken's cache, which itself has no bound."""
GIGATOKEN_SCHEMES = {
    GPT2_PATTERN: "gpt2",
    CL100K_PATTERN: "gpt4",
    O200K_PATTERN: "o200k",
    TEKKEN_PATTERN: "nemotron",
}
"""gigatoken's name for the splitting of each pattern of ranks that it has."""
Load = Callable[[str], tuple[Any, int | None]]
"""Makes gigatoken's tokenizer with a separator; also says the separator's id in it."""
_PLACE = "\x00separator\x00"
"""Where a separator goes in a ``tokenizer.json``."""


class GigatokenEncoder:
    """gigatoken: ten to a hundred times faster than the libraries, where it has the tokenizer.

    A batch goes to it as one text with a separator between the documents: so one call gives one
    array, and its import of awkward (0.2 s) is not needed. Where a document has that separator in
    it, another is taken.

    Args:
        load: also says None for the separator's id, where texts can't be encoded together.
        offset: what is to be added to every id.
    """

    name = "gigatoken"

    def __init__(self, load: Load, offset: int = 0) -> None:
        self._load, self._offset, self._started = load, offset, 0
        self._start()

    def _start(self) -> None:
        self._started += 1
        self._tokenizer: Any = None
        self._between = SEPARATOR.format(self._started)
        self._tokenizer, separator = self._load(self._between)
        self._together, self._separator = separator is not None, separator or 0
        self._resident = resident_bytes()

    def encode_batch(self, texts: list[str]) -> Encoded:
        """Encode texts."""
        if resident_bytes() - self._resident > CACHE_BYTES:
            self._start()
        encoded = self._encode(texts)
        if self._offset:
            np.add(encoded.tokens, np.uint32(self._offset), out=encoded.tokens)
        return encoded

    def _encode(self, texts: list[str]) -> Encoded:
        if not self._together or len(texts) < 2:
            return joined([self._tokenizer.encode(text) for text in texts])
        raw = [text.encode() for text in texts]
        for _ in range(RESTARTS):
            tokens = self._tokenizer.encode(self._between.encode().join(raw))
            encoded = split(tokens, self._separator)
            if len(encoded.lengths) == len(texts):
                return encoded
            self._start()
        raise Unsupported("it does not find the separators between texts")


def split(tokens: npt.NDArray[np.uint32], separator: int) -> Encoded:
    """The tokens of texts that ``separator`` stands between."""
    bounds = np.flatnonzero(tokens == separator)
    inner = np.ones(len(tokens), np.bool_)
    inner[bounds] = False
    ends = np.append(bounds, len(tokens))
    starts = np.concatenate([[0], bounds + 1])
    return Encoded(tokens[inner], ends - starts)


def resident_bytes() -> int:
    """Memory that this process holds; 0 where the system doesn't say (no ``/proc``)."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return 0
    return int(pages) * resource.getpagesize()


def open_gigatoken(
    tokenizer: TokenizerFolder, *, parse_special_tokens: bool = False
) -> GigatokenEncoder:
    """gigatoken's encoder of a tokenizer, which need not be right: see ``choose_backend``.

    Raises:
        ImportError: gigatoken is not installed.
        Unsupported, ValueError, RuntimeError: it does not have this kind of tokenizer.
    """
    if tokenizer.json is not None:
        return GigatokenEncoder(_byte_level(tokenizer.json, parse_special_tokens))
    if parse_special_tokens:
        raise Unsupported("it is used for special tokens of a tokenizer.json alone")
    if tokenizer.kind == "sentencepiece":
        return GigatokenEncoder(_sentencepiece(tokenizer.files[0]))
    return GigatokenEncoder(_ranks(tokenizer.ranks), min(tokenizer.ranks.ids.values()))


def _byte_level(tokenizer_json: str, parse_special_tokens: bool) -> Load:
    """Of a ``tokenizer.json``: special tokens in a text are found only if asked."""
    from gigatoken.gigatoken_rs import BPETokenizer, load_hf_json

    settings: dict[str, Any] = orjson.loads(tokenizer_json)
    added = settings.get("added_tokens") or []
    vocabulary = settings["model"]["vocab"]
    ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    separator = max([*ids, *(token["id"] for token in added)], default=-1) + 1
    kept = [t for t in added if parse_special_tokens or not t.get("special")]
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    mark = {"id": separator, "content": _PLACE, **plain, "special": True}
    settings["added_tokens"] = [*kept, mark]
    settings["post_processor"] = settings["truncation"] = settings["padding"] = None
    content = orjson.dumps(settings)

    def load(between: str) -> tuple[Any, int | None]:
        tokenizer = load_hf_json(content.replace(orjson.dumps(_PLACE), orjson.dumps(between)))
        # What SentencePiece puts before a text it would put after every separator, or before none.
        return tokenizer, separator if isinstance(tokenizer, BPETokenizer) else None

    return load


def _sentencepiece(model: Path) -> Load:
    """Of a SentencePiece model, its user-defined symbols kept and its control symbols not."""
    from gigatoken._load.sentencepiece import sentencepiece_to_tokenizer_json
    from gigatoken.gigatoken_rs import load_hf_json

    settings = orjson.loads(sentencepiece_to_tokenizer_json(model.read_bytes()))
    added = [token for token in settings["added_tokens"] if not token["special"]]
    content = orjson.dumps({**settings, "added_tokens": added})
    return lambda _: (load_hf_json(content), None)


def _ranks(ranks: Ranks) -> Load:
    """Of ranks, which gigatoken reads from a file and wants to begin at 0."""
    from gigatoken.gigatoken_rs import BPETokenizer

    scheme = GIGATOKEN_SCHEMES.get(ranks.pattern)
    if scheme is None:
        raise Unsupported(f"it does not split by the pattern {ranks.pattern[:40]!r}...")
    first = min(ranks.ids.values())
    separator = max(ranks.ids.values()) - first + 1
    content = b"".join(b"%s %d\n" % (b64encode(t), i - first) for t, i in ranks.ids.items())

    def load(between: str) -> tuple[Any, int]:
        with tempfile.NamedTemporaryFile(suffix=".tiktoken") as file:
            file.write(content)
            file.flush()
            return BPETokenizer.from_tiktoken(file.name, scheme, {between: separator}), separator

    return load
