"""The tokens to train on: where they are, what vocabulary they are in, whether they are whole."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.artifacts import MANIFEST, read_artifact
from toolkit.context import StageContext
from toolkit.data.indexed import IndexedReader, bin_path, check_indexed, idx_path
from toolkit.data.pack.dataset import Dataset, open_dataset
from toolkit.data.pack.rows import MASK, mask_prefix
from toolkit.data.tokenizer_folder import find_tokenizer
from toolkit.errors import DataError
from toolkit.megatron.settings import DataSettings

logger = logging.getLogger(__name__)

TOKENIZER = "tokenizer"
TOKENIZER_FILE = "tokenizer.json"
SCAN_LIMIT = 2 << 30
"""Bytes of a bare ``.bin`` that are read through at the start; the loader checks every batch."""


@dataclass(frozen=True)
class Corpus:
    """Tokenized text and its vocabulary."""

    prefixes: tuple[Path, ...]
    """Paths of ``.bin``/``.idx`` pairs without the suffix."""
    vocab_size: int
    tokenizer: Path
    """A tokenizer's folder, of any kind."""
    weights: tuple[float, ...] | None = None
    """Of a blend: each prefix's share of the samples."""
    splits: Mapping[str, tuple[Path, ...]] | None = None
    """The prefixes of each part, where a ``split`` stage made them."""
    masks: tuple[Path, ...] | None = None
    """Prefixes of the loss masks, where the rows are packed."""
    packed_length: int | None = None
    """Tokens of a packed row."""

    def weight_of(self, prefix: Path) -> float:
        """What a prefix weighs beside the others: its weight in the blend, or its tokens."""
        if self.weights is not None:
            return self.weights[self.prefixes.index(prefix)]
        return float(IndexedReader(prefix).lengths.sum(dtype=np.int64))


def open_corpus(settings: DataSettings, context: StageContext) -> Corpus:
    """Find what ``data`` names, and check that it is whole and fits its tokenizer.

    Raises:
        DataError: nothing there, a file cut off, no tokenizer, another tokenizer than the tokens
            were made with, or a token id outside its vocabulary.
    """
    where = context.path(settings.data)
    given = context.path(settings.tokenizer) if settings.tokenizer else None
    corpus = _artifact(where, given) if (where / MANIFEST).is_file() else _bare(where, given)
    for prefix in corpus.prefixes:
        check_indexed(prefix)
    return corpus


def _artifact(folder: Path, given: Path | None) -> Corpus:
    found = open_dataset(read_artifact(folder))
    for tokenizer in (found.tokenizer, given):
        if tokenizer is not None:
            _same_tokenizer(tokenizer, found.tokenizer_sha256, folder)
    if found.masks is not None and found.packed_length is None:
        raise DataError(
            "the dataset has a loss mask, but its rows are not packed",
            where=str(folder),
            hint="give it to a pack stage",
        )
    for mask in found.masks or ():
        check_indexed(mask)
    return Corpus(
        prefixes=found.prefixes,
        vocab_size=int(found.info["vocab_size"]),
        tokenizer=found.tokenizer,
        weights=found.weights,
        splits=found.splits,
        masks=found.masks,
        packed_length=found.packed_length,
    )


def _same_tokenizer(tokenizer: Path, recorded: str, dataset: Path) -> None:
    found = find_tokenizer(tokenizer)
    if found.sha256 != recorded:
        raise DataError(
            f"the tokens were made with another tokenizer ({found.files[0].name} {recorded[:12]})"
            f" than the one in {tokenizer} ({found.sha256[:12]})",
            where=str(dataset),
            hint="tokenize again with this tokenizer, or leave out the tokenizer setting",
        )


def _bare(where: Path, tokenizer: Path | None) -> Corpus:
    prefixes = _prefixes(where)
    for prefix in prefixes:
        if idx_path(mask_prefix(prefix)).is_file():
            raise DataError(
                "packed rows with a loss mask, which a pair alone doesn't tell how to train on",
                where=str(prefix),
                hint="give the folder of the pack stage's artifact as data",
            )
        if (owner := _owner(prefix)) is not None:
            tokenizer = tokenizer or owner.tokenizer
            _same_tokenizer(tokenizer, owner.tokenizer_sha256, owner.folder)
    if tokenizer is None:
        raise DataError(
            "a .bin/.idx pair does not say which tokenizer made it",
            where=str(where),
            hint="set `tokenizer:` to a train-tokenizer stage or to a tokenizer's folder",
        )
    corpus = Corpus(prefixes, vocabulary(tokenizer), tokenizer)
    for prefix in prefixes:
        _refuse_foreign_ids(prefix, corpus.vocab_size)
    return corpus


def _owner(prefix: Path) -> Dataset | None:
    """The dataset artifact that a pair is part of."""
    folders = [folder for folder in list(prefix.parents)[:3] if (folder / MANIFEST).is_file()]
    artifact = read_artifact(folders[0]) if folders else None
    if artifact is None or artifact.type != "dataset":
        return None
    found = open_dataset(artifact)
    return found if prefix in found.prefixes else None


def _prefixes(where: Path) -> tuple[Path, ...]:
    """The pairs that a path names: one by its name, with or without suffix, or a folder's all."""
    if where.suffix in (".bin", ".idx"):
        where = where.with_suffix("")
    if idx_path(where).is_file() or bin_path(where).is_file():
        return (where,)
    pairs = sorted(p.with_suffix("") for p in where.glob("*.idx")) if where.is_dir() else []
    found = tuple(prefix for prefix in pairs if not prefix.name.endswith(MASK))
    if not found:
        raise DataError(
            "no dataset here: no artifact.json, and no .bin/.idx pair",
            where=str(where),
            hint=f"looked for {idx_path(where).name}, and for *.idx in a folder of that name",
        )
    return found


def vocabulary(tokenizer: Path) -> int:
    """Tokens of a tokenizer's folder, the added ones included.

    Raises:
        DataError: there is no readable tokenizer.
    """
    found = find_tokenizer(tokenizer)
    path = found.files[0]
    if path.name != TOKENIZER_FILE:
        return found.vocab_size
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        ids = _ids(content["model"]["vocab"])
        ids += [token["id"] for token in content.get("added_tokens", [])]
        return max(ids) + 1
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"not a readable tokenizer ({error!r})", where=str(path)) from error


def _ids(vocab: dict[str, int] | list[Any]) -> list[int]:
    """BPE and WordPiece keep a mapping of token to id, Unigram a list in the order of ids."""
    return list(vocab.values()) if isinstance(vocab, dict) else list(range(len(vocab)))


def _refuse_foreign_ids(prefix: Path, vocab_size: int) -> None:
    header = check_indexed(prefix)
    size = bin_path(prefix).stat().st_size
    if size == 0:
        return
    tokens = np.memmap(bin_path(prefix), dtype=header.dtype, mode="r")
    scanned = tokens[: SCAN_LIMIT // tokens.itemsize]
    if len(scanned) < len(tokens):
        logger.info("%s: the first %d GiB scanned for foreign ids", prefix, SCAN_LIMIT >> 30)
    outside = (scanned >= vocab_size) | (scanned < 0)
    if outside.any():
        at = int(np.argmax(outside))
        raise DataError(
            f"token id {int(scanned[at])} at position {at:,} is outside the vocabulary of"
            f" {vocab_size:,} (0 to {vocab_size - 1:,})",
            where=str(bin_path(prefix)),
            hint="the tokens come from another tokenizer: set `tokenizer:` to the right one",
        )
