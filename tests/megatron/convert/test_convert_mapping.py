"""The tables and codecs, without a model: what holds what, and that nothing is left out."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from convert_shapes import SHAPES
from transformers import GPT2Config, LlamaConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from toolkit.errors import ToolkitError
from toolkit.megatron import checkpoint
from toolkit.megatron.config import ModelConfig, TrainedModel
from toolkit.megatron.convert import mapping
from toolkit.megatron.convert.families import family_for, family_of
from toolkit.megatron.convert.gpt2 import GPT2
from toolkit.megatron.convert.known import FAMILIES
from toolkit.megatron.convert.llama import LLAMA, QWEN2, QWEN3
from toolkit.megatron.convert.mapping import Codec, Rule

SMALL = TrainedModel(
    num_layers=1,
    hidden_size=12,
    num_attention_heads=6,
    num_query_groups=2,
    kv_channels=2,
    vocab_size=5,
    padded_vocab_size=8,
)
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "llama-tied": "LlamaForCausalLM",
    "llama-biased": "LlamaForCausalLM",
    "llama-3.1": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "gpt2-untied": "GPT2LMHeadModel",
}


def trained(shape: dict[str, Any]) -> TrainedModel:
    return TrainedModel.of(ModelConfig(**shape), 300, 384)


@pytest.mark.parametrize(
    ("codec", "shape"),
    [
        (mapping.SAME, (3, 4)),
        (mapping.GATED, (8, 3)),
        (mapping.QKV, (20, 12)),
        (mapping.QKV, (20,)),
        (mapping.CONV1D, (3, 4)),
        (mapping.FUSED_QKV, (20,)),
        (mapping.CONV1D_QKV, (20, 12)),
    ],
)
def test_join_undoes_split(codec: Codec, shape: tuple[int, ...]) -> None:
    """FUSED_QKV splits into equal thirds: with 6 heads in 6 groups."""
    heads = {"num_query_groups": None} if codec in (mapping.FUSED_QKV, mapping.CONV1D_QKV) else {}
    model = SMALL.model_copy(update=heads)
    rows = 36 if heads else shape[0]
    tensor = torch.randn(rows, *shape[1:])
    assert torch.equal(codec.join(list(codec.split(tensor, model)), model), tensor)


def test_queries_keys_and_values_leave_their_groups() -> None:
    """Two groups of three queries: Megatron's rows are q0 q1 q2 k0 v0 | q3 q4 q5 k1 v1."""
    rows = ["q0", "q1", "q2", "k0", "v0", "q3", "q4", "q5", "k1", "v1"]
    labels = {name: float(number) for number, name in enumerate(rows)}
    tensor = torch.tensor([[labels[name]] for name in rows for _ in range(SMALL.head_size)])
    query, key, value = mapping.QKV.split(tensor, SMALL)
    for part, names in ((query, "q0 q1 q2 q3 q4 q5"), (key, "k0 k1"), (value, "v0 v1")):
        expected = [labels[name] for name in names.split() for _ in range(SMALL.head_size)]
        assert part.flatten().tolist() == expected


def test_padding_rows_are_stripped_and_come_back_as_zeros() -> None:
    embedding = torch.randn(8, 3)
    (real,) = mapping.VOCABULARY.split(embedding, SMALL)
    assert torch.equal(real, embedding[:5])
    padded = mapping.VOCABULARY.join([real], SMALL)
    assert torch.equal(padded[:5], real)
    assert torch.equal(padded[5:], torch.zeros(3, 3))


def test_a_parameter_without_a_rule_is_not_left_out() -> None:
    rules = [Rule("a", ("x",), mapping.SAME)]
    tensor = torch.zeros(1)
    with pytest.raises(ToolkitError, match="no rule for b"):
        list(mapping.to_hf(rules, {"a": tensor, "b": tensor}, SMALL))
    with pytest.raises(ToolkitError, match="no parameter x"):
        list(mapping.to_megatron(rules, {}, SMALL))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_shapes_go_to_their_architecture_and_back(name: str, tmp_path: Path) -> None:
    model = trained(SHAPES[name])
    family = family_of(model, FAMILIES)
    assert family.architecture == ARCHITECTURES[name]
    config = family.hf_config(model, {"bos_token_id": None, "eos_token_id": 0})
    assert list(family.refusals(config)) == []
    back = TrainedModel.of(family.model_config(config), 300, 384)
    checkpoint.write_model(tmp_path, back)
    checkpoint.check_model(tmp_path, model)
    assert (back.hidden_dropout, back.init_method_std) == (model.hidden_dropout, 0.02)


