"""Small tokenizers of every kind, trained on the sample documents."""

import functools
import json
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceTrainer
from tokenizers import (
    AddedToken,
    BertWordPieceTokenizer,
    Tokenizer,
    models,
    pre_tokenizers,
    trainers,
)

from toolkit.data.bpe_ranks import CL100K_PATTERN, TEKKEN_PATTERN
from toolkit.data.samples import read_sample

SPECIAL = ["<|endoftext|>", "<|im_start|>"]
GIGATOKEN_HAS = ("byte-level", "sentencepiece-bpe", "tiktoken", "tekken")
KINDS = (*GIGATOKEN_HAS, "sentencepiece-unigram", "word-piece")


@functools.cache
def texts() -> list[str]:
    return [row["text"] for row in read_sample("python-docs")][::7]


def byte_level(folder: Path) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": SPECIAL[0]}))
    return folder


def tokens_by_rank(folder: Path) -> list[bytes]:
    """The tokens of a byte-level tokenizer as bytes, in the order of their merges."""
    hidden = [*range(33), *range(127, 161), 173]
    shown = {chr(0x100 + hidden.index(b)) if b in hidden else chr(b): b for b in range(256)}
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    tokens = sorted((token for token in vocabulary if token not in SPECIAL), key=vocabulary.get)
    raw = [bytes(shown[c] for c in token) for token in tokens]
    return sorted(raw[:256]) + raw[256:]


def tiktoken(folder: Path, base: Path) -> Path:
    tokens = tokens_by_rank(base)
    lines = [f"{b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)]
    (folder / "own.tiktoken").write_text("".join(lines))
    special = {token: len(tokens) + i for i, token in enumerate(SPECIAL)}
    settings = {"pattern": CL100K_PATTERN, "special_tokens": special}
    (folder / "tiktoken.json").write_text(json.dumps(settings))
    return folder


def tekken(folder: Path, base: Path, *, spare: int = 5) -> Path:
    """Some tokens more than the vocabulary has room for, as Mistral's files have."""
    tokens = tokens_by_rank(base)
    vocabulary = [
        {"rank": rank, "token_bytes": b64encode(token).decode(), "token_str": None}
        for rank, token in enumerate(tokens)
    ]
    config: dict[str, Any] = {
        "pattern": TEKKEN_PATTERN,
        "num_vocab_tokens": len(tokens),
        "default_vocab_size": len(tokens) - spare + 30,
        "default_num_special_tokens": 30,
        "version": "v3",
    }
    (folder / "tekken.json").write_text(json.dumps({"config": config, "vocab": vocabulary}))
    return folder


def sentencepiece(folder: Path, model_type: str, **settings: Any) -> Path:
    SentencePieceTrainer.train(
        sentence_iterator=_lines(),
        model_prefix=str(folder / "tokenizer"),
        model_type=model_type,
        **{"vocab_size": 700, "byte_fallback": True, "minloglevel": 2, **settings},
    )
    (folder / "tokenizer.vocab").unlink()
    return folder


def _lines() -> Iterator[str]:
    return (line for text in texts()[:400] for line in text.splitlines() if line.strip())


def word_piece(folder: Path) -> Path:
    tokenizer = BertWordPieceTokenizer(lowercase=True)
    tokenizer.train_from_iterator(texts()[:300], vocab_size=600, show_progress=False)
    tokenizer.save_model(str(folder))
    return folder


def make(kind: str, root: Path) -> Path:
    folder = root / kind
    folder.mkdir()
    if kind == "byte-level":
        return byte_level(folder)
    if kind == "word-piece":
        return word_piece(folder)
    if kind == "sentencepiece-unigram":
        return sentencepiece(folder, "unigram")
    if kind == "sentencepiece-bpe":
        like_llama = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
        symbols = {"control_symbols": "<ctl>", "user_defined_symbols": "<user>"}
        return sentencepiece(folder, "bpe", **like_llama, **symbols)
    base = make("byte-level", folder)
    return tiktoken(folder, base) if kind == "tiktoken" else tekken(folder, base)
