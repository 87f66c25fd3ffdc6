"""What a checkpoint holds, and how it is saved and loaded on all ranks together."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing import ShardedObject
from megatron.core.dist_checkpointing.serialization import get_default_save_sharded_strategy
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    FullyParallelSaveStrategyWrapper,
)
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from torch import distributed
from torch.distributed.checkpoint.api import CheckpointException

from toolkit.context import signals_held
from toolkit.errors import StageError, ToolkitError
from toolkit.megatron import checkpoint, fsdp_state
from toolkit.megatron.model import accepted
from toolkit.megatron.optimizer_state import in_form
from toolkit.megatron.setup import Training
from toolkit.megatron.sharding import EXTRA_STATE, model_keys, sharding_metadata

logger = logging.getLogger(__name__)

FAILURES = (Exception, CheckpointException)
"""The second is no Exception, but what collects the errors of all ranks."""


@dataclass
class Progress:
    """How far training is: everything of a checkpoint that is not a tensor."""

    iteration: int = 0
    consumed_samples: int = 0
    skipped_iters: int = 0
    skipped_in_a_row: int = 0
    untrained_validation_loss: float | None = None
    validation_loss: float | None = None
    loss_history: list[float] = field(default_factory=list)


def save(training: Training, progress: Progress, root: Path) -> Path:
    """Write a checkpoint of this moment; every rank calls this.

    Returns:
        Its folder.

    Raises:
        StageError: a rank could not write; the older checkpoints are untouched.
    """
    if distributed.get_rank() == 0:
        checkpoint.begin(root, progress.iteration)
    distributed.barrier()
    if training.config.parallel.overlap_param_gather and not training.config.parallel.fsdp:
        # What the last update changed would be gathered in the next forward pass.
        for chunk in training.chunks:
            chunk.start_param_sync(force_sync=True)
    folder = checkpoint.saving_folder(root, progress.iteration)
    _write(_state(training, progress, is_loading=False), folder)
    distributed.barrier()
    if distributed.get_rank() == 0:
        checkpoint.commit(root, progress.iteration, training.config.keep_last)
    distributed.barrier()
    return checkpoint.iteration_folder(root, progress.iteration)


def _write(state: dict[str, Any], folder: Path) -> None:
    strategy = FullyParallelSaveStrategyWrapper(
        get_default_save_sharded_strategy(),
        parallel_state.get_data_parallel_group(with_context_parallel=True),
    )
    # 0.17 to 0.19 would hand the writing to a package of NVIDIA's that need not be there.
    options = accepted(dist_checkpointing.save, async_strategy="mcore")
    try:
        with signals_held():  # the writers, and the process that gathers what they say, outlive one
            dist_checkpointing.save(
                state,
                str(folder),
                strategy,
                content_metadata=_plain(sharding_metadata()),
                **options,
            )
    except FAILURES as error:
        free = shutil.disk_usage(folder.parent).free / 2**20
        # What was written so far would keep a full disk full, and the reason from being recorded.
        shutil.rmtree(folder, ignore_errors=True)
        raise StageError(
            f"the checkpoint could not be written, with {free:,.0f} MiB free: {_causes(error)}",
            where=str(folder),
            hint="older checkpoints are untouched; make room, and run again to go on from them",
        ) from error


def _causes(error: BaseException) -> str:
    """What stopped each rank's writer, where the error says so."""
    if isinstance(error, CheckpointException):
        found = (f"rank {rank}: {cause}" for rank, (cause, _) in error.failures.items())
        return "; ".join(found)
    return f"{type(error).__name__}: {error}"


def _plain(metadata: dict[str, Any]) -> dict[str, Any]:
    """Without the process group, which is no data."""
    return {k: v for k, v in metadata.items() if isinstance(v, (bool, int, str))}


def load(training: Training, root: Path, iteration: int) -> Progress:
    """Restore weights, optimizer, schedule and random states; every rank calls this.

    The layout may be another than the one that saved. Random states are restored where tensor and
    pipeline parallelism are the same; they matter for dropout alone.

    Raises:
        ToolkitError: the files can't be read.
    """
    folder = checkpoint.iteration_folder(root, iteration)
    common = _readable(dist_checkpointing.load_common_state_dict, str(folder))
    progress = Progress(**common["progress"])
    state = _state(training, progress, is_loading=True)
    same = common["model_parallel"] == _model_parallel(training)
    if not same:
        del state["rng_state"]
        logger.info("another layout than the checkpoint's: dropout's random states start anew")
    loaded = _readable(dist_checkpointing.load, state, str(folder))
    if training.config.parallel.fsdp:
        fsdp_state.restore(training.chunks, training.models, loaded, training.optimizer)
    else:
        _set_weights(training.models, loaded)
        training.optimizer.load_state_dict(in_form(loaded["optimizer"], training.optimizer))
    training.scheduler.load_state_dict(loaded["opt_param_scheduler"])
    if same:
        _set_rng_state(loaded["rng_state"], training.device)
    return progress


