"""Settings of the Megatron stages. The names are megatron-core's own; no torch is loaded here.

What can be derived is never a setting: ``data_parallel_size`` and the number of microbatches follow
from the ranks and the batch sizes (see ``toolkit.megatron.layout``).
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from toolkit.artifacts import ArtifactType
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
from toolkit.stage import Operational, Settings, StageConfig, StageKind


class ModelConfig(Settings):
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

    @model_validator(mode="after")
    def _dimensions_fit(self) -> Self:
        heads, groups = self.num_attention_heads, self.query_groups
        if self.kv_channels is None and self.hidden_size % heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {heads};"
                " make it one, or set kv_channels"
            )
        if heads % groups:
            raise ValueError(
                f"num_attention_heads {heads} is not a multiple of num_query_groups {groups};"
                f" valid are the divisors of {heads}"
            )
        if self.position_embedding_type == "rope" and int(self.head_size * self.rotary_percent) % 2:
            raise ValueError(
                f"rotary positions turn pairs of channels: kv_channels {self.head_size}"
                f" x rotary_percent {self.rotary_percent} must be even"
            )
        return self


class TrainedModel(ModelConfig):
    """What a checkpoint's ``model.json`` holds: the model's shape and its vocabulary."""

    vocab_size: Count = Field(description="Tokens of the tokenizer.")
    padded_vocab_size: Count = Field(description="Rows of the embedding, padding included.")

    @classmethod
    def of(cls, model: ModelConfig, vocab_size: int, padded_vocab_size: int) -> Self:
        """The description of ``model`` with this vocabulary."""
        shape = {name: getattr(model, name) for name in ModelConfig.model_fields}
        return cls(**shape, vocab_size=vocab_size, padded_vocab_size=padded_vocab_size)


class ParallelConfig(Settings):
    """How the model is cut over the ranks; what is left over is data parallelism."""

    tensor_model_parallel_size: Count = Field(
        default=1, description="Ranks that share every layer's matrices."
    )
    pipeline_model_parallel_size: Count = Field(
        default=1, description="Ranks in a row, each with a part of the layers."
    )
    virtual_pipeline_model_parallel_size: Count | None = Field(
        default=None,
        description="Parts of the layers on each pipeline rank (the interleaved schedule).",
    )

    @property
    def model_parallel_size(self) -> int:
        """Ranks that hold one copy of the model."""
        return self.tensor_model_parallel_size * self.pipeline_model_parallel_size

    @property
    def model_chunks(self) -> int:
        """Parts of the model on each rank: 1 without the interleaved schedule."""
        return self.virtual_pipeline_model_parallel_size or 1

    @model_validator(mode="after")
    def _interleaving_needs_a_pipeline(self) -> Self:
        if self.model_chunks > 1 and self.pipeline_model_parallel_size == 1:
            raise ValueError(
                "virtual_pipeline_model_parallel_size interleaves the parts of a pipeline: it needs"
                " pipeline_model_parallel_size of 2 or more"
            )
        return self


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
        """One data-parallel copy of the model."""
        return self.parallel.model_parallel_size

    @property
    def sequence(self) -> int:
        """Tokens of a sequence, the default filled in."""
        return self.seq_length or self.model.max_position_embeddings

    @model_validator(mode="after")
    def _sequence_fits(self) -> Self:
        longest = self.model.max_position_embeddings
        if self.sequence > longest:
            raise ValueError(
                f"seq_length {self.sequence} is longer than the model's max_position_embeddings"
                f" {longest}; shorten the one or raise the other"
            )
        return self

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
        summary="train a GPT model with megatron-core: tensor, pipeline and data parallelism",
        spread="ranks",
    ),
)
