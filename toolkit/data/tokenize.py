"""The ``tokenize`` stage: documents to Megatron's indexed dataset, none lost without a word.

A reader (``documents.py``) gives texts, an encoder (``encoders.py``) gives tokens, a writer
(``indexed.py``) puts them on disk; here they are joined, in batches, with flat memory.
"""

from __future__ import annotations

import itertools
import logging
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.artifacts import Artifact
from toolkit.context import StageContext
from toolkit.data.config import TokenizeConfig
from toolkit.data.documents import Document, DocumentReader
from toolkit.data.encoders import Encoded, Encoder, choose_encoder
from toolkit.data.indexed import IndexedReader, IndexedWriter
from toolkit.data.inputs import expand_inputs
from toolkit.data.quarantine import Quarantine
from toolkit.data.tokenizer_folder import TokenizerFolder, take_tokenizer
from toolkit.errors import DataError, ToolkitError

logger = logging.getLogger(__name__)

BATCH_CHARACTERS, BATCH_DOCUMENTS = 8 << 20, 1 << 14
"""A batch ends with the document that reaches either: enough work for all threads."""
QUARANTINE = "quarantine.jsonl"


def run(config: TokenizeConfig, context: StageContext) -> Artifact:
    """Tokenize the sources and publish a ``dataset`` artifact.

    Raises:
        DataError: see ``DocumentReader``; also where no document has a text.
        ToolkitError: the tokenizer has no end-of-document token, or the backend can't be used.
    """
    sources = expand_inputs(config.sources, context)
    built = context.building()
    try:
        tokenizer = take_tokenizer(context.path(config.tokenizer), built / "tokenizer")
        eod_id = end_of_document(config, context, tokenizer)
        with Quarantine(built / QUARANTINE) as quarantine:
            on_bad = quarantine if config.on_error == "quarantine" else None
            reader = DocumentReader(sources, config.text_key, on_bad, config.sample_by)
            info = _tokenize(reader, tokenizer, eod_id, config, built, context)
        if reader.bad:
            logger.warning("%d records are set aside in %s", reader.bad, QUARANTINE)
        return context.publish(built, "dataset", info=info)
    except BaseException:
        shutil.rmtree(built, ignore_errors=True)
        raise


def end_of_document(
    config: TokenizeConfig, context: StageContext, tokenizer: TokenizerFolder
) -> int | None:
    """The id of the token that ends a document; None where none is to be appended.

    Raises:
        ToolkitError: none is known, or the vocabulary hasn't the one that is named.
    """
    if not config.append_eod:
        return None
    if config.eod_token is not None:
        return tokenizer.id_of(config.eod_token, "eod_token")
    known = context.artifact(config.tokenizer).info.get("eod_token") or tokenizer.eos_token()
    if known is None:
        raise ToolkitError(
            "the tokenizer has no eos_token to end documents with",
            where=str(context.path(config.tokenizer)),
            hint="name one of its tokens as eod_token, or set append_eod: false",
        )
    return tokenizer.id_of(known, "eos_token")


def append_token(encoded: Encoded, token: int) -> Encoded:
    """The same documents, each with ``token`` at its end."""
    lengths = encoded.lengths + 1
    tokens = np.empty(len(encoded.tokens) + len(lengths), np.uint32)
    inner = np.ones(len(tokens), np.bool_)
    inner[np.cumsum(lengths) - 1] = False
    tokens[inner] = encoded.tokens
    tokens[~inner] = token
    return Encoded(tokens, lengths)


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


@dataclass
class Tally:
    """What the encoder was given and what came out."""

    text_bytes: int = 0
    unencodable: int = 0
    """Documents that have a text, but not one token of it (a normalizer removed everything)."""


