"""Llama, and its relatives Qwen2 (biases on queries, keys, values) and Qwen3 (normalized heads).

After transformers' ``modeling_llama.py``, ``modeling_qwen2.py`` and ``modeling_qwen3.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from transformers import LlamaConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from toolkit.megatron.config import ModelConfig, TrainedModel
from toolkit.megatron.convert.families import ACTIVATIONS, Family, unlike
from toolkit.megatron.convert.mapping import GATED, QKV, SAME, VOCABULARY, Rule

HIDDEN_ACT = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}

LLAMA3_SCALING = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""Constants of megatron-core's ``RotaryEmbedding._apply_scaling``, which has only these."""

NORMS = (
    ("input_layernorm", "input_layernorm"),
    ("pre_mlp_layernorm", "post_attention_layernorm"),
)
LINEARS = (
    (
        "self_attention.linear_qkv",
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        QKV,
    ),
    ("self_attention.linear_proj", ("self_attn.o_proj",), SAME),
    ("mlp.linear_fc1", ("mlp.gate_proj", "mlp.up_proj"), GATED),
    ("mlp.linear_fc2", ("mlp.down_proj",), SAME),
)


@dataclass(frozen=True)
class Llama(Family):
    """RMSNorm, rotary positions, a gated MLP, grouped queries."""

    architecture: str
    model_type: str
    config_class: type[PreTrainedConfig]
    qkv_bias: bool = False
    """Biases on queries, keys and values alone, always there (Qwen2)."""
    qk_norm: bool = False
    """Each head's queries and keys normalized (Qwen3)."""

    def obstacles(self, model: ModelConfig) -> Iterator[str]:
        """See ``Family``."""
        wanted = {
            "normalization": "RMSNorm",
            "position_embedding_type": "rope",
            "rotary_percent": 1.0,
            "gated_linear_unit": True,
            "qk_layernorm": self.qk_norm,
            "add_qkv_bias": self.qkv_bias,
        }
        if self.model_type != "llama":
            wanted["add_bias_linear"] = False
        yield from unlike(model, wanted)
        if model.hidden_size % model.num_attention_heads:
            yield (
                f"hidden_size {model.hidden_size} is not a multiple of num_attention_heads "
                f"{model.num_attention_heads}, which transformers asks of kv_channels too"
            )

    def refusals(self, config: PreTrainedConfig) -> Iterator[str]:
        """See ``Family``."""
        yield from unlike(config, {"use_sliding_window": False, "partial_rotary_factor": 1.0})
        if self.model_type == "llama":
            yield from unlike(config, {"sliding_window": None})
            yield from unlike(config, {"mlp_bias": config.attention_bias})
        else:
            yield from unlike(config, {"attention_bias": False})
        if config.hidden_act not in ACTIVATIONS:
            yield f"hidden_act is {config.hidden_act!r}; valid are {', '.join(ACTIVATIONS)}"
        yield from _rope_refusals(config.rope_parameters)

    def rules(self, model: ModelConfig) -> Iterator[Rule]:
        """See ``Family``."""
        yield Rule("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), VOCABULARY)
        for layer in range(model.num_layers):
            for ours, theirs, codec in self._layer(model):
                names = tuple(f"model.layers.{layer}.{name}" for name in theirs)
                yield Rule(f"decoder.layers.{layer}.{ours}", names, codec)
        yield Rule("decoder.final_layernorm.weight", ("model.norm.weight",), SAME)
        if model.untie_embeddings_and_output_weights:
            yield Rule("output_layer.weight", ("lm_head.weight",), VOCABULARY)

    def _layer(self, model: ModelConfig) -> Iterator[tuple[str, tuple[str, ...], Any]]:
        for ours, theirs in NORMS:
            yield f"{ours}.weight", (f"{theirs}.weight",), SAME
        for ours, names, codec in LINEARS:
            yield f"{ours}.weight", tuple(f"{name}.weight" for name in names), codec
            qkv = codec is QKV and model.add_qkv_bias
            if model.add_bias_linear or qkv:
                yield f"{ours}.bias", tuple(f"{name}.bias" for name in names), codec
        for head in ("q", "k") if self.qk_norm else ():
            ours, name = f"self_attention.{head}_layernorm.weight", f"self_attn.{head}_norm.weight"
            yield ours, (name,), SAME

    def hf_config(self, model: TrainedModel, tokens: dict[str, int | None]) -> PreTrainedConfig:
        """See ``Family``."""
        biases = {"attention_bias": model.add_bias_linear, "mlp_bias": model.add_bias_linear}
        return self.config_class(
            vocab_size=model.vocab_size,
            hidden_size=model.hidden_size,
            intermediate_size=model.ffn_size,
            num_hidden_layers=model.num_layers,
            num_attention_heads=model.num_attention_heads,
            num_key_value_heads=model.query_groups,
            head_dim=model.head_size,
            hidden_act=HIDDEN_ACT[model.activation_func],
            max_position_embeddings=model.max_position_embeddings,
            initializer_range=model.init_method_std,
            rms_norm_eps=model.layernorm_epsilon,
            attention_dropout=model.attention_dropout,
            tie_word_embeddings=not model.untie_embeddings_and_output_weights,
            rope_parameters=_rope_parameters(model),
            **(biases if self.model_type == "llama" else {}),
            **tokens,
        )

    def model_config(self, config: PreTrainedConfig) -> ModelConfig:
        """See ``Family``."""
        rope, default_head = (
            config.rope_parameters,
            config.hidden_size // config.num_attention_heads,
        )
        head = getattr(config, "head_dim", None)
        return ModelConfig(
            num_layers=config.num_hidden_layers,
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            num_query_groups=config.num_key_value_heads,
            ffn_hidden_size=config.intermediate_size,
            kv_channels=None if head == default_head else head,
            max_position_embeddings=config.max_position_embeddings,
            rotary_base=int(rope["rope_theta"]),
            use_rope_scaling=rope["rope_type"] == "llama3",
            rope_scaling_factor=float(rope.get("factor", 8.0)),
            layernorm_epsilon=float(config.rms_norm_eps),
            qk_layernorm=self.qk_norm,
            activation_func=ACTIVATIONS[config.hidden_act],
            add_bias_linear=self.model_type == "llama" and config.attention_bias,
            add_qkv_bias=self.qkv_bias,
            untie_embeddings_and_output_weights=not config.tie_word_embeddings,
            attention_dropout=float(config.attention_dropout or 0.0),
            init_method_std=float(config.initializer_range),
        )


def _rope_parameters(model: ModelConfig) -> dict[str, Any]:
    plain: dict[str, Any] = {"rope_type": "default", "rope_theta": float(model.rotary_base)}
    if not model.use_rope_scaling:
        return plain
    return {**plain, "rope_type": "llama3", "factor": model.rope_scaling_factor, **LLAMA3_SCALING}


def _rope_refusals(rope: dict[str, Any]) -> Iterator[str]:
    kind, theta = rope["rope_type"], rope["rope_theta"]
    if kind not in ("default", "llama3"):
        yield f"rope_parameters.rope_type is {kind!r}; valid are 'default', 'llama3'"
    if theta != int(theta):
        yield f"rope_parameters.rope_theta is {theta}, Megatron's rotary_base is a whole number"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        yield f"rope_parameters.partial_rotary_factor is {rope['partial_rotary_factor']}, not 1.0"
    if kind == "llama3":
        for name, value in LLAMA3_SCALING.items():
            if rope.get(name) != value:
                yield f"rope_parameters.{name} is {rope.get(name)}, megatron-core has {value}"


LLAMA = Llama("LlamaForCausalLM", "llama", LlamaConfig)
QWEN2 = Llama("Qwen2ForCausalLM", "qwen2", Qwen2Config, qkv_bias=True)
QWEN3 = Llama("Qwen3ForCausalLM", "qwen3", Qwen3Config, qk_norm=True)
