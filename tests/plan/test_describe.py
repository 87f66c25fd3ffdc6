"""What a stage's settings are in planning's terms, the defaults filled in."""

import pytest
from layout_cases import CP, EP, EXPERTS, PP, SP, TP, VPP, Settings, config

from toolkit.plan.describe import run_of
from toolkit.plan.shape import Layout, stage_layers


def test_defaults_are_filled_in() -> None:
    run = run_of(config({}), 8, vocab_size=1000)
    model, layout = run.model, run.layout
    assert (model.kv_channels, model.kv_channels_follow, model.ffn_hidden_size) == (8, True, 128)
    assert (model.padded_vocab_size(1), model.padded_vocab_size(3)) == (1024, 1152)
    assert (layout.dp, layout.num_microbatches, layout.seq_length) == (8, 1, 64)
    assert layout.overlap.grad_reduce and not layout.overlap.p2p
    assert run.precision.weights == "bf16"
    assert not model.moe_layers and not model.is_moe_layer(0)


def test_degrees_multiply_to_the_ranks() -> None:
    changes = {TP: 2, PP: 2, VPP: 2, CP: 2, SP: True, EXPERTS: 4, EP: 4,
               "parallel.expert_tensor_parallel_size": 1}  # fmt: skip
    layout = run_of(config(changes), 32).layout
    assert (layout.model_parallel_size, layout.dp) == (8, 4)
    assert (layout.expert_tp, layout.expert_model_parallel_size, layout.expert_dp) == (1, 8, 4)
    assert layout.overlap.p2p and not layout.overlap.tp_comm
    hidden = {TP: 2, SP: True, "parallel.tp_comm_overlap": True}
    assert run_of(config(hidden), 2).layout.overlap.tp_comm


@pytest.mark.parametrize(
    ("changes", "ranks", "reduced"),
    [({TP: 2}, 2, False), ({CP: 2}, 2, True), ({TP: 2}, 4, True),
     ({TP: 2, "parallel.overlap_grad_reduce": False}, 4, False)],
)  # fmt: skip
def test_gradients_are_reduced_where_ranks_have_the_same_weights(
    changes: Settings, ranks: int, reduced: bool
) -> None:
    assert run_of(config(changes), ranks).layout.overlap.grad_reduce is reduced


@pytest.mark.parametrize(
    ("frequency", "layers"),
    [(1, [True] * 8), (2, [True, False] * 4), ([0, 0, 1, 1, 1, 1, 1, 1], [False] * 2 + [True] * 6)],
)
def test_which_layers_have_experts(frequency: int | list[int], layers: list[bool]) -> None:
    """As megatron-core's get_gpt_decoder_layer_specs counts: the first one has, then every n-th."""
    run = run_of(config({EXPERTS: 4, "model.moe_layer_freq": frequency}), 1)
    assert list(run.model.moe_layers) == layers
    assert [run.model.is_moe_layer(n) for n in range(8)] == layers


@pytest.mark.parametrize(
    ("layout", "layers"),
    [
        (Layout(pp=2), ((4,), (4,))),
        (Layout(pp=2, vpp=2), ((2, 2), (2, 2))),
        (Layout(pp=2, first_stage_layers=3), ((3,), (5,))),
        (Layout(pp=2, vpp=5, account_for_embedding=True, account_for_loss=True),
         ((0, 1, 1, 1, 1), (1, 1, 1, 1, 0))),
    ],
)  # fmt: skip
def test_the_layers_of_every_chunk(layout: Layout, layers: tuple[tuple[int, ...], ...]) -> None:
    model = run_of(config({}), 1).model
    assert stage_layers(model, layout) == layers
