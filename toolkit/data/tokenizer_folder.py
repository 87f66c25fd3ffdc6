"""Tokenizer folders of every kind: finding what defines a tokenizer, copying it, writing one.

A folder may hold a Hugging Face ``tokenizer.json``, a ``tekken.json``, a ``.tiktoken`` file, a
SentencePiece model, or BERT's ``vocab.txt``; where it has several, the first of these is taken.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from toolkit.artifacts import sha256, write_json
from toolkit.data.bpe_ranks import (
    END_OF_TEXT,
    TIKTOKEN_SETTINGS,
    Ranks,
    is_tiktoken,
    read_tekken,
    read_tiktoken,
    settings_of,
)
from toolkit.data.config import END_OF_TURN, EOD_TOKEN, PAD_TOKEN, TrainTokenizerConfig
from toolkit.errors import DataError, ToolkitError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TokenizerKind = Literal["tokenizers", "sentencepiece", "tiktoken", "tekken"]
TOKENIZER_JSON = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TEKKEN_JSON = "tekken.json"
BERT_VOCABULARY = "vocab.txt"
SENTENCEPIECE_MODEL = "tokenizer.model"
CHAT_TEMPLATE = "chat_template.jinja"
CARRIED = (
    TOKENIZER_JSON,
    TOKENIZER_CONFIG,
    CHAT_TEMPLATE,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    SENTENCEPIECE_MODEL,
    "spiece.model",
    "sentencepiece.bpe.model",
    TEKKEN_JSON,
    TIKTOKEN_SETTINGS,
    BERT_VOCABULARY,
)
"""The files that make a tokenizer; of a model's folder these alone are copied."""
LOOKED_FOR = (
    TOKENIZER_JSON,
    TEKKEN_JSON,
    "*.tiktoken",
    "*.model",
    "*.model.v*",
    BERT_VOCABULARY,
)
"""What defines a tokenizer, in the order of precedence."""
LIBRARIES: dict[TokenizerKind, str] = {
    "tokenizers": "tokenizers",
    "sentencepiece": "sentencepiece",
    "tiktoken": "tiktoken",
    "tekken": "tiktoken",
}
"""The library whose tokens are right by definition, for each kind."""
TEMPLATES = Path(__file__).parent / "chat_templates"


@dataclass(frozen=True)
class TokenizerFolder:
    """A tokenizer of any kind; its files are read when something of them is asked for."""

    folder: Path
    kind: TokenizerKind
    files: tuple[Path, ...]
    """What defines it; the first is the one that its library opens."""

    @cached_property
    def json(self) -> str | None:
        """Content of the ``tokenizer.json``, or one made of a ``vocab.txt``; None without."""
        if self.kind != "tokenizers":
            return None
        if self.files[0].suffix == ".txt":
            from toolkit.data.word_piece import bert_tokenizer

            return str(bert_tokenizer(self.files[0], self._settings()).to_str())
        try:
            return self.files[0].read_bytes().decode()
        except UnicodeDecodeError as error:
            raise DataError(f"not UTF-8: {error}", where=str(self.files[0])) from error

    @cached_property
    def ranks(self) -> Ranks:
        """What a tiktoken or tekken file holds."""
        read = {"tiktoken": read_tiktoken, "tekken": read_tekken}[self.kind]
        return read(self.files[0])

    @cached_property
    def opened(self) -> Tokenizer:
        """A tokenizer of the kind ``tokenizers``, as that library has it.

        Raises:
            DataError: the library can't read it.
        """
        from tokenizers import Tokenizer

        try:
            return Tokenizer.from_str(self.json or "")
        except Exception as error:
            # tokenizers raises plain Exception for whatever it can't parse
            raise DataError(f"not a readable tokenizer: {error}", where=str(self.files[0])) from (
                error
            )

    @cached_property
    def vocabulary(self) -> Mapping[str, int]:
        """Every token's id, added tokens included; tokens that are no text are left out.

        Raises:
            DataError: the tokenizer's library can't read it.
        """
        if self.kind == "tokenizers":
            return dict(self.opened.get_vocab(with_added_tokens=True))
        if self.kind == "sentencepiece":
            model = open_sentencepiece(self.files[0])
            return {model.id_to_piece(i): i for i in range(model.get_piece_size())}
        return self.ranks.vocabulary

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id; more than the number of tokens where ids have gaps."""
        if self.kind in ("tiktoken", "tekken"):
            return self.ranks.vocab_size
        return max(self.vocabulary.values()) + 1

    @property
    def library(self) -> str:
        """The library that this kind of tokenizer belongs to."""
        return LIBRARIES[self.kind]

    @cached_property
    def sha256(self) -> str:
        """Of the defining file: what ties a dataset to the tokenizer that made it."""
        if self.json is not None:
            return hashlib.sha256(self.json.encode()).hexdigest()
        hashes = [sha256(path) for path in self.files]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256(str(hashes).encode()).hexdigest()

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
        """The ``eos_token`` of the folder's configuration, or the one that its kind has."""
        for name in (TOKENIZER_CONFIG, "special_tokens_map.json"):
            path = self.folder / name
            found = _read_json(path).get("eos_token") if path.is_file() else None
            if found is not None:
                return str(found["content"] if isinstance(found, dict) else found)
        if self.kind == "sentencepiece":
            model = open_sentencepiece(self.files[0])
            return str(model.id_to_piece(model.eos_id())) if model.eos_id() >= 0 else None
        usual = {"tiktoken": END_OF_TEXT, "tekken": "</s>"}.get(self.kind)
        return usual if usual in self.vocabulary else None

    def special_tokens(self) -> list[str]:
        """The special tokens, and others that were added: what may stand literally in a text."""
        if self.json is not None:
            return [token["content"] for token in json.loads(self.json).get("added_tokens") or []]
        if self.kind == "sentencepiece":
            model = open_sentencepiece(self.files[0])
            ids = range(model.get_piece_size())
            return [model.id_to_piece(i) for i in ids if model.is_control(i) or model.is_unknown(i)]
        return list(self.ranks.special_tokens)

    def _settings(self) -> dict[str, Any]:
        path = self.folder / TOKENIZER_CONFIG
        return _read_json(path) if path.is_file() else {}


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

    It stays of its kind. Only BERT's ``vocab.txt`` becomes a ``tokenizer.json``.

    Raises:
        ToolkitError: there is no tokenizer, or none that can be read.
    """
    copy_tokenizer(source, target)
    return open_tokenizer(target)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the files of the tokenizer in a tokenizer's or model's folder to a new folder.

    Raises:
        DataError: there is none.
    """
    found = find_tokenizer(source)
    target.mkdir(parents=True)
    for name in CARRIED:
        if (found.folder / name).is_file():
            shutil.copyfile(found.folder / name, target / name)
    for path in found.files:
        shutil.copyfile(path, target / _usual_name(path, found.kind))
    if found.files[0].suffix == ".txt":
        (target / TOKENIZER_JSON).write_text(found.json or "", encoding="utf-8")


