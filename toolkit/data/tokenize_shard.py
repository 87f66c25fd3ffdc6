"""One shard of ``tokenize``: documents to indexed datasets, strictly, with flat memory.

A reader (``documents.py``) gives texts, an encoder (``encoders.py``) gives tokens, a writer
(``indexed.py``) puts them on disk; here they are joined, in batches.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from toolkit.data.config import SampleBy
from toolkit.data.documents import Document, DocumentReader
from toolkit.data.encoders import Encoded, Encoder, open_encoder
from toolkit.data.files import open_file
from toolkit.data.fim import Fim
from toolkit.data.indexed import IndexedWriter
from toolkit.data.keys import file_name
from toolkit.data.quarantine import Quarantine, stop_at
from toolkit.data.shards import Part
from toolkit.data.tasks import TaskOutput
from toolkit.data.tokenizer_folder import find_tokenizer

BATCH_CHARACTERS, BATCH_DOCUMENTS = 4 << 20, 1 << 14
"""A batch ends with the document that reaches either."""
QUARANTINE = "quarantine.jsonl"
HASH_BLOCK = 1 << 22


@dataclass(frozen=True)
class Recipe:
    """How texts become tokens: the same for all shards of a stage."""

    keys: tuple[str, ...]
    sample_by: SampleBy
    sentences: bool
    """Whether a document's sequences are its sentences."""
    quarantine: bool
    eod_id: int | None
    parse_special_tokens: bool
    fim: Fim | None
    vocab_size: int
    tokenizer_sha256: str
    tokenizer: str = field(repr=False)
    """The folder; left out of ``repr``, and so of a task's fingerprint, as the backend is."""
    backend: str = field(repr=False)

    def prefix(self, key: str) -> str:
        """What Megatron calls the dataset of a key: ``text_document``."""
        return f"{file_name(key)}_{'sentence' if self.sentences else 'document'}"


@dataclass(frozen=True)
class ShardWork:
    """The payload of a shard's task."""

    recipe: Recipe
    parts: tuple[Part, ...]
    offsets: tuple[int, ...]
    """Where the bytes that stand for each part begin in its file: for the checksums alone."""


def tokenize_shard(work: ShardWork, output: TaskOutput) -> dict[str, Any]:
    """Tokenize the parts of a shard.

    Returns:
        What became of the records, by key, and the checksums of what was read.

    Raises:
        DataError: see ``DocumentReader``.
    """
    recipe = work.recipe
    encoder = _encoder(recipe.tokenizer, recipe.backend, recipe.parse_special_tokens)
    read = [_digest(p, o) for p, o in zip(work.parts, work.offsets, strict=True)]
    with ExitStack() as stack:
        quarantine = stack.enter_context(Quarantine(output.path(QUARANTINE)))
        reader = DocumentReader(
            work.parts, recipe.keys, quarantine if recipe.quarantine else stop_at, recipe.sample_by
        )
        tallies = [
            _Tally(key, stack.enter_context(_writer(recipe, key, output.folder)))
            for key in recipe.keys
        ]
        for batch in batches(reader):
            for number, tally in enumerate(tallies):
                _write(batch, number, encoder, recipe, tally)
            tokens = sum(tally.writer.tokens for tally in tallies)
            output.progress(reader.bytes_read, documents=reader.documents, tokens=tokens)
    return {
        "read": reader.read,
        "quarantined": reader.bad,
        "skipped": dict(reader.skipped),
        "keys": {tally.key: tally.counts(reader) for tally in tallies},
        "sources": read,
    }


@dataclass
class _Tally:
    """What was written of one key."""

    key: str
    writer: IndexedWriter
    text_bytes: int = 0

    def counts(self, reader: DocumentReader) -> dict[str, int]:
        """``read = written + empty + quarantined``; a blank text, or one without a token, is
        empty."""
        written = self.writer.documents
        return {
            "written": written,
            "empty": reader.documents + reader.empty - written,
            "tokens": self.writer.tokens,
            "text_bytes": self.text_bytes,
        }


def _writer(recipe: Recipe, key: str, folder: Path) -> IndexedWriter:
    return IndexedWriter(folder / recipe.prefix(key), recipe.vocab_size)


