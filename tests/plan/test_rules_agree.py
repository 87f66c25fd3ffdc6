"""megatron-core refuses what our rules refuse, and builds what they accept; on the CPU."""

from __future__ import annotations

import megatron.core
import pytest
import torch
from all_cases import CASES
from fake_ranks import CPU, build, fake_ranks, in_groups
from layout_cases import (
    CP,
    EXPERTS,
    FULL,
    GROUP,
    PP,
    SP,
    TP,
    VPP,
    Case,
    Settings,
    config,
)
from megatron.core import parallel_state
from megatron.core.num_microbatches_calculator import (
    destroy_num_microbatches_calculator,
    get_num_microbatches,
    init_num_microbatches_calculator,
)
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel.mappings import scatter_to_sequence_parallel_region
from megatron.core.utils import get_batch_on_this_cp_rank
from packaging.version import Version
from torch import distributed

from toolkit.errors import ToolkitError
from toolkit.megatron import transformer
from toolkit.megatron.batches import Batch, of_rank
from toolkit.megatron.config import PretrainConfig
from toolkit.megatron.setup import build_chunks
from toolkit.plan.describe import run_of
from toolkit.plan.layout import is_valid


@pytest.mark.parametrize("case", [c for c in CASES if c.megatron], ids=str)
def test_the_configuration_agrees(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ToolkitError, match=f"megatron-core refuses .*({case.megatron})"):
        build(case.wrong_config, monkeypatch)
    build(case.right_config, monkeypatch)


@pytest.mark.parametrize("case", [c for c in CASES if c.groups], ids=str)
def test_the_process_groups_agree(case: Case) -> None:
    if case.wrong_config.parallel.num_distributed_optimizer_instances > 1:
        pytest.importorskip("einops", reason="megatron-core orders these groups with einops")
    refused = pytest.raises((RuntimeError, AssertionError), match=case.groups)
    with refused, fake_ranks(case.wrong_config.parallel, case.ranks):
        pass
    with fake_ranks(case.right_config.parallel, case.right_ranks or case.ranks):
        assert parallel_state.get_data_parallel_world_size() == case.right_run.layout.dp


@pytest.mark.parametrize("case", [c for c in CASES if c.rule == "batch-divides"], ids=str)
def test_the_batches_agree(case: Case) -> None:
    def count(settings: PretrainConfig) -> int:
        run = run_of(settings, case.ranks)
        sizes = (settings.global_batch_size, settings.micro_batch_size, run.layout.dp)
        init_num_microbatches_calculator(0, None, *sizes, False)
        return get_num_microbatches()

    try:
        with pytest.raises(AssertionError, match="is not divisible by micro batch size"):
            count(case.wrong_config)
        assert count(case.right_config) == case.right_run.layout.num_microbatches
    finally:
        destroy_num_microbatches_calculator()


def run_schedule(settings: PretrainConfig) -> None:
    """One step of the schedule; the sends of rank 0 go nowhere, so only until its first receive."""
    chunks = build_chunks(settings, CPU, 300)
    run = run_of(settings, distributed.get_world_size())
    get_forward_backward_func()(
        forward_step_func=stop_here,
        data_iterator=[iter([])] * len(chunks),
        model=chunks,
        num_microbatches=run.layout.num_microbatches,
        seq_length=settings.sequence,
        micro_batch_size=settings.micro_batch_size,
    )


class ReachedTheModel(Exception):
    """The schedule had nothing against it."""


def stop_here(*_: object) -> None:
    raise ReachedTheModel


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.rule == "interleaving-has-microbatches-in-groups"], ids=str
)
def test_the_interleaved_schedule_agrees(case: Case) -> None:
    with pytest.raises((ValueError, RuntimeError), match="micro-batches"):
        in_groups(case.wrong, case.ranks, run_schedule)
    with pytest.raises(ReachedTheModel):
        in_groups({**case.wrong, **case.right}, case.ranks, run_schedule)


def test_a_remainder_of_a_pipeline_is_no_bubble() -> None:
    """5 microbatches in groups of 3 leave 2, which are as many as the ranks: both accept."""
    changes = {PP: 2, VPP: 2, GROUP: 3, "global_batch_size": 5}
    assert is_valid(run_of(config(changes), 2))
    with pytest.raises(ReachedTheModel):
        in_groups(changes, 2, run_schedule)


def forward(settings: PretrainConfig) -> None:
    """Tokens through rank 0's part of the model."""
    (chunk,) = build_chunks(settings, CPU, 300)
    chunk.train()
    tokens = torch.zeros(1, settings.sequence, dtype=torch.long)
    chunk(input_ids=tokens, position_ids=tokens, attention_mask=None)


