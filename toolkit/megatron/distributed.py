"""Process groups: torch.distributed and Megatron's parallel groups, set up and taken down."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from importlib.util import find_spec

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from torch import distributed

from toolkit.errors import ToolkitError
from toolkit.megatron import cpu
from toolkit.megatron.config import ParallelConfig


@contextlib.contextmanager
def process_groups(
    parallel: ParallelConfig,
    *,
    device: str = "cpu",
    local_rank: int = 0,
    seed: int = 1234,
    timeout: timedelta = timedelta(minutes=10),
) -> Iterator[torch.device]:
    """All the groups of a layout, within the block; yields this rank's device.

    The rank and the world size come from ``RANK``, ``WORLD_SIZE``, ``MASTER_ADDR`` and
    ``MASTER_PORT``; without ``WORLD_SIZE`` this process is the only one and opens no port.

    Args:
        parallel: the layout; the world size must be a multiple of its ``model_parallel_size``.
        device: ``cpu`` (gloo) or ``cuda`` (NCCL).
        local_rank: index of this rank's GPU.
        seed: of the dropout's random states; weights have their own (see ``initialize``).
        timeout: how long a collective may wait for a rank that does not come.
    """
    where = _select_device(device, local_rank)
    _initialize(where, timeout)
    try:
        initialize_groups(parallel, max(1, int(timeout.total_seconds() // 60)))
        seed_everything(seed)
        yield where
    finally:
        parallel_state.destroy_model_parallel()
        distributed.destroy_process_group()


def initialize_groups(parallel: ParallelConfig, minutes: int, *, gloo: bool = True) -> None:
    """Megatron's groups of a layout, on a world that is there already.

    Args:
        parallel: the layout.
        minutes: how long a collective may wait.
        gloo: whether to make groups on the host's memory beside those on the GPUs.

    Raises:
        ToolkitError: megatron-core orders groups of groups with einops, which is not installed.
    """
    nested = parallel.num_distributed_optimizer_instances > 1 or parallel.use_megatron_fsdp
    if (nested or parallel.hierarchical_context_parallel_sizes) and not find_spec("einops"):
        raise ToolkitError(
            "num_distributed_optimizer_instances, use_megatron_fsdp and"
            " hierarchical_context_parallel_sizes need the package einops, which is not installed"
            " here",
            hint="pip install einops",
        )
    names = (
        "tensor_model_parallel_size",
        "pipeline_model_parallel_size",
        "context_parallel_size",
        "hierarchical_context_parallel_sizes",
        "expert_model_parallel_size",
        "expert_tensor_parallel_size",
        "num_distributed_optimizer_instances",
    )
    parallel_state.initialize_model_parallel(
        **{name: getattr(parallel, name) for name in names},
        virtual_pipeline_model_parallel_size=(
            parallel.model_chunks if parallel.model_chunks > 1 else None
        ),
        distributed_timeout_minutes=minutes,
        create_gloo_process_groups=gloo,
    )


def seed_everything(seed: int) -> None:
    """Seed dropout as Megatron does: by pipeline stage, and by tensor rank where it must differ."""
    own = seed + 100 * parallel_state.get_pipeline_model_parallel_rank()
    torch.manual_seed(own)
    model_parallel_cuda_manual_seed(own)


LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Timed out",
    "remote process exited",
)
"""What gloo, NCCL and the rendezvous say when a rank is gone; all raise plain RuntimeErrors."""


def lost_rank(error: RuntimeError) -> bool:
    """Whether an error says that another rank ended, or did not answer in time."""
    return any(sign in str(error) for sign in LOST)


def _select_device(device: str, local_rank: int) -> torch.device:
    if device == "cuda":
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    cpu.install()
    return torch.device("cpu")


def _initialize(device: torch.device, timeout: timedelta) -> None:
    gpu = device.type == "cuda"
    backend, device_id = ("nccl", device) if gpu else ("gloo", None)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        distributed.init_process_group(backend, timeout=timeout, device_id=device_id)
        return
    store = torch._C._distributed_c10d.HashStore()
    distributed.init_process_group(
        backend, store=store, rank=0, world_size=1, timeout=timeout, device_id=device_id
    )