def open_tokenizer(path: Path) -> TokenizerFolder:
    """Find the tokenizer in a folder, or in a file, and read its vocabulary.

    Raises:
        DataError: there is none, or its library can't read it.
    """
    tokenizer = find_tokenizer(path)
    assert tokenizer.vocab_size > 0
    return tokenizer


def find_tokenizer(path: Path) -> TokenizerFolder:
    """Find the tokenizer in a folder, or in a file; nothing of it is read yet.

    Raises:
        DataError: there is none, or several of one kind.
    """
    if path.is_file():
        return _of_file(path, path.parent)
    for pattern in LOOKED_FOR:
        found = sorted(path.glob(pattern))
        if len(found) > 1 and path / SENTENCEPIECE_MODEL in found:
            found = [path / SENTENCEPIECE_MODEL]
        if len(found) > 1:
            names = ", ".join(p.name for p in found)
            raise DataError(f"has several tokenizers: {names}", where=str(path))
        if found:
            return _of_file(found[0], path)
    raise DataError(
        "no tokenizer that can be read",
        where=str(path),
        hint=f"looked for {', '.join(LOOKED_FOR)}",
    )


def _of_file(path: Path, folder: Path) -> TokenizerFolder:
    if path.suffix == ".json":
        return TokenizerFolder(folder, "tekken" if "tekken" in path.name else "tokenizers", (path,))
    if path.suffix == ".txt":
        return TokenizerFolder(folder, "tokenizers", (path,))
    if path.suffix == ".tiktoken" or is_tiktoken(path):
        settings = settings_of(path)
        return TokenizerFolder(folder, "tiktoken", (path, settings) if settings else (path,))
    return TokenizerFolder(folder, "sentencepiece", (path,))


def _usual_name(path: Path, kind: TokenizerKind) -> str:
    """Under which name the file is found again: versions (``.model.v3``) are left out."""
    if kind == "sentencepiece":
        return path.name if path.suffix == ".model" else SENTENCEPIECE_MODEL
    if kind == "tekken":
        return TEKKEN_JSON
    if kind == "tokenizers" and path.suffix == ".json":
        return TOKENIZER_JSON
    return BERT_VOCABULARY if path.suffix == ".txt" else path.name


def open_sentencepiece(path: Path) -> Any:
    """The ``SentencePieceProcessor`` of a model file.

    Raises:
        DataError: sentencepiece can't read it.
    """
    from sentencepiece import SentencePieceProcessor

    try:
        return SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        reason = str(error).strip() or type(error).__name__
        raise DataError(f"not a readable SentencePiece model: {reason}", where=str(path)) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"invalid JSON: {error}", where=str(path)) from error
    if not isinstance(found, dict):
        raise DataError("not a JSON object", where=str(path))
    return found
