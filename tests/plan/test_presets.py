"""Every preset is a valid model, with as many parameters as were published."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from plan_shapes import PRESETS, preset

from toolkit.megatron.config import ModelConfig
from toolkit.plan.describe import model_shape
from toolkit.plan.parameters import active_parameter_count, parameter_count

FILES = sorted(PRESETS.glob("*.yaml"))
COUNTS = {
    "gpt2-124m": 124_439_808,
    "gpt2-355m": 354_823_168,
    "gpt2-774m": 774_030_080,
    "gpt2-1.5b": 1_557_611_200,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "mixtral-8x7b": 46_702_792_704,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
}
"""Of the checkpoints on the Hugging Face Hub, a tied output layer counted once."""


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_as_many_parameters_as_published(name: str, count: int) -> None:
    assert parameter_count(preset(name)) == count
    told = re.search(r"^# ([\d,]+) parameters\.$", (PRESETS / f"{name}.yaml").read_text(), re.M)
    assert told is not None
    assert int(told[1].replace(",", "")) == count


def test_every_preset_is_counted_and_says_where_it_is_from() -> None:
    own = {"gpt2-mini", "llama-mini", "gpt3-175b"}
    assert {file.stem for file in FILES} == set(COUNTS) | own
    for file in FILES:
        if "mini" not in file.stem:
            assert "# Source: " in file.read_text(), file


def test_a_token_meets_fewer_parameters_than_there_are() -> None:
    assert active_parameter_count(preset("mixtral-8x7b")) == 12_879_925_248
    assert active_parameter_count(preset("qwen3-30b-a3b")) == 3_353_032_704
    assert active_parameter_count(preset("llama-3-8b")) == COUNTS["llama-3-8b"]


SMALL = {
    "num_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "ffn_hidden_size": 48,
    "max_position_embeddings": 64,
    "vocab_size": 256,
}
GPT = {
    "position_embedding_type": "learned_absolute",
    "normalization": "LayerNorm",
    "gated_linear_unit": False,
    "activation_func": "gelu",
    "add_bias_linear": True,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gpt": GPT,
    "grouped": {"num_query_groups": 2},
    "wide-heads": {"num_query_groups": 2, "kv_channels": 24, "qk_layernorm": True},
    "qkv-bias": {"add_qkv_bias": True, "num_query_groups": 1},
    "tied": {"untie_embeddings_and_output_weights": False},
    "experts": {"num_moe_experts": 4, "moe_router_topk": 2, "moe_ffn_hidden_size": 24},
    "some-experts": {
        "num_layers": 4,
        "num_moe_experts": 4,
        "moe_router_topk": 2,
        "moe_layer_freq": [0, 1, 1, 0],
    },
}


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    from toolkit.megatron.config import ParallelConfig
    from toolkit.megatron.distributed import process_groups

    with process_groups(ParallelConfig()):
        yield


def built(model: ModelConfig) -> int:
    """Parameters of megatron-core's own model, made without memory."""
    import torch

    from toolkit.megatron.model import build_model

    assert model.vocab_size is not None
    exact = model.model_copy(update={"make_vocab_size_divisible_by": 1})
    with torch.device("meta"):
        network = build_model(exact, vocab_size=model.vocab_size, device=torch.device("meta"))
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("name", VARIANTS)
def test_the_closed_form_is_what_megatron_core_builds(name: str, one_rank: None) -> None:
    model = ModelConfig(**(SMALL | VARIANTS[name]))
    assert parameter_count(model_shape(model)) == built(model)


BUILT = [name for name in COUNTS if not name.startswith("qwen3-235b")]
"""All but the one with 12,032 experts, which are as many modules."""


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILT)
def test_megatron_core_builds_the_published_models(name: str, one_rank: None) -> None:
    from toolkit.pipeline.source import read_yaml

    model = ModelConfig.model_validate(read_yaml(PRESETS / f"{name}.yaml").data)
    assert built(model) == COUNTS[name]
