"""Which prefixes each part of a corpus reads, with what weights, and how many tokens that is.

In order of precedence: the parts that a ``split`` stage has made; shares of the documents, as
Megatron cuts (of the rows, where they are packed); or, where that leaves a part less than a sample,
shares of the tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import distributed

from toolkit.data.indexed import IndexedReader
from toolkit.errors import DataError
from toolkit.megatron.config import PretrainConfig
from toolkit.megatron.corpus import Corpus
from toolkit.megatron.split import (
    PARTS,
    Span,
    cut_by_tokens,
    documents_in,
    spans,
    tokens_by_documents,
    tokens_in,
)

logger = logging.getLogger(__name__)

USED = ("train", "valid")
DEFAULT_SPLIT = PretrainConfig.model_fields["split"].default
Counts = dict[str, dict[str, int]]
"""Tokens by part and prefix."""


@dataclass(frozen=True)
class Partition:
    """What Megatron's builder is told."""

    split_by: str
    """``dataset``, ``documents``, ``rows`` or ``tokens``."""
    tokens: dict[str, int]
    """Of each part."""
    blends: dict[str, Any]
    """``blend`` and ``split``, or ``blend_per_split``."""
    held_out: int | None = None
    """Held-out samples to draw; None: all there are."""
    test: int | None = None


def partition(corpus: Corpus, config: PretrainConfig, cache: Path) -> Partition:
    """Decide; every rank calls this and decides the same.

    Raises:
        DataError: the rows are packed to another length than ``seq_length``, or would be cut by
            context parallelism; or ``split`` is set for a dataset that is split already.
    """
    _refuse_rows(corpus, config)
    if corpus.splits is not None:
        return _as_made(corpus, config)
    wanted = {part: span for part, span in spans(config.shares).items() if part in USED}
    readers = {str(prefix): IndexedReader(prefix) for prefix in corpus.prefixes}
    if corpus.packed_length is not None:
        return _by_rows(corpus, config, readers, wanted)
    sample = config.sequence + 1
    counts = {
        part: {name: tokens_by_documents(reader, span) for name, reader in readers.items()}
        for part, span in wanted.items()
    }
    if all(tokens >= sample for part in counts.values() for tokens in part.values()):
        return _shared(corpus, config, "documents", counts, config.split)
    _explain_cut(counts, sample, sum(len(reader) for reader in readers.values()))
    return _by_tokens(corpus, config, readers, wanted, cache)


def _refuse_rows(corpus: Corpus, config: PretrainConfig) -> None:
    if corpus.packed_length not in (None, config.sequence):
        raise DataError(
            f"the data is packed into rows of {corpus.packed_length:,} tokens, and seq_length is"
            f" {config.sequence:,}",
            where=str(corpus.prefixes[0]),
            hint=f"set seq_length: {corpus.packed_length} here, or pack the data again",
        )
    ranks = config.parallel.context_parallel_size
    if corpus.packed_length is not None and ranks > 1:
        raise DataError(
            f"the data is packed, several examples to a row, and context_parallel_size {ranks} cuts"
            " every row",
            where=str(corpus.prefixes[0]),
            hint="leave context_parallel_size out, or train on data that is not packed",
        )


def _as_made(corpus: Corpus, config: PretrainConfig) -> Partition:
    """The parts of a ``split`` stage."""
    assert corpus.splits is not None
    if config.split != DEFAULT_SPLIT:
        raise DataError(
            f"split {config.split!r} is set, and the dataset is split already"
            f" ({', '.join(corpus.splits)})",
            where=str(corpus.prefixes[0].parent.parent),
            hint="leave split out here, or give the dataset in front of the split stage",
        )
    counts = {
        part: {str(p): _tokens(IndexedReader(p)) for p in corpus.splits.get(part, ())}
        for part in USED
    }
    return _apart(corpus, config, "dataset", counts)


def _by_rows(
    corpus: Corpus,
    config: PretrainConfig,
    readers: dict[str, IndexedReader],
    wanted: dict[str, Span],
) -> Partition:
    """Shares of packed rows; they come shuffled, so the last ones are any."""
    counts = {
        part: {
            name: documents_in(reader.header.documents, span) * config.sequence
            for name, reader in readers.items()
        }
        for part, span in wanted.items()
    }
    split = config.split
    if not all(counts.get("valid", {}).values()):
        logger.warning("too few packed rows to hold one out for validation; all are trained on")
        counts = {"train": {n: r.header.documents * config.sequence for n, r in readers.items()}}
        split = "1"
    return _shared(corpus, config, "rows", counts, split)


