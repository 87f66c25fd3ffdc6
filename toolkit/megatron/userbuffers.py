"""TransformerEngine's user buffers, in which ``tp_comm_overlap`` gathers and scatters.

Set up as Megatron-LM does it (``training/initialize.py``: ``_initialize_tp_communicators``): after
the process groups, before the layers, which look for their buffers when they are made.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from toolkit.errors import ToolkitError
from toolkit.megatron.config import PretrainConfig
from toolkit.megatron.distributed import lost_rank
from toolkit.megatron.transformer import DTYPES, precision_on


@contextlib.contextmanager
def user_buffers(config: PretrainConfig, device: torch.device) -> Iterator[None]:
    """The user buffers of a run within the block, if it asks for ``tp_comm_overlap``.

    Raises:
        ToolkitError: this GPU, its driver or this TransformerEngine has none.
    """
    if not config.parallel.tp_comm_overlap:
        yield
        return
    from transformer_engine.pytorch.module import base

    try:
        base.initialize_ub(**buffer_arguments(config, device, base))
    except (RuntimeError, ValueError, AssertionError) as error:
        if isinstance(error, RuntimeError) and lost_rank(error):
            raise
        raise ToolkitError(
            f"TransformerEngine makes no user buffers for tp_comm_overlap: {error}",
            hint="UB_SKIPMC: '1' in the profile's environment does without multicast;"
            " parallel.tp_comm_overlap: false does without user buffers",
        ) from error
    try:
        yield
    finally:
        base.destroy_ub()


def buffer_arguments(config: PretrainConfig, device: torch.device, base: Any) -> dict[str, Any]:
    """What ``initialize_ub`` takes; ``base`` is TransformerEngine's module of it.

    The shape is that of a microbatch's tokens before tensor-parallel ranks share them. One flag
    said whether buffers hold FP8 until TransformerEngine 2.8, which has a list of modes: with
    layers in BF16 among those in FP8 there are buffers of both kinds.
    """
    parallel = config.parallel
    tokens = config.sequence * config.micro_batch_size // parallel.context_parallel_size
    arguments = {
        "shape": [tokens, config.model.hidden_size],
        "tp_size": parallel.tensor_model_parallel_size,
        "dtype": DTYPES[precision_on(config, device)],
        "ub_cfgs": parallel.user_buffers(),
        "bootstrap_backend": parallel.tp_comm_bootstrap_backend,
    }
    modes = getattr(base, "UserBufferQuantizationMode", None)
    if modes is None:
        return arguments | {"use_fp8": config.fp8 is not None}
    if config.fp8 is None:
        return arguments | {"quantization_modes": [modes.NONE]}
    ends = config.num_layers_at_start_in_bf16 + config.num_layers_at_end_in_bf16
    exceptions = config.first_last_layers_bf16 and ends > 0
    return arguments | {
        "quantization_modes": [modes.FP8, modes.NONE] if exceptions else [modes.FP8]
    }