def load_weights(models: Sequence[GPTModel], root: Path, iteration: int | None = None) -> None:
    """Load weights alone, from a checkpoint of any layout; every rank calls this.

    Args:
        models: this rank's chunks.
        root: the folder with ``latest_checkpointed_iteration.txt``.
        iteration: by default the newest.

    Raises:
        ToolkitError: the files can't be read.
    """
    number = checkpoint.latest_iteration(root) if iteration is None else iteration
    folder = checkpoint.iteration_folder(root, number)
    state = model_state(models, keep_extra_state=False)
    _set_weights(models, _readable(dist_checkpointing.load, state, str(folder)))


def start_from(training: Training, root: Path) -> None:
    """Take the newest weights of another run's checkpoints; every rank calls this.

    Raises:
        ToolkitError: the files can't be read.
    """
    if training.config.parallel.fsdp:
        folder = checkpoint.iteration_folder(root, checkpoint.latest_iteration(root))
        state = fsdp_state.weights(training.chunks, training.models)
        loaded = _readable(dist_checkpointing.load, state, str(folder))
        fsdp_state.weights_read(training.chunks, training.models, loaded)
    else:
        load_weights(training.models, root)
    # The optimizer keeps copies of the weights in fp32.
    training.optimizer.reload_model_params()


def model_state(models: Sequence[GPTModel], *, keep_extra_state: bool) -> dict[str, Any]:
    """The sharded state of this rank's chunks: ``model``, or ``model0`` and on (Megatron's keys).

    Without FP8 the extra state is empty; leaving it out makes checkpoints of GPUs and CPUs alike.
    """
    states = {}
    for key, model in zip(model_keys(len(models)), models, strict=True):
        state = model.sharded_state_dict(metadata=sharding_metadata())
        states[key] = {
            k: v for k, v in state.items() if keep_extra_state or not k.endswith(EXTRA_STATE)
        }
    return states


def _set_weights(models: Sequence[GPTModel], loaded: dict[str, Any]) -> None:
    for key, model in zip(model_keys(len(models)), models, strict=True):
        # A chunk of no layers has no weights, and what is loaded then lacks its key.
        result = model.load_state_dict(loaded.get(key, {}), strict=False)
        missing = [k for k in result.missing_keys if not k.endswith(EXTRA_STATE)]
        if missing or result.unexpected_keys:
            raise ToolkitError(
                f"the checkpoint lacks {missing or 'nothing'}"
                f" and has besides {result.unexpected_keys or 'nothing'}"
            )


def _state(training: Training, progress: Progress, *, is_loading: bool) -> dict[str, Any]:
    """The whole state, sharded; ``is_loading`` makes room in the optimizer first."""
    if training.config.parallel.fsdp:
        state = fsdp_state.whole(
            training.chunks, training.models, training.optimizer, is_loading=is_loading
        )
    else:
        low = training.config.fp8 or training.config.fp4
        state = model_state(training.models, keep_extra_state=bool(low))
        state["optimizer"] = training.optimizer.sharded_state_dict(
            dict(state), is_loading, metadata=sharding_metadata()
        )
    state["opt_param_scheduler"] = training.scheduler.state_dict()
    state["rng_state"] = _rng_state(training)
    state["progress"] = asdict(progress)
    state["model_parallel"] = _model_parallel(training)
    state["iteration"] = progress.iteration  # Megatron-LM looks for it
    state["checkpoint_version"] = 3.0
    return state


def _model_parallel(training: Training) -> list[int]:
    layout = training.layout
    return [layout.tensor_model_parallel_size, layout.pipeline_model_parallel_size]


def _rng_state(training: Training) -> ShardedObject:
    """The random states of dropout: one set for each tensor and pipeline rank."""
    states = {"cpu": torch.get_rng_state(), "tracker": get_cuda_rng_tracker().get_states()}
    if training.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state()
    return ShardedObject(
        "rng_state",
        states,
        (
            training.layout.pipeline_model_parallel_size,
            training.layout.tensor_model_parallel_size,
        ),
        (
            parallel_state.get_pipeline_model_parallel_rank(),
            parallel_state.get_tensor_model_parallel_rank(),
        ),
        replica_id=parallel_state.get_data_parallel_rank(with_context_parallel=True),
    )


def _set_rng_state(states: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    get_cuda_rng_tracker().set_states(states["tracker"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"])


def _readable(read: Any, *arguments: Any) -> Any:
    """Call a function that reads a checkpoint; its folder is the last argument."""
    try:
        return read(*arguments)
    except FAILURES as error:
        raise ToolkitError(
            f"the checkpoint can't be read: {_causes(error)}",
            where=str(arguments[-1]),
            hint="if its files are damaged, remove this folder: the run goes on from an older one",
        ) from error
