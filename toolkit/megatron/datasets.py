"""Training and held-out samples: megatron-core's ``GPTDataset`` over a corpus."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.core import parallel_state
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from torch import distributed

from toolkit.data.indexed import IndexedReader
from toolkit.errors import DataError
from toolkit.megatron.config import PretrainConfig
from toolkit.megatron.corpus import Corpus
from toolkit.megatron.split import PARTS, Span, cut_by_tokens, spans, tokens_by_documents, tokens_in

logger = logging.getLogger(__name__)

USED = ("train", "valid")
COMPLETE = "complete"
NO_PADDING, NO_EOD = -1, -2
"""No ids of the vocabulary: with the EOS as padding, the model would never learn to stop."""


class Vocabulary:
    """What ``GPTDataset`` asks of a tokenizer: sizes, no text."""

    def __init__(self, size: int) -> None:
        self.vocab_size = size
        self.pad = NO_PADDING
        self.eod = NO_EOD
        self.unique_identifiers = {"class": "Vocabulary", "vocab_size": size}


@dataclass(frozen=True)
class Datasets:
    """The samples; None on a pipeline rank that has neither embedding nor loss."""

    train: Any
    valid: Any
    """None where nothing is held out."""
    parts: dict[str, Any]
    """For the artifact's record: tokens of each part, and how the corpus was cut."""


def build_datasets(corpus: Corpus, config: PretrainConfig, seed: int, work: Path) -> Datasets:
    """Index the corpus into samples of ``seq_length`` tokens, shuffled by ``seed``.

    Every rank calls this; rank 0 writes the indexes under ``work``, the others read them.

    Raises:
        DataError: fewer training tokens than one sample takes.
    """
    cache = work / "index"
    if distributed.get_rank() == 0:
        _prepare_cache(cache)
    distributed.barrier()
    plan = _plan(corpus, config, cache)
    _refuse_too_few(plan.tokens["train"], config, corpus)
    train, valid, _ = _build(plan, corpus, config, seed, cache)
    distributed.barrier()
    if distributed.get_rank() == 0:
        (cache / COMPLETE).touch()
    if not plan.tokens.get("valid"):
        valid = None
    return Datasets(train, valid, {"split_by": plan.split_by, "tokens": plan.tokens})


@dataclass(frozen=True)
class _Plan:
    """How a corpus is cut, and how much each part has."""

    split_by: str
    tokens: dict[str, int]
    prefixes: dict[str, dict[str, int]]
    """Where the corpus is cut by tokens: each part's prefixes, and their tokens."""


def _prepare_cache(cache: Path) -> None:
    """Throw away an index that a crash left unfinished: Megatron would take it for whole.

    The mark of a whole one is put back when this attempt, too, has what it needs.
    """
    if cache.exists() and not (cache / COMPLETE).exists():
        shutil.rmtree(cache)
    cache.mkdir(parents=True, exist_ok=True)
    (cache / COMPLETE).unlink(missing_ok=True)


def _plan(corpus: Corpus, config: PretrainConfig, cache: Path) -> _Plan:
    wanted = {part: span for part, span in spans(config.shares).items() if part in USED}
    sample = config.sequence + 1
    readers = [IndexedReader(prefix) for prefix in corpus.prefixes]
    by_documents = {
        part: [tokens_by_documents(reader, span) for reader in readers]
        for part, span in wanted.items()
    }
    if all(tokens >= sample for counts in by_documents.values() for tokens in counts):
        return _Plan("documents", {p: sum(c) for p, c in by_documents.items()}, {})
    _explain_cut(by_documents, sample, [len(reader) for reader in readers])
    return _cut(readers, corpus, wanted, cache)


def _explain_cut(by_documents: dict[str, list[int]], sample: int, documents: Sequence[int]) -> None:
    short = [part for part, counts in by_documents.items() if min(counts) < sample]
    logger.info(
        "split by tokens: of %s documents the %s part would get less than one sample (%d tokens)",
        f"{sum(documents):,}",
        " and ".join(short),
        sample,
    )


def _cut(
    readers: Sequence[IndexedReader], corpus: Corpus, wanted: dict[str, Span], cache: Path
) -> _Plan:
    """Cut every prefix by tokens; all ranks compute the same, rank 0 writes."""
    folders = [cache / f"cut-{number}" for number in range(len(readers))]
    if distributed.get_rank() == 0:
        for prefix, folder in zip(corpus.prefixes, folders, strict=True):
            cut_by_tokens(prefix, wanted, folder)
    distributed.barrier()
    weights = {
        part: {
            str(f / part): tokens_in(reader, span)
            for reader, f in zip(readers, folders, strict=True)
        }
        for part, span in wanted.items()
    }
    tokens = {part: sum(counts.values()) for part, counts in weights.items()}
    return _Plan("tokens", tokens, weights)


def _refuse_too_few(tokens: int, config: PretrainConfig, corpus: Corpus) -> None:
    if tokens <= config.sequence:
        raise DataError(
            f"{tokens:,} training tokens are less than one sample of {config.sequence:,} + 1",
            where=str(corpus.prefixes[0]),
            hint="give more data, shorten seq_length, or give training a larger share in split",
        )


def _build(
    plan: _Plan, corpus: Corpus, config: PretrainConfig, seed: int, cache: Path
) -> list[Any]:
    samples = config.train_iters * config.global_batch_size
    epochs = samples * config.sequence / plan.tokens["train"]
    logger.info(
        "%s training tokens, %s held out; %d iterations take %.2f epochs",
        f"{plan.tokens['train']:,}",
        f"{plan.tokens.get('valid', 0):,}",
        config.train_iters,
        epochs,
    )
    blends = _blends(plan, corpus, config)
    several = plan.split_by == "documents" and len(corpus.prefixes) > 1
    held_out = -(-plan.tokens.get("valid", 0) // config.sequence) if several else None
    settings = GPTDatasetConfig(
        random_seed=seed,
        sequence_length=config.sequence,
        path_to_cache=str(cache),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        # The last, shorter held-out sample is padded and masked: every token counts once.
        drop_last_partial_validation_sequence=False,
        tokenizer=Vocabulary(corpus.vocab_size),
        **blends,
    )
    if settings.split_matrix:
        settings.split_matrix[PARTS.index("test")] = None  # left out, for whoever tests later
    sizes = [samples, held_out, 1 if several else None]
    builder = BlendedMegatronDatasetBuilder(GPTDataset, sizes, _reads_data, settings)
    return list(builder.build())


def _blends(plan: _Plan, corpus: Corpus, config: PretrainConfig) -> dict[str, Any]:
    """The builder's ``blend`` or ``blend_per_split``; several prefixes weigh by their tokens."""
    if plan.split_by == "documents":
        paths = [str(prefix) for prefix in corpus.prefixes]
        weights = [float(n) for n in corpus.tokens()] if len(paths) > 1 else None
        return {"blend": (paths, weights), "split": config.split}
    return {"blend_per_split": [_blend(part, plan) for part in PARTS]}


def _blend(part: str, plan: _Plan) -> tuple[list[str], list[float] | None] | None:
    counts = {path: n for path, n in plan.prefixes.get(part, {}).items() if n > 0}
    if not counts:
        return None
    weigh = part == "train" and len(counts) > 1
    return list(counts), [float(n) for n in counts.values()] if weigh else None


def _reads_data() -> bool:
    """The first pipeline stage needs the tokens, the last one the labels."""
    return bool(parallel_state.is_pipeline_first_stage() or parallel_state.is_pipeline_last_stage())
