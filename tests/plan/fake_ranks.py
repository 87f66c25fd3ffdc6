"""megatron-core on the CPU for the tests of rules: its configuration, and ranks that are not there.

Process groups are of torch's ``fake`` backend: any number of ranks in one process, and collectives
that do nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from layout_cases import Settings, config
from megatron.core import parallel_state
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import distributed
from torch.testing._internal.distributed.fake_pg import FakeStore

from toolkit.megatron import cpu, transformer
from toolkit.megatron import distributed as groups
from toolkit.megatron.config import ParallelConfig, PretrainConfig

CPU = torch.device("cpu")


@contextlib.contextmanager
def fake_ranks(parallel: ParallelConfig, world_size: int) -> Iterator[None]:
    """Megatron's groups of a layout for rank 0 of a world that isn't there."""
    cpu.install()
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    try:
        groups.initialize_groups(parallel, 10, gloo=False)
        groups.seed_everything(1)
        yield
    finally:
        parallel_state.destroy_model_parallel()
        distributed.destroy_process_group()


def build(settings: PretrainConfig, monkeypatch: pytest.MonkeyPatch) -> TransformerConfig:
    """megatron-core's configuration, as on a GPU but for the kernels."""
    monkeypatch.setattr(transformer, "_refuse_on_cpu", lambda *_: None)
    if settings.precision == "auto":
        settings = settings.model_copy(update={"precision": "bf16"})
    return transformer.transformer_config(settings.model, settings.parallel, settings, CPU)


def in_groups(changes: Settings, ranks: int, act: Callable[[PretrainConfig], Any]) -> Any:
    settings = config(changes)
    with fake_ranks(settings.parallel, ranks):
        return act(settings)
