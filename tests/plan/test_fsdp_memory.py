"""What a rank keeps under FSDP, against the tensors that the two implementations make."""

from typing import Any

import pytest
import test_memory
from test_memory import Case, rank_of

from toolkit.megatron.config import PretrainConfig
from toolkit.plan.describe import run_of
from toolkit.plan.memory import memory_by_stage

RANKS = 4
PADDING = 1.01
"""Of Megatron's buffers, whose shards begin at whole rows of every weight in them."""
no_network = test_memory.no_network


def config(**settings: Any) -> PretrainConfig:
    whole = Case(RANKS).config().model_dump(mode="json", exclude_none=True)
    return PretrainConfig.model_validate(whole | settings)


def built(config: PretrainConfig) -> tuple[Any, int]:
    """Of the first rank the wrapped model, and the bytes of Adam's states."""
    import torch

    from toolkit.megatron.fsdp_rows import local
    from toolkit.megatron.layout import layout_of
    from toolkit.megatron.setup import build_training

    with rank_of(config, 0, RANKS):
        training = build_training(config, layout_of(config, RANKS), torch.device("cpu"), 1000, 1)
        (part,) = training.optimizer.chained_optimizers
        states = part.optimizer.state.values()
        kept = sum(local(s[name]).nbytes for s in states for name in ("exp_avg", "exp_avg_sq"))
        return training.chunks[0], kept


def test_fsdp2_keeps_its_rows(no_network: None) -> None:
    from toolkit.megatron.fsdp_rows import local

    stage = config(use_distributed_optimizer=False, parallel={"use_torch_fsdp2": True})
    chunk, states = built(stage)
    run = run_of(stage, RANKS, 1000)
    planned = memory_by_stage(run.model, run.layout, run.precision)[0]
    assert planned.weights == sum(local(weight).nbytes for weight in chunk.parameters())
    assert planned.gradients == planned.weights
    assert planned.optimizer == states


@pytest.mark.parametrize("strategy", ["optim", "optim_grads", "optim_grads_params"])
def test_megatron_fsdp_keeps_what_its_strategy_says(
    no_network: None, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    from megatron.core.distributed.fsdp.src.megatron_fsdp import param_and_grad_buffer

    pytest.importorskip("einops", reason="Megatron's FSDP orders its ranks with einops")
    for name in ("validate_uneven_dtensor", "update_uneven_dtensor_chunk_metadata"):
        # They ask the other ranks, and here are none.
        monkeypatch.setattr(param_and_grad_buffer, name, lambda *_, **__: None)
    parallel = {"use_megatron_fsdp": True, "data_parallel_sharding_strategy": strategy}
    stage = config(parallel=parallel)
    chunk, states = built(stage)
    groups = chunk.param_and_grad_buffer.parameter_groups
    run = run_of(stage, RANKS, 1000)
    planned = memory_by_stage(run.model, run.layout, run.precision)[0]
    masters = sum(group.main_weight_buffer.data.nbytes for group in groups)
    for expected, found in (
        (planned.weights, sum(group.model_weight_buffer.data.nbytes for group in groups)),
        (planned.gradients, sum(group.main_grad_buffer.data.nbytes for group in groups)),
        (planned.optimizer, masters + states),
    ):
        assert expected <= found <= PADDING * expected


def test_weights_that_stay_whole_are_temporary() -> None:
    """FSDP2 without reshard_after_forward: all of them, between the passes."""
    parallel = {"use_torch_fsdp2": True, "torch_fsdp2_reshard_after_forward": False}
    kept = run_of(config(use_distributed_optimizer=False, parallel=parallel), RANKS, 1000)
    freed = run_of(
        config(use_distributed_optimizer=False, parallel={"use_torch_fsdp2": True}), RANKS, 1000
    )
    whole, layers = (
        memory_by_stage(run.model, run.layout, run.precision)[0] for run in (kept, freed)
    )
    assert whole.temporary > 4 * whole.parameters
    assert whole.temporary - 4 * whole.parameters < layers.temporary
