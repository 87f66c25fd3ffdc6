"""Training and held-out samples: megatron-core's ``GPTDataset`` over a corpus, or packed rows."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.core import parallel_state
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from torch import distributed

from toolkit.artifacts import stat_fingerprint, write_text
from toolkit.data.indexed import bin_path, idx_path
from toolkit.errors import DataError
from toolkit.megatron.config import ParallelConfig, PretrainConfig
from toolkit.megatron.corpus import Corpus
from toolkit.megatron.distributed import process_groups
from toolkit.megatron.packed import PackedDataset, PackedDatasetConfig
from toolkit.megatron.partition import Partition, partition
from toolkit.megatron.split import PARTS

logger = logging.getLogger(__name__)

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

    A blend's parts are drawn by its weights, several prefixes without weights by their tokens.

    Every rank calls this; rank 0 writes the indexes under ``work``, the others read them.

    Raises:
        DataError: fewer training tokens than one sample takes, or settings that contradict how the
            data was split or packed.
    """
    cache = work / "index"
    if distributed.get_rank() == 0:
        _prepare_cache(cache, _state(corpus))
    distributed.barrier()
    plan = partition(corpus, config, cache)
    _refuse_too_few(plan.tokens.get("train", 0), config, corpus)
    train, valid, _ = _build(plan, corpus, config, seed, cache)
    distributed.barrier()
    if distributed.get_rank() == 0:
        write_text(cache / COMPLETE, _state(corpus))
    if not plan.tokens.get("valid"):
        valid = None
    return Datasets(train, valid, {"split_by": plan.split_by, "tokens": plan.tokens})


def _prepare_cache(cache: Path, state: str) -> None:
    """Throw away an index that a crash left unfinished, or that is of other files.

    Megatron would take either for whole: it knows an index by the path and the settings alone.
    The mark of a whole one is put back when this attempt, too, has what it needs.
    """
    mark = cache / COMPLETE
    if cache.exists() and not (mark.exists() and mark.read_text(encoding="utf-8") == state):
        shutil.rmtree(cache)
    cache.mkdir(parents=True, exist_ok=True)
    mark.unlink(missing_ok=True)


def _state(corpus: Corpus) -> str:
    """A hash of the sizes and times of the corpus's files."""
    files = [path for prefix in corpus.prefixes for path in (bin_path(prefix), idx_path(prefix))]
    return stat_fingerprint([*files, *(bin_path(mask) for mask in corpus.masks or ())])


def _refuse_too_few(tokens: int, config: PretrainConfig, corpus: Corpus) -> None:
    needed = config.sequence + (corpus.packed_length is None)
    if tokens < needed:
        raise DataError(
            f"{tokens:,} training tokens are less than one sample of {config.sequence:,} + 1",
            where=str(corpus.prefixes[0]),
            hint="give more data, shorten seq_length, or give training a larger share in split",
        )


def _build(
    plan: Partition, corpus: Corpus, config: PretrainConfig, seed: int, cache: Path
) -> list[Any]:
    samples = config.train_iters * config.global_batch_size
    logger.info(
        "%s training tokens, %s held out; %d iterations take %.2f epochs",
        f"{plan.tokens['train']:,}",
        f"{plan.tokens.get('valid', 0):,}",
        config.train_iters,
        samples * config.sequence / plan.tokens["train"],
    )
    settings = {
        "random_seed": seed,
        "sequence_length": config.sequence,
        "path_to_cache": str(cache),
        "tokenizer": Vocabulary(corpus.vocab_size),
        **plan.blends,
    }
    described = _documents(settings) if corpus.packed_length is None else _rows(corpus, settings)
    if described.split_matrix:
        described.split_matrix[PARTS.index("test")] = None  # left out, for whoever tests later
    kind, read_by = (
        (GPTDataset, _reads_data) if corpus.packed_length is None else (PackedDataset, _everyone)
    )
    sizes = [samples, plan.held_out, plan.test]
    return list(BlendedMegatronDatasetBuilder(kind, sizes, read_by, described).build())


def _documents(settings: dict[str, Any]) -> GPTDatasetConfig:
    """Documents one after another, cut into samples wherever a sample is full."""
    return GPTDatasetConfig(
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        # The last, shorter held-out sample is padded and masked: every token counts once.
        drop_last_partial_validation_sequence=False,
        **settings,
    )


def _rows(corpus: Corpus, settings: dict[str, Any]) -> PackedDatasetConfig:
    """Packed rows, with their masks."""
    masks = zip(corpus.prefixes, corpus.masks or (), strict=True)
    return PackedDatasetConfig(masks={str(p): str(mask) for p, mask in masks}, **settings)


def _reads_data() -> bool:
    """The first pipeline stage needs the tokens, the last one the labels."""
    return bool(parallel_state.is_pipeline_first_stage() or parallel_state.is_pipeline_last_stage())


def _everyone() -> bool:
    """Packed rows: every pipeline stage must know where the examples begin."""
    return True


def prebuild(corpus: Corpus, config: PretrainConfig, seed: int, work: Path) -> dict[str, Any]:
    """Build the indexes of a training run ahead of it, in this one process without a GPU.

    The run finds them under ``work`` as long as data, settings and seed are the same; else it
    builds its own.

    Returns:
        What ``Datasets.parts`` says.
    """
    with process_groups(ParallelConfig()):
        return build_datasets(corpus, config, seed, work).parts
