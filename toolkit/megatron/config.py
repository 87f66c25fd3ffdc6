"""Settings of the Megatron stages. The names are megatron-core's own; no torch is loaded here.

What can be derived is never a setting: ``data_parallel_size`` and the number of microbatches follow
from the ranks and the batch sizes (see ``toolkit.megatron.layout``).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from toolkit.artifacts import ArtifactType
from toolkit.megatron.experts import ExpertSettings
from toolkit.megatron.parallel import ParallelConfig
from toolkit.megatron.settings import (
    BatchSettings,
    CheckpointSettings,
    Count,
    DataSettings,
    Fraction,
    MonitorSettings,
    NumericsSettings,
    OptimizerSettings,
    Positive,
)
from toolkit.stage import Operational, StageConfig, StageKind

__all__ = ["STAGES", "ModelConfig", "ParallelConfig", "PretrainConfig", "TrainedModel"]


class ModelConfig(ExpertSettings):
    """The shape of a GPT model, as ``TransformerConfig`` and ``GPTModel`` of megatron-core name it.

    The defaults are those of the Llama family; ``configs/models/`` has both families.
    """

    num_layers: Count = Field(description="Transformer layers.")
    hidden_size: Count = Field(description="Width of the residual stream.")
    num_attention_heads: Count = Field(description="Query heads.")
    num_query_groups: Count | None = Field(
        default=None, description="Key/value heads (GQA); by default as many as query heads."
    )
    ffn_hidden_size: Count | None = Field(
        default=None,
        description="Inner width of the MLP; by default 4 x hidden_size, gated 8/3 of it in 64s.",
    )
    kv_channels: Count | None = Field(
        default=None, description="Size of one head; by default hidden_size / num_attention_heads."
    )
    max_position_embeddings: Count = Field(
        default=2048, description="Longest sequence the model is built for, in tokens."
    )
    position_embedding_type: Literal["rope", "learned_absolute"] = Field(
        default="rope",
        description="Rotary positions, or a learned table of max_position_embeddings rows.",
    )
    rotary_base: Count = Field(default=10_000, description="Base period of the rotary positions.")
    rotary_percent: float = Field(
        default=1.0, gt=0, le=1, description="Share of each head that the rotary positions turn."
    )
    use_rope_scaling: bool = Field(
        default=False,
        description="Llama 3.1's scaling of the rotary frequencies for long contexts.",
    )
    rope_scaling_factor: Positive = Field(default=8.0, description="Factor of use_rope_scaling.")
    normalization: Literal["RMSNorm", "LayerNorm"] = Field(
        default="RMSNorm", description="Kind of every normalization."
    )
    layernorm_epsilon: Positive = Field(default=1e-5, description="Epsilon of every normalization.")
    qk_layernorm: bool = Field(
        default=False, description="Normalize each head's queries and keys, as Qwen3 does."
    )
    gated_linear_unit: bool = Field(
        default=True, description="Gate the MLP; with activation_func silu this is SwiGLU."
    )
    activation_func: Literal["silu", "gelu", "gelu_tanh"] = Field(
        default="silu", description="Activation of the MLP; gelu_tanh is GPT-2's approximation."
    )
    add_bias_linear: bool = Field(default=False, description="Biases in every linear layer.")
    add_qkv_bias: bool = Field(
        default=False, description="Biases in the QKV projection alone, as Qwen2."
    )
    untie_embeddings_and_output_weights: bool = Field(
        default=True,
        description="An output layer of its own; otherwise the embedding's weights are used.",
    )
    hidden_dropout: Fraction = Field(default=0.0, description="Dropout of the residual stream.")
    attention_dropout: Fraction = Field(
        default=0.0, description="Dropout of the attention weights."
    )
    init_method_std: Positive = Field(
        default=0.02,
        description="Standard deviation of new weights; output layers use std/sqrt(2 layers).",
    )
    vocab_size: Annotated[int | None, Field(ge=1), Operational()] = Field(
        default=None,
        description="Tokens of the published model's tokenizer: what a plan reckons with where no"
        " stage makes one. A run takes its own tokenizer's.",
    )
    make_vocab_size_divisible_by: Count = Field(
        default=128,
        description="The embedding is padded to a multiple of this (and of the TP size).",
    )

    @property
    def query_groups(self) -> int:
        """Key/value heads, the default filled in."""
        return self.num_query_groups or self.num_attention_heads

    @property
    def head_size(self) -> int:
        """Size of one head, the default filled in."""
        return self.kv_channels or self.hidden_size // self.num_attention_heads

    @property
    def ffn_size(self) -> int:
        """Inner width of the MLP; the default is that of Megatron-LM's arguments.py."""
        if self.ffn_hidden_size is not None:
            return self.ffn_hidden_size
        if self.gated_linear_unit:
            return max(1, int(4 * self.hidden_size * 2 / 3) // 64) * 64
        return 4 * self.hidden_size

    @property
    def expert_ffn_size(self) -> int:
        """Inner width of one expert, the default filled in."""
        return self.moe_ffn_hidden_size or self.ffn_size

    @property
    def moe_layers(self) -> list[bool]:
        """For each layer whether it has experts; empty in a dense model."""
        if self.num_moe_experts is None:
            return []
        if isinstance(self.moe_layer_freq, list):
            return [bool(layer) for layer in self.moe_layer_freq]
        return [layer % self.moe_layer_freq == 0 for layer in range(self.num_layers)]


class TrainedModel(ModelConfig):
    """What a checkpoint's ``model.json`` holds: the model's shape and its vocabulary."""

    vocab_size: Count = Field(description="Tokens of the tokenizer.")
    padded_vocab_size: Count = Field(description="Rows of the embedding, padding included.")

    @classmethod
    def of(cls, model: ModelConfig, vocab_size: int, padded_vocab_size: int) -> Self:
        """The description of ``model`` with this vocabulary."""
        names = ModelConfig.model_fields.keys() - {"vocab_size"}
        shape = {name: getattr(model, name) for name in names}
        return cls(**shape, vocab_size=vocab_size, padded_vocab_size=padded_vocab_size)


class PretrainConfig(
    BatchSettings,
    OptimizerSettings,
    NumericsSettings,
    DataSettings,
    CheckpointSettings,
    MonitorSettings,
    StageConfig,
):
    """Trains a GPT model from random weights, or from a checkpoint's."""

    kind: Literal["pretrain"] = "pretrain"
    model: ModelConfig = Field(
        description="The model's shape; preset: NAME takes configs/models/NAME.yaml."
    )
    parallel: Annotated[ParallelConfig, Operational()] = Field(
        default=ParallelConfig(), description="How the model is cut over the ranks."
    )

    def artifact_type(self) -> ArtifactType:
        """A checkpoint."""
        return "checkpoint"

    def minimum_ranks(self) -> int:
        """The fewest ranks that hold whole copies of the model, and of all experts."""
        return math.lcm(self.parallel.model_parallel_size, self.parallel.expert_ranks)

    @property
    def sequence(self) -> int:
        """Tokens of a sequence, the default filled in."""
        return self.seq_length or self.model.max_position_embeddings

    @model_validator(mode="after")
    def _schedule_fits(self) -> Self:
        warmup, decay = self.warmup_iters, self.decay_iters
        if warmup >= decay:
            raise ValueError(
                f"lr_warmup_iters {warmup} must be below lr_decay_iters {decay}"
                " (by default train_iters)"
            )
        if self.lr_decay_style == "WSD" and self.wsd_decay_iters > decay - warmup:
            raise ValueError(
                f"lr_wsd_decay_iters {self.wsd_decay_iters} is more than the {decay - warmup}"
                " iterations after the warm-up"
            )
        return self

    @property
    def warmup_iters(self) -> int:
        """Iterations of warm-up, the default filled in."""
        if self.lr_warmup_iters is not None:
            return self.lr_warmup_iters
        return min(2000, self.train_iters // 20)

    @property
    def decay_iters(self) -> int:
        """Iteration at which the decay ends, the default filled in."""
        return self.lr_decay_iters or self.train_iters

    @property
    def wsd_decay_iters(self) -> int:
        """Length of WSD's decay, the default filled in."""
        return self.lr_wsd_decay_iters or max(1, self.decay_iters // 10)

    @property
    def lowest_lr(self) -> float:
        """Lowest learning rate, the default filled in."""
        return self.lr / 10 if self.min_lr is None else self.min_lr


STAGES: tuple[StageKind, ...] = (
    StageKind(
        name="pretrain",
        config=PretrainConfig,
        run="toolkit.megatron.train:run",
        summary="train a GPT model with megatron-core: TP, PP, CP, EP, data parallelism, FSDP",
        spread="ranks",
    ),
)
