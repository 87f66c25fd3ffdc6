"""Hugging Face tokenizer folders: writing one, and taking one into a dataset."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from toolkit.artifacts import sha256, write_json
from toolkit.data.config import END_OF_TURN, EOD_TOKEN, PAD_TOKEN, TrainTokenizerConfig
from toolkit.errors import DataError, ToolkitError

TOKENIZER_JSON = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
CARRIED = (
    TOKENIZER_JSON,
    TOKENIZER_CONFIG,
    CHAT_TEMPLATE,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
"""The files that make a tokenizer; of a model's folder these alone are copied."""
PLAIN_TEXTS = ("The quick brown fox jumps over 13 lazy dogs, again.", "One line\nand another")
"""What a converted tokenizer must encode as the original does."""
TEMPLATES = Path(__file__).parent / "chat_templates"


@dataclass(frozen=True)
class TokenizerFolder:
    """A folder with a ``tokenizer.json``."""

    folder: Path
    json: str
    """Content of the ``tokenizer.json``."""
    vocabulary: Mapping[str, int]
    """Every token's id, added tokens included."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id; more than the number of tokens where ids have gaps."""
        return max(self.vocabulary.values()) + 1

    @property
    def sha256(self) -> str:
        """Of the ``tokenizer.json``: what ties a dataset to the tokenizer that made it."""
        return sha256(self.folder / TOKENIZER_JSON)

    def id_of(self, token: str, setting: str) -> int:
        """The id of a token that a setting names.

        Raises:
            ToolkitError: the vocabulary has no such token.
        """
        if token not in self.vocabulary:
            raise ToolkitError(
                f"{setting}: the tokenizer has no token {token!r}", where=str(self.folder)
            )
        return self.vocabulary[token]

    def eos_token(self) -> str | None:
        """The ``eos_token`` of the folder's configuration."""
        for name in (TOKENIZER_CONFIG, "special_tokens_map.json"):
            path = self.folder / name
            found = _read_json(path).get("eos_token") if path.is_file() else None
            if found is not None:
                return str(found["content"] if isinstance(found, dict) else found)
        return None


def write_tokenizer(folder: Path, tokenizer: Tokenizer, config: TrainTokenizerConfig) -> None:
    """Save a tokenizer as transformers saves one: ``AutoTokenizer.from_pretrained`` opens it.

    The padding token is one of its own: where it equals ``eos_token``, masking the padding also
    masks the end of every answer, and the model never learns to stop.
    """
    tokenizer.save(str(folder / TOKENIZER_JSON))
    named = (EOD_TOKEN, PAD_TOKEN, END_OF_TURN[config.chat_template])
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": EOD_TOKEN,
        "eos_token": END_OF_TURN[config.chat_template],
        "pad_token": PAD_TOKEN,
        "extra_special_tokens": [t for t in config.special_tokens() if t not in named],
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(1e30),
    }
    write_json(folder / TOKENIZER_CONFIG, settings)
    shutil.copyfile(TEMPLATES / f"{config.chat_template}.jinja", folder / CHAT_TEMPLATE)


def take_tokenizer(source: Path, target: Path) -> TokenizerFolder:
    """Copy the tokenizer in a tokenizer's or model's folder to ``target``, and open it there.

    A tokenizer without a ``tokenizer.json`` (SentencePiece) is converted by transformers.

    Raises:
        ToolkitError: there is no tokenizer, or none that can be read.
    """
    target.mkdir(parents=True)
    if (source / TOKENIZER_JSON).is_file():
        for name in CARRIED:
            if (source / name).is_file():
                shutil.copyfile(source / name, target / name)
    else:
        _convert(source, target)
    return open_tokenizer(target)


def open_tokenizer(folder: Path) -> TokenizerFolder:
    """Read a folder that has a ``tokenizer.json``.

    Raises:
        DataError: ``tokenizers`` can't read it.
    """
    path = folder / TOKENIZER_JSON
    try:
        text = path.read_text(encoding="utf-8")
        vocabulary = Tokenizer.from_str(text).get_vocab(with_added_tokens=True)
    except Exception as error:
        # tokenizers raises plain Exception for whatever it can't parse
        raise DataError(f"not a readable tokenizer: {error}", where=str(path)) from error
    return TokenizerFolder(folder, text, vocabulary)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"invalid JSON: {error}", where=str(path)) from error
    if not isinstance(found, dict):
        raise DataError("not a JSON object", where=str(path))
    return found


def _convert(source: Path, target: Path) -> None:
    """Let transformers make a ``tokenizer.json``, and refuse one that encodes plain text wrongly.

    It takes the class that the folder names on trust: a unigram model called ``LlamaTokenizer``
    becomes a BPE that gives other tokens than the model was trained on.
    """
    from transformers import AutoTokenizer

    try:
        AutoTokenizer.from_pretrained(source, local_files_only=True).save_pretrained(target)
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"no tokenizer that can be read: {error}", where=str(source)) from error
    if not (target / TOKENIZER_JSON).is_file():
        raise DataError(
            f"the tokenizer has no {TOKENIZER_JSON} and can't be converted to one",
            where=str(source),
        )
    for model in sorted(source.glob("*.model")):
        _compare(model, target / TOKENIZER_JSON)


def _compare(model: Path, converted: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    original, tokenizer = SentencePieceProcessor(str(model)), Tokenizer.from_file(str(converted))
    for text in PLAIN_TEXTS:
        expected = original.encode(text)
        found = tokenizer.encode(text, add_special_tokens=False).ids
        if found != expected:
            raise DataError(
                f"converted to {TOKENIZER_JSON} it encodes {text!r} as {found}, not {expected}",
                where=str(model),
                hint=f"put a {TOKENIZER_JSON} beside it, made by the program that trained it",
            )
