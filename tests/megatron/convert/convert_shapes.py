"""The models that the conversion is tested with."""

from typing import Any

VOCABULARY = 300
BASE = {"num_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 96}
GPT2 = {
    **BASE,
    "position_embedding_type": "learned_absolute",
    "normalization": "LayerNorm",
    "gated_linear_unit": False,
    "activation_func": "gelu_tanh",
    "add_bias_linear": True,
    "untie_embeddings_and_output_weights": False,
}
LLAMA = {**BASE, "num_query_groups": 2, "ffn_hidden_size": 160, "rotary_base": 500_000}
TIED = {"untie_embeddings_and_output_weights": False}
SCALED = {**LLAMA, "use_rope_scaling": True, "max_position_embeddings": 2048}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "llama-tied": {**LLAMA, **TIED},
    "llama-biased": {**LLAMA, "add_bias_linear": True, "activation_func": "gelu_tanh"},
    "llama-3.1": {**SCALED, "kv_channels": 32},
    "qwen2": {**LLAMA, **TIED, "add_qkv_bias": True},
    "qwen3": {**LLAMA, "qk_layernorm": True, "kv_channels": 32},
    "gpt2": GPT2,
    "gpt2-untied": {**GPT2, "untie_embeddings_and_output_weights": True, "activation_func": "gelu"},
    "interleaved": LLAMA,
    "bf16": LLAMA,
}
"""Name of a checkpoint to its model; all at TP=2 x PP=2, ``interleaved`` also at VPP=2,
``gpt2-untied`` with uneven stages."""