@pytest.mark.parametrize(
    ("base", "change", "named"),
    [
        ("llama", {"rotary_percent": 0.5}, "rotary_percent is 0.5"),
        ("llama", {"normalization": "LayerNorm"}, "normalization is 'LayerNorm'"),
        ("llama", {"gated_linear_unit": False}, "gated_linear_unit is False"),
        ("llama", {"qk_layernorm": True, "add_qkv_bias": True}, "add_qkv_bias is True"),
        ("llama", {"hidden_size": 66, "kv_channels": 16}, "hidden_size 66 is not a multiple"),
        ("qwen2", {"add_bias_linear": True}, "add_bias_linear is True"),
        ("gpt2", {"num_query_groups": 2}, "query_groups is 2, only 4"),
        ("gpt2", {"kv_channels": 32}, "kv_channels is 32"),
        ("gpt2", {"add_bias_linear": False}, "add_bias_linear is False"),
    ],
)
def test_models_that_no_architecture_represents(
    base: str, change: dict[str, Any], named: str
) -> None:
    with pytest.raises(ToolkitError) as caught:
        family_of(trained({**SHAPES[base], **change}), FAMILIES)
    assert named in str(caught.value)
    assert "GPT2LMHeadModel" in str(caught.value)


@pytest.mark.parametrize(
    ("family", "config", "named"),
    [
        (LLAMA, LlamaConfig(attention_bias=True), "mlp_bias is False, only True"),
        (LLAMA, LlamaConfig(hidden_act="relu"), "hidden_act is 'relu'; valid are silu"),
        (LLAMA, LlamaConfig(sliding_window=128), "sliding_window is 128"),
        (
            LLAMA,
            LlamaConfig(rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}),
            "rope_type is 'linear'",
        ),
        (
            LLAMA,
            LlamaConfig(
                max_position_embeddings=131072,
                rope_parameters={
                    "rope_type": "llama3",
                    "rope_theta": 500000.0,
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 2.0,
                    "original_max_position_embeddings": 8192,
                },
            ),
            "high_freq_factor is 2.0, megatron-core has 4.0",
        ),
        (
            LLAMA,
            LlamaConfig(rope_parameters={"rope_type": "default", "rope_theta": 10000.5}),
            "rope_theta is 10000.5",
        ),
        (QWEN2, Qwen2Config(use_sliding_window=True), "use_sliding_window is True"),
        (QWEN3, Qwen3Config(attention_bias=True), "attention_bias is True"),
        (GPT2(), GPT2Config(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse"),
        (GPT2(), GPT2Config(scale_attn_weights=False), "scale_attn_weights is False"),
        (GPT2(), GPT2Config(activation_function="relu"), "activation_function is 'relu'"),
        (GPT2(), GPT2Config(embd_pdrop=0.3), "embd_pdrop is 0.3"),
    ],
)
def test_features_that_megatron_hasnt_are_refused_by_name(
    family: Any, config: PreTrainedConfig, named: str
) -> None:
    assert any(named in text for text in family.refusals(config)), list(family.refusals(config))


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"architectures": ["MistralForCausalLM"], "model_type": "mistral"}, "MistralForCausalLM"),
        ({"architectures": ["LlamaForSequenceClassification"], "model_type": "llama"}, "Sequence"),
        ({"model_type": "mamba"}, "model_type mamba"),
    ],
)
def test_other_architectures_are_refused_by_name(config: dict[str, Any], named: str) -> None:
    with pytest.raises(ToolkitError, match=named) as caught:
        family_for(config, FAMILIES, "config.json")
    assert "LlamaForCausalLM" in str(caught.value)


def test_an_architecture_is_found_by_its_model_type_alone() -> None:
    assert family_for({"model_type": "gpt2"}, FAMILIES, "config.json").model_type == "gpt2"


def test_the_settings_need_no_torch() -> None:
    code = "import sys, toolkit.megatron.convert.config; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
