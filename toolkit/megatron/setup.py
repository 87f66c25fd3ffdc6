"""Everything that a training step needs, built once: model, gradients, optimizer, schedule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import finalize_model_grads
from megatron.core.distributed.data_parallel_base import _BaseDataParallel
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import ChainedOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.pipeline_parallel import get_forward_backward_func

from toolkit.megatron.batches import Sharding
from toolkit.megatron.config import PretrainConfig
from toolkit.megatron.data_parallel import data_parallel
from toolkit.megatron.initialize import initialize_weights
from toolkit.megatron.layout import Layout
from toolkit.megatron.model import build_model
from toolkit.megatron.optimizer import build_optimizer, build_scheduler, count_parameters
from toolkit.megatron.transformer import precision_on


@dataclass
class Training:
    """The parts of one rank."""

    config: PretrainConfig
    layout: Layout
    device: torch.device
    vocab_size: int
    chunks: list[_BaseDataParallel]
    """The model's parts on this rank: one, or one for each virtual pipeline stage."""
    optimizer: ChainedOptimizer
    scheduler: OptimizerParamScheduler
    forward_backward: Callable[..., list[Any]]
    """Megatron's schedule: none, 1F1B, or interleaved 1F1B."""
    parameters: int
    """Weights of the whole model."""
    packed: bool = False
    """Whether samples are packed rows, whose examples must not see each other."""

    @property
    def models(self) -> list[GPTModel]:
        """The chunks without what reduces their gradients."""
        found = []
        for chunk in self.chunks:
            while not isinstance(chunk, GPTModel):
                chunk = chunk.module
            found.append(chunk)
        return found

    @property
    def sharding(self) -> Sharding:
        """How this rank's samples are drawn from a global batch."""
        return Sharding(
            self.config.global_batch_size,
            self.config.micro_batch_size,
            parallel_state.get_data_parallel_rank(),
            self.layout.data_parallel_size,
        )


def build_training(
    config: PretrainConfig,
    layout: Layout,
    device: torch.device,
    vocab_size: int,
    seed: int,
    *,
    packed: bool = False,
) -> Training:
    """Build this rank's part, with random weights that depend on ``seed`` and not on the layout.

    Of packed rows every trained token of the global batch weighs the same (Megatron-LM's
    ``--calculate-per-token-loss``). Its default, the mean of the microbatches' means, would give
    the tokens of rows with few answers more weight, and others with every micro_batch_size.
    """
    models = build_chunks(config, device, vocab_size)
    for model in models:
        model.config.calculate_per_token_loss = packed
    initialize_weights(models, config.model, seed, device)
    parameters = count_parameters(models, device)
    chunks = [
        data_parallel(config, layout, model, later=n > 0, gpu=device.type == "cuda")
        for n, model in enumerate(models)
    ]
    precision = precision_on(config, device)
    optimizer = build_optimizer(config, chunks, precision)
    for model in models:
        _connect(model.config, chunks, optimizer)
    return Training(
        config=config,
        layout=layout,
        device=device,
        vocab_size=vocab_size,
        chunks=chunks,
        optimizer=optimizer,
        scheduler=build_scheduler(config, optimizer),
        forward_backward=get_forward_backward_func(),
        parameters=parameters,
        packed=packed,
    )


def build_chunks(config: PretrainConfig, device: torch.device, vocab_size: int) -> list[GPTModel]:
    """This rank's parts of the model, weights not yet set."""
    count = config.parallel.model_chunks
    first = parallel_state.is_pipeline_first_stage()
    last = parallel_state.is_pipeline_last_stage()
    return [
        build_model(
            config.model,
            config.parallel,
            config,
            vocab_size=vocab_size,
            device=device,
            pre_process=first and number == 0,
            post_process=last and number == count - 1,
            vp_stage=number if count > 1 else None,
        )
        for number in range(count)
    ]


def _connect(settings: Any, chunks: list[_BaseDataParallel], optimizer: ChainedOptimizer) -> None:
    """Tell the schedules how to scale the loss, and how to finish and when to hold back gradients.

    They ask the model's configuration for it (``schedules.py``).
    """
    settings.finalize_model_grads_func = finalize_model_grads
    settings.grad_scale_func = optimizer.scale_loss
    if chunks[0].ddp_config.overlap_grad_reduce:
        held = [chunk.no_sync for chunk in chunks]
        settings.no_sync_func = held if len(held) > 1 else held[0]