def test_uniform_recomputation_agrees() -> None:
    """8 layers in chunks of 3: megatron-core asks for a ninth one; 0.19 makes the last one less."""
    wrong = {**FULL, "recompute_method": "uniform", "recompute_num_layers": 3}
    assert not is_valid(run_of(config(wrong), 8))
    if Version(megatron.core.__version__) < Version("0.19"):
        with pytest.raises(IndexError):
            in_groups(wrong, 8, forward)
    in_groups({**wrong, "recompute_num_layers": 4}, 8, forward)


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"model.add_bias_linear": True}, "Bias is not supported for weighted swiglu"),
     ({"model.activation_func": "gelu_tanh"}, "Only support fusion of swiglu")],
)  # fmt: skip
def test_the_fused_activation_of_experts_agrees(
    changes: Settings, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformer, "_refuse_on_cpu", lambda *_: None)
    wrong = {EXPERTS: 4, "bias_activation_fusion": True, **changes}
    assert not is_valid(run_of(config(wrong), 8))
    with pytest.raises((NotImplementedError, ValueError), match=says):
        in_groups(wrong, 8, forward)


def test_experts_with_tensor_parallelism_agree() -> None:
    wrong = {EXPERTS: 4, TP: 2}
    assert not is_valid(run_of(config(wrong), 8))
    with pytest.raises(ValueError, match="sequence parallelism"):
        in_groups(wrong, 8, forward)


def test_sinkhorn_agrees() -> None:
    wrong = {
        EXPERTS: 4,
        "model.moe_aux_loss_coeff": 0.01,
        "model.moe_router_load_balancing_type": "sinkhorn",
    }
    assert not is_valid(run_of(config(wrong), 8))
    with pytest.raises(AssertionError, match="does not support aux loss"):
        in_groups(wrong, 8, forward)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({TP: 8, "model.num_query_groups": 1, "model.kv_channels": 2}, "20 is not divisible by 8"),
        ({TP: 4, "model.ffn_hidden_size": 130}, "65 is not divisible by 2"),
        ({EXPERTS: 4, "parallel.expert_tensor_parallel_size": 4, "model.moe_ffn_hidden_size": 30},
         "15 is not divisible by 2"),
        ({EXPERTS: 6, "parallel.expert_model_parallel_size": 4}, ""),
        ({EXPERTS: 4, TP: 2, SP: True, "model.moe_shared_expert_intermediate_size": 33},
         "not divisible by 2"),
        ({EXPERTS: 4, "model.add_bias_linear": True,
          "model.moe_shared_expert_intermediate_size": 32}, "bias is not supported"),
        ({"model.num_query_groups": 3}, "shape .* is invalid"),
        ({"model.kv_channels": 9}, "size of tensor a .9. must match"),
        ({EXPERTS: 4, "model.moe_layer_freq": [0, 1, 1]}, "Invalid length of moe_layer_pattern"),
        ({EXPERTS: 4, "model.moe_router_topk": 5}, "out of range"),
        ({EXPERTS: 8, "model.moe_router_num_groups": 4, "model.moe_router_group_topk": 1,
          "model.moe_router_topk": 3}, "out of range"),
    ],
)  # fmt: skip
def test_the_layers_agree(changes: Settings, says: str) -> None:
    """What megatron-core says when it builds, or first uses, the matrices."""
    assert not is_valid(run_of(config(changes), 8))
    with pytest.raises((AssertionError, RuntimeError, ValueError), match=says):
        in_groups(changes, 8, forward)


def test_the_cuts_of_a_sequence_agree() -> None:
    def halve(settings: PretrainConfig) -> int:
        tokens = torch.zeros(settings.sequence // settings.parallel.context_parallel_size, 1, 8)
        return len(scatter_to_sequence_parallel_region(tokens))

    assert in_groups({TP: 4, SP: True, "seq_length": 60}, 8, halve) == 15
    with pytest.raises(AssertionError, match="divisible by tensor parallel size"):
        in_groups({TP: 4, SP: True, "seq_length": 62}, 8, halve)


@pytest.mark.skipif(
    Version(megatron.core.__version__) >= Version("0.19"), reason="0.19 cuts batches on GPUs alone"
)
def test_the_pieces_of_a_sequence_agree() -> None:
    """Two for each context-parallel rank, which are those that our own batches are cut into."""

    def cut(settings: PretrainConfig) -> int:
        tokens = torch.arange(settings.sequence).view(1, -1)
        theirs = get_batch_on_this_cp_rank({"tokens": tokens})["tokens"]
        assert torch.equal(of_rank(Batch(tokens, tokens, tokens, tokens), 0, 4).tokens, theirs)
        return theirs.shape[1]

    assert in_groups({CP: 4, "seq_length": 56}, 8, cut) == 14
    with pytest.raises(RuntimeError, match="invalid for input of size 60"):
        in_groups({CP: 4, "seq_length": 60}, 8, cut)
