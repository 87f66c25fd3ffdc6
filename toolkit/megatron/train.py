"""The pretrain stage: sets up, resumes, loops, and publishes the last checkpoint."""

from __future__ import annotations

import logging
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch import distributed

from toolkit.artifacts import Artifact, link_tree, write_text
from toolkit.context import StageContext
from toolkit.data.tokenizer_folder import take_tokenizer
from toolkit.errors import StageError
from toolkit.megatron import checkpoint, state
from toolkit.megatron.config import PretrainConfig, TrainedModel
from toolkit.megatron.corpus import TOKENIZER, Corpus, open_corpus
from toolkit.megatron.datasets import build_datasets
from toolkit.megatron.distributed import lost_rank, process_groups
from toolkit.megatron.evaluation import perplexity
from toolkit.megatron.initial import check_tokenizer, load_initial
from toolkit.megatron.layout import layout_of, padded_vocab_size
from toolkit.megatron.loop import Loop
from toolkit.megatron.setup import Training, build_training
from toolkit.megatron.state import Progress
from toolkit.megatron.userbuffers import user_buffers

logger = logging.getLogger(__name__)


def run(config: PretrainConfig, context: StageContext) -> Artifact | None:
    """Train until ``train_iters``; goes on from the newest checkpoint in ``context.work``.

    Every rank calls this, with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in the environment.

    Returns:
        The checkpoint artifact on rank 0, None on the others.

    Raises:
        ToolkitError: the layout does not work, the data does not fit, or the guard stopped.
        StageInterrupted: a signal came, and a checkpoint of that moment was saved.
    """
    layout = layout_of(config, context.world_size)
    corpus = open_corpus(config, context)
    if config.load is not None:
        check_tokenizer(context.path(config.load), corpus)
    try:
        with (
            process_groups(
                config.parallel,
                device=context.device,
                local_rank=context.local_rank,
                seed=context.seed,
                timeout=timedelta(minutes=config.distributed_timeout_minutes),
            ) as device,
            user_buffers(config, device),
        ):
            packed = corpus.packed_length is not None
            training = build_training(
                config, layout, device, corpus.vocab_size, context.seed, packed=packed
            )
            progress, info = _train(training, corpus, context)
    except RuntimeError as error:
        if not lost_rank(error):
            raise
        raise StageError(
            "another rank ended, or did not answer in time",
            hint=f"the log of the rank that failed first says why ({error})",
        ) from error
    return _publish(config, corpus, progress, info, context) if context.rank == 0 else None


def _train(
    training: Training, corpus: Corpus, context: StageContext
) -> tuple[Progress, dict[str, Any]]:
    """Load or begin, and loop; returns how far it got and what to record of it."""
    config, root = training.config, context.work / "checkpoints"
    datasets = build_datasets(corpus, config, context.seed, context.work)
    if context.rank == 0:
        logger.info("%s parameters on %s", f"{training.parameters:,}", training.layout)
    progress = _resume(training, corpus, root, context)
    Loop(training, datasets, progress, root, context).run()
    return progress, {"parameters": training.parameters, "data": datasets.parts}


def _resume(training: Training, corpus: Corpus, root: Path, context: StageContext) -> Progress:
    """Go on from the newest whole checkpoint of this run, or start from the beginning."""
    wanted = _description(training.config, corpus)
    found = [checkpoint.newest_whole(root) if context.rank == 0 else None]
    distributed.broadcast_object_list(found, src=0)
    if found[0] is not None:
        checkpoint.check_model(root, wanted)
        progress = state.load(training, root, found[0])
        logger.info("resumed from iteration %d", progress.iteration)
    else:
        progress = Progress()
        if training.config.load is not None:
            load_initial(training, context.path(training.config.load), wanted)
    if context.rank == 0:
        _prepare(root, wanted, progress, context)
    distributed.barrier()
    return progress


def _prepare(
    root: Path,
    wanted: TrainedModel,
    progress: Progress,
    context: StageContext,
) -> None:
    """Rank 0: describe the model beside its checkpoints, and rewind the metrics."""
    root.mkdir(parents=True, exist_ok=True)
    checkpoint.discard_newer(root, progress.iteration)
    checkpoint.write_model(root, wanted)
    context.tracker.rewind(progress.iteration if progress.iteration > 0 else -1)


def _description(config: PretrainConfig, corpus: Corpus) -> TrainedModel:
    padded = padded_vocab_size(
        corpus.vocab_size,
        config.model.make_vocab_size_divisible_by,
        config.parallel.tensor_model_parallel_size,
    )
    return TrainedModel.of(config.model, corpus.vocab_size, padded)


def _publish(
    config: PretrainConfig,
    corpus: Corpus,
    progress: Progress,
    info: dict[str, Any],
    context: StageContext,
) -> Artifact:
    """Build the artifact from the last checkpoint, by hard links, with a copy of the tokenizer."""
    root, built = context.work / "checkpoints", context.building()
    last = checkpoint.iteration_folder(root, progress.iteration)
    link_tree(last, built / last.name)
    write_text(built / checkpoint.TRACKER, str(progress.iteration))
    checkpoint.write_model(built, _description(config, corpus))
    take_tokenizer(corpus.tokenizer, built / TOKENIZER)
    layout = asdict(layout_of(config, context.world_size))
    figures = _figures(progress, config) | info | {"layout": layout}
    return context.publish(built, "checkpoint", info=figures)


def _figures(progress: Progress, config: PretrainConfig) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "iteration": progress.iteration,
        "consumed_samples": progress.consumed_samples,
        "skipped_iters": progress.skipped_iters,
    }
    before = "untrained_validation" if config.load is None else "initial_validation"
    losses = {before: progress.untrained_validation_loss, "validation": progress.validation_loss}
    for name, loss in losses.items():
        if loss is not None:
            figures |= {f"{name}_loss": loss, f"{name}_perplexity": perplexity(loss)}
    return figures
