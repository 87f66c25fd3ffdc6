"""GPT-2, after transformers' ``modeling_gpt2.py``: its linear layers are ``Conv1D``, [in, out]."""

from __future__ import annotations

from collections.abc import Iterator

from transformers import GPT2Config, PreTrainedConfig

from toolkit.megatron.config import ModelConfig, TrainedModel
from toolkit.megatron.convert.families import ACTIVATIONS, Family, unlike
from toolkit.megatron.convert.mapping import (
    CONV1D,
    CONV1D_QKV,
    FUSED_QKV,
    SAME,
    VOCABULARY,
    Codec,
    Rule,
)

ACTIVATION_FUNCTION = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_new"}

LAYER: tuple[tuple[str, str, Codec], ...] = (
    ("input_layernorm.weight", "ln_1.weight", SAME),
    ("input_layernorm.bias", "ln_1.bias", SAME),
    ("self_attention.linear_qkv.weight", "attn.c_attn.weight", CONV1D_QKV),
    ("self_attention.linear_qkv.bias", "attn.c_attn.bias", FUSED_QKV),
    ("self_attention.linear_proj.weight", "attn.c_proj.weight", CONV1D),
    ("self_attention.linear_proj.bias", "attn.c_proj.bias", SAME),
    ("pre_mlp_layernorm.weight", "ln_2.weight", SAME),
    ("pre_mlp_layernorm.bias", "ln_2.bias", SAME),
    ("mlp.linear_fc1.weight", "mlp.c_fc.weight", CONV1D),
    ("mlp.linear_fc1.bias", "mlp.c_fc.bias", SAME),
    ("mlp.linear_fc2.weight", "mlp.c_proj.weight", CONV1D),
    ("mlp.linear_fc2.bias", "mlp.c_proj.bias", SAME),
)
OUTSIDE: tuple[tuple[str, str, Codec], ...] = (
    ("embedding.word_embeddings.weight", "transformer.wte.weight", VOCABULARY),
    ("embedding.position_embeddings.weight", "transformer.wpe.weight", SAME),
    ("decoder.final_layernorm.weight", "transformer.ln_f.weight", SAME),
    ("decoder.final_layernorm.bias", "transformer.ln_f.bias", SAME),
)


class GPT2(Family):
    """LayerNorm, learned positions, biases everywhere, one key and value per query."""

    architecture = "GPT2LMHeadModel"
    model_type = "gpt2"

    def obstacles(self, model: ModelConfig) -> Iterator[str]:
        """See ``Family``."""
        wanted = {
            "normalization": "LayerNorm",
            "position_embedding_type": "learned_absolute",
            "gated_linear_unit": False,
            "add_bias_linear": True,
            "qk_layernorm": False,
            "query_groups": model.num_attention_heads,
        }
        yield from unlike(model, wanted)
        if model.head_size * model.num_attention_heads != model.hidden_size:
            yield (
                f"kv_channels is {model.head_size}, only hidden_size / num_attention_heads "
                f"({model.hidden_size} / {model.num_attention_heads}) can be converted"
            )

    def refusals(self, config: PreTrainedConfig) -> Iterator[str]:
        """See ``Family``."""
        yield from unlike(
            config,
            {
                "scale_attn_weights": True,
                "scale_attn_by_inverse_layer_idx": False,
                "add_cross_attention": False,
                "embd_pdrop": config.resid_pdrop,
            },
        )
        if config.activation_function not in ACTIVATIONS:
            valid = ", ".join(ACTIVATIONS)
            yield f"activation_function is {config.activation_function!r}; valid are {valid}"

    def rules(self, model: ModelConfig) -> Iterator[Rule]:
        """See ``Family``."""
        for ours, theirs, codec in OUTSIDE:
            yield Rule(ours, (theirs,), codec)
        for layer in range(model.num_layers):
            for ours, theirs, codec in LAYER:
                name = f"transformer.h.{layer}.{theirs}"
                yield Rule(f"decoder.layers.{layer}.{ours}", (name,), codec)
        if model.untie_embeddings_and_output_weights:
            yield Rule("output_layer.weight", ("lm_head.weight",), VOCABULARY)

    def hf_config(self, model: TrainedModel, tokens: dict[str, int | None]) -> PreTrainedConfig:
        """See ``Family``."""
        return GPT2Config(
            vocab_size=model.vocab_size,
            n_positions=model.max_position_embeddings,
            n_embd=model.hidden_size,
            n_layer=model.num_layers,
            n_head=model.num_attention_heads,
            n_inner=model.ffn_size,
            activation_function=ACTIVATION_FUNCTION[model.activation_func],
            resid_pdrop=model.hidden_dropout,
            embd_pdrop=model.hidden_dropout,
            attn_pdrop=model.attention_dropout,
            layer_norm_epsilon=model.layernorm_epsilon,
            initializer_range=model.init_method_std,
            tie_word_embeddings=not model.untie_embeddings_and_output_weights,
            **tokens,
        )

    def model_config(self, config: PreTrainedConfig) -> ModelConfig:
        """See ``Family``."""
        return ModelConfig(
            num_layers=config.n_layer,
            hidden_size=config.n_embd,
            num_attention_heads=config.n_head,
            ffn_hidden_size=config.n_inner or 4 * config.n_embd,
            max_position_embeddings=config.n_positions,
            position_embedding_type="learned_absolute",
            normalization="LayerNorm",
            layernorm_epsilon=float(config.layer_norm_epsilon),
            gated_linear_unit=False,
            activation_func=ACTIVATIONS[config.activation_function],
            add_bias_linear=True,
            untie_embeddings_and_output_weights=not config.tie_word_embeddings,
            hidden_dropout=float(config.resid_pdrop),
            attention_dropout=float(config.attn_pdrop),
            init_method_std=float(config.initializer_range),
        )