def _tokenize(
    reader: DocumentReader,
    tokenizer: TokenizerFolder,
    eod_id: int | None,
    config: TokenizeConfig,
    built: Path,
    context: StageContext,
) -> dict[str, Any]:
    started = time.monotonic()
    groups = batches(reader)
    first = next(groups, [])
    encoder, why = choose_encoder(tokenizer.json, [d.text for d in first], config.backend)
    tally = Tally()
    prefix = re.sub(r"[^\w.-]", "_", config.text_key) + "_document"
    with IndexedWriter(built / prefix, tokenizer.vocab_size) as writer:
        for batch in itertools.chain([first], groups):
            _write(batch, encoder, eod_id, writer, tally)
            _show(reader, writer, tally, context)
        if not writer.documents:
            raise _nothing(reader, config)
    rate = tally.text_bytes / 1e6 / (time.monotonic() - started)
    logger.info(
        "%s documents, %s tokens, %.1f MB/s of text by %s (%s)",
        *(f"{writer.documents:,}", f"{writer.tokens:,}", rate, encoder.name, why),
    )
    return {
        "prefixes": [prefix],
        "dtype": np.dtype(writer.dtype).name,
        "vocab_size": tokenizer.vocab_size,
        "eod_id": eod_id,
        "tokenizer_sha256": tokenizer.sha256,
        "counts": _counts(reader, writer, tally),
        "document_lengths": document_lengths(built / prefix),
        "bytes_per_token": round(tally.text_bytes / writer.tokens, 3),
        "sources": list(config.sources),
        "backend": encoder.name,
        "backend_reason": why,
    }


def _write(
    batch: list[Document], encoder: Encoder, eod_id: int | None, writer: IndexedWriter, tally: Tally
) -> None:
    encoded = encoder.encode_batch([document.text for document in batch])
    tally.text_bytes += sum(len(document.text.encode()) for document in batch)
    kept = encoded.lengths > 0
    if not kept.all():
        tally.unencodable += int(len(kept) - kept.sum())
        batch = [document for document, keep in zip(batch, kept, strict=True) if keep]
        encoded = Encoded(encoded.tokens, encoded.lengths[kept])
    if eod_id is not None:
        encoded = append_token(encoded, eod_id)
    writer.write(encoded.tokens, encoded.lengths, name=lambda index: batch[index].where)


def _show(
    reader: DocumentReader, writer: IndexedWriter, tally: Tally, context: StageContext
) -> None:
    shown = {"documents": writer.documents, "tokens": writer.tokens}
    if reader.bytes_total:
        total = reader.bytes_total / 1e6
        context.progress(reader.bytes_read / 1e6, total, unit="MB", **shown)
    else:
        context.progress(tally.text_bytes / 1e6, unit="MB", **shown)


def _counts(reader: DocumentReader, writer: IndexedWriter, tally: Tally) -> dict[str, int]:
    """What became of every record; ``read = written + empty + quarantined``."""
    counts = {
        "read": reader.read,
        "written": writer.documents,
        "empty": reader.empty + tally.unencodable,
        "quarantined": reader.bad,
    }
    accounted = counts["written"] + counts["empty"] + counts["quarantined"]
    assert counts["read"] == accounted, f"records are unaccounted for: {counts}"
    return {**counts, "tokens": writer.tokens, "text_bytes": tally.text_bytes}


def document_lengths(prefix: Path) -> dict[str, float]:
    """Tokens of the documents: mean, median, 90th and 99th percentile, longest."""
    lengths = IndexedReader(prefix).lengths
    median, p90, p99 = np.percentile(lengths, [50, 90, 99])
    return {
        "mean": round(float(lengths.mean()), 1),
        "median": round(float(median), 1),
        "p90": round(float(p90), 1),
        "p99": round(float(p99), 1),
        "max": int(lengths.max()),
    }


def _nothing(reader: DocumentReader, config: TokenizeConfig) -> DataError:
    return DataError(
        f"no document has a text: of {reader.read} records {reader.empty} are empty and "
        f"{reader.bad} are bad",
        where=", ".join(config.sources),
        hint=f"is {config.text_key!r} the right text_key?",
    )