def _shared(
    corpus: Corpus, config: PretrainConfig, split_by: str, counts: Counts, split: str
) -> Partition:
    """Every part takes its share of every prefix."""
    weights = _weights(corpus, list(counts["train"]))
    several = len(weights) > 1
    return Partition(
        split_by,
        {part: sum(tokens.values()) for part, tokens in counts.items()},
        {"blend": (list(weights), list(weights.values()) if several else None), "split": split},
        held_out=_held_out(counts, weights, config) if several else None,
        test=1 if several else None,
    )


def _by_tokens(
    corpus: Corpus,
    config: PretrainConfig,
    readers: dict[str, IndexedReader],
    wanted: dict[str, Span],
    cache: Path,
) -> Partition:
    """Cut every prefix by tokens; all ranks compute the same, rank 0 writes."""
    folders = {name: cache / f"cut-{number}" for number, name in enumerate(readers)}
    if distributed.get_rank() == 0:
        for name, folder in folders.items():
            cut_by_tokens(Path(name), wanted, folder)
    distributed.barrier()
    counts = {
        part: {str(folders[n] / part): tokens_in(reader, span) for n, reader in readers.items()}
        for part, span in wanted.items()
    }
    origin = {str(folders[n] / part): Path(n) for n in readers for part in wanted}
    return _apart(corpus, config, "tokens", counts, origin)


def _apart(
    corpus: Corpus,
    config: PretrainConfig,
    split_by: str,
    counts: Counts,
    origin: dict[str, Path] | None = None,
) -> Partition:
    """Every part has prefixes of its own; those without a token are left out."""
    kept = {part: {n: t for n, t in found.items() if t > 0} for part, found in counts.items()}
    kept = {part: found for part, found in kept.items() if found}
    weights = {part: _weights(corpus, list(found), origin) for part, found in kept.items()}
    weighted = corpus.weights is not None and len(kept.get("valid", ())) > 1
    blends: list[tuple[list[str], list[float] | None] | None] = []
    for part in PARTS:
        own = weights.get(part)
        weigh = own is not None and len(own) > 1 and (part == "train" or weighted)
        blends.append(None if own is None else (list(own), list(own.values()) if weigh else None))
    return Partition(
        split_by,
        {part: sum(found.values()) for part, found in kept.items()},
        {"blend_per_split": blends},
        held_out=_held_out(kept, weights["valid"], config) if weighted else None,
    )


def _weights(
    corpus: Corpus, names: Sequence[str], origin: dict[str, Path] | None = None
) -> dict[str, float]:
    """Of prefixes, by the blend or by their tokens; they sum to 1."""
    found = {n: corpus.weight_of(origin[n] if origin else Path(n)) for n in names}
    total = sum(found.values())
    return {name: weight / total for name, weight in found.items()} if total else found


def _held_out(counts: Counts, weights: dict[str, float], config: PretrainConfig) -> int | None:
    """Samples that can be drawn by weight from the held-out data without a token twice.

    Megatron rounds each prefix's number up, and draws as many as that makes together.
    """
    if "valid" not in counts:
        return None
    found = {name: counts["valid"][name] // config.sequence for name in weights}
    most = min((found[name] - 1) / weight for name, weight in weights.items())
    drawn = max(1, int(most) - len(weights))
    if drawn < sum(found.values()) // 2:
        fewest = min(weights, key=lambda name: found[name] / weights[name])
        logger.warning(
            "%d of %d held-out samples are evaluated: %s has %d for its weight of %.3g",
            *(drawn, sum(found.values()), Path(fewest).name, found[fewest], weights[fewest]),
        )
    return drawn


def _tokens(reader: IndexedReader) -> int:
    return int(reader.lengths.sum(dtype="int64"))


def _explain_cut(counts: Counts, sample: int, documents: int) -> None:
    short = [part for part, found in counts.items() if min(found.values()) < sample]
    logger.info(
        "split by tokens: of %s documents the %s part would get less than one sample (%d tokens)",
        f"{documents:,}",
        " and ".join(short),
        sample,
    )