@functools.cache
def _encoder(folder: str, backend: str, parse_special_tokens: bool) -> Encoder:
    """One for each process, whatever number of shards it does."""
    tokenizer = find_tokenizer(Path(folder))
    return open_encoder(tokenizer, backend, parse_special_tokens=parse_special_tokens)


def batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Runs of documents of about ``BATCH_CHARACTERS``."""
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= BATCH_CHARACTERS or len(batch) == BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _write(
    batch: list[Document], number: int, encoder: Encoder, recipe: Recipe, tally: _Tally
) -> None:
    """Write the texts of one key of a batch."""
    texts = [document.texts[number] for document in batch] if number else [d.text for d in batch]
    tally.text_bytes += sum(len(t) if t.isascii() else len(t.encode()) for t in texts)
    encoded, sequences = _encode(texts, batch, encoder, recipe)
    kept = sequences > 0
    if not kept.all():
        batch = [document for document, keep in zip(batch, kept, strict=True) if keep]
        sequences = sequences[kept]
    if recipe.eod_id is not None:
        encoded = append_token(encoded, recipe.eod_id, np.cumsum(sequences) - 1)

    def name(sequence: int) -> str:
        document = np.searchsorted(np.cumsum(sequences), sequence, side="right")
        return batch[int(document)].where

    tally.writer.write(encoded.tokens, encoded.lengths, name, sequences=sequences)


def _encode(
    texts: list[str], batch: list[Document], encoder: Encoder, recipe: Recipe
) -> tuple[Encoded, npt.NDArray[np.int64]]:
    """The tokens of texts, without sequences that have none, and each text's sequences."""
    if recipe.sentences:
        from toolkit.data.sentences import split_sentences

        pieces = [split_sentences(text) if not text.isspace() else [] for text in texts]
        encoded = encoder.encode_batch([piece for split in pieces for piece in split])
        owners = np.repeat(np.arange(len(texts)), [len(split) for split in pieces])
    else:
        encoded = _whole(texts, encoder, recipe.fim)
        owners = np.arange(len(texts))
    full = encoded.lengths > 0
    if not full.all():
        encoded = Encoded(encoded.tokens, encoded.lengths[full])
    return encoded, np.bincount(owners[full], minlength=len(texts)).astype(np.int64)


def _whole(texts: list[str], encoder: Encoder, fim: Fim | None) -> Encoded:
    """The tokens of whole texts; a blank one, which another key's text came with, has none."""
    full = np.array([bool(text) and not text.isspace() for text in texts], np.bool_)
    given = texts if full.all() else [t for t, keep in zip(texts, full, strict=True) if keep]
    found = encoder.encode_batch(given) if fim is None else fim.apply(given, encoder)
    lengths = np.zeros(len(texts), np.int64)
    lengths[full] = found.lengths
    return Encoded(found.tokens, lengths)


def append_token(encoded: Encoded, token: int, at: npt.NDArray[np.int64] | None = None) -> Encoded:
    """The same sequences, those of the indices ``at`` (by default all) with ``token`` at the end.

    By a boolean mask: ten times as fast as ``np.insert``.
    """
    lengths = encoded.lengths.copy()
    at = np.arange(len(lengths)) if at is None else at
    lengths[at] += 1
    tokens = np.empty(len(encoded.tokens) + len(at), encoded.tokens.dtype)
    inner = np.ones(len(tokens), np.bool_)
    inner[np.cumsum(lengths)[at] - 1] = False
    tokens[inner] = encoded.tokens
    tokens[~inner] = token
    return Encoded(tokens, lengths)


def _digest(part: Part, offset: int) -> dict[str, Any]:
    """The checksum of the bytes that stand for a part, and what else tells its file apart."""
    source = part.source
    entry: dict[str, Any] = {"name": source.name, "size": source.size}
    if source.path is None:
        return entry | ({"etag": source.etag} if source.etag else {})
    digest = xxhash.xxh3_64()
    with open_file(source) as stream:
        stream.seek(offset)
        left = part.size
        while left and (block := stream.read(min(left, HASH_BLOCK))):
            digest.update(block)
            left -= len(block)
    span = {} if part.size == source.size else {"start": offset, "stop": offset + part.size}
    return entry | {"mtime_ns": source.mtime_ns} | span | {"xxh3": digest.hexdigest()}
