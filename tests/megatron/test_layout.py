"""The arithmetic of layouts, and the settings' own rules."""

from typing import Any

import pytest
from pydantic import ValidationError

from toolkit.errors import ToolkitError
from toolkit.megatron.config import ModelConfig, PretrainConfig, TrainedModel
from toolkit.megatron.flops import flops_per_token, peak_tflops
from toolkit.megatron.layout import layout_of, padded_vocab_size

MODEL = {"num_layers": 8, "hidden_size": 64, "num_attention_heads": 8, "num_query_groups": 2}


def config(model: dict[str, Any] | None = None, **settings: Any) -> PretrainConfig:
    shape = {**MODEL, **(model or {})}
    return PretrainConfig.model_validate(
        {"data": "corpus", "train_iters": 100, "model": shape, **settings}
    )


def parallel(tensor: int = 1, pipeline: int = 1, virtual: int | None = None) -> dict[str, Any]:
    return {
        "tensor_model_parallel_size": tensor,
        "pipeline_model_parallel_size": pipeline,
        "virtual_pipeline_model_parallel_size": virtual,
    }


def test_what_follows_from_a_layout() -> None:
    found = layout_of(config(parallel=parallel(2, 2), global_batch_size=48, micro_batch_size=4), 16)
    assert (found.data_parallel_size, found.num_microbatches) == (4, 3)


@pytest.mark.parametrize(
    ("settings", "ranks", "message"),
    [
        ({"parallel": parallel(tensor=2, pipeline=2)}, 6,
         "6 ranks are not a multiple of the 4 that hold one copy of the model"),
        ({"parallel": {"expert_model_parallel_size": 4}, "model": {**MODEL, "num_moe_experts": 4}},
         6, "6 ranks are not a multiple of the 4 that hold one copy of the experts"),
        ({"micro_batch_size": 4, "global_batch_size": 20}, 2,
         r"global_batch_size 20 is not a multiple of 8 .micro_batch_size 4 x data_parallel_size 2"),
    ],
)  # fmt: skip
def test_a_number_of_ranks_that_does_not_fit(
    settings: dict[str, Any], ranks: int, message: str
) -> None:
    with pytest.raises(ToolkitError, match=message):
        layout_of(config(**settings), ranks)


@pytest.mark.parametrize(
    ("vocab", "divisible_by", "tensor", "padded"),
    [(4096, 128, 2, 4096), (300, 128, 1, 384), (300, 128, 8, 384), (300, 1, 2, 300),
     (301, 1, 2, 302), (50257, 128, 3, 50304)],
)  # fmt: skip
def test_padding_does_not_depend_on_a_power_of_two(
    vocab: int, divisible_by: int, tensor: int, padded: int
) -> None:
    assert padded_vocab_size(vocab, divisible_by, tensor) == padded


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lr_warmup_iters": 100}, "lr_warmup_iters 100 must be below lr_decay_iters 100"),
        ({"lr": 1e-4, "min_lr": 1e-3}, "min_lr 0.001 is above lr 0.0001"),
        ({"lr_decay_style": "WSD", "lr_wsd_decay_iters": 99, "lr_warmup_iters": 5},
         "more than the 95 iterations after the warm-up"),
        ({"split": "0,1"}, "nothing to train on"),
        ({"split": "most of it"}, "String should match pattern"),
        ({"data_parallel_size": 2}, "Extra inputs are not permitted"),
    ],
)  # fmt: skip
def test_settings_that_contradict_each_other(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PretrainConfig.model_validate(
            {"data": "corpus", "train_iters": 100, "model": MODEL, **wrong}
        )


def test_defaults_that_follow_from_other_settings() -> None:
    found = config(train_iters=1000, lr=1e-2)
    assert (found.warmup_iters, found.decay_iters, found.lowest_lr) == (50, 1000, 1e-3)
    assert found.sequence == 2048
    assert found.model.head_size == 8
    assert found.model.ffn_size == 128
    assert found.minimum_ranks() == 1
    assert config(parallel=parallel(2, 2)).world_size() == 4


def test_a_trained_model_keeps_its_shape() -> None:
    model = ModelConfig.model_validate(MODEL)
    described = TrainedModel.of(model, 300, 384)
    again = TrainedModel.model_validate_json(described.model_dump_json())
    assert again == described
    assert (again.vocab_size, again.padded_vocab_size, again.num_layers) == (300, 384, 8)


def test_operations_of_a_known_model() -> None:
    """Llama 2 7B: 6 per weight of the matrices (6.61e9), plus 12 L h s / 2 for the attention."""
    llama = ModelConfig(
        num_layers=32, hidden_size=4096, num_attention_heads=32, ffn_hidden_size=11008
    )
    weights = 32 * (4 * 4096**2 + 3 * 4096 * 11008) + 4096 * 32000
    attention = 6 * 32 * 4096 * 4096
    assert flops_per_token(llama, 4096, 32000) == pytest.approx(6 * weights + attention)


def test_operations_of_experts() -> None:
    """Of Mixtral's eight experts a token goes through two: 12.9e9 weights with the attention's."""
    mixtral = ModelConfig(
        num_layers=32,
        hidden_size=4096,
        num_attention_heads=32,
        num_query_groups=8,
        ffn_hidden_size=14336,
        num_moe_experts=8,
    )
    weights = 32 * (2.5 * 4096**2 + 2 * 3 * 4096 * 14336) + 4096 * 32000
    attention = 6 * 32 * 4096 * 4096
    assert flops_per_token(mixtral, 4096, 32000) == pytest.approx(6 * weights + attention)
    every_second = mixtral.model_copy(update={"moe_layer_freq": 2})
    less = 6 * 16 * 3 * 4096 * 14336
    whole = flops_per_token(mixtral, 4096, 32000)
    assert flops_per_token(every_second, 4096, 32000) == pytest.approx(whole - less)


def test_the_peak_of_known_gpus() -> None:
    assert peak_tflops("NVIDIA H100 80GB HBM3") == 989
    assert peak_tflops("NVIDIA H100 PCIe", fp8=True) == 1512
    assert peak_tflops("NVIDIA A100-SXM4-80GB") == 312
    assert peak_tflops("Some new GPU") is None
