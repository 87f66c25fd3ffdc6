"""The groups of settings that ``PretrainConfig`` is made of, flat as Megatron's flags are."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from toolkit.data.pack.config import SPLIT, Shares, shares
from toolkit.megatron.kernels import KernelSettings
from toolkit.stage import Operational, Reference, Settings

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
RecomputeModule = Literal["core_attn", "moe_act", "layernorm", "mlp", "moe", "shared_experts"]


class NumericsSettings(KernelSettings):
    """Number formats, and what is computed twice to save memory."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto",
        description="Format of weights and activations; auto is bf16 on GPUs, fp32 on CPUs.",
    )
    fp8: Literal["hybrid", "e4m3"] | None = Field(
        default=None,
        description="Run the linear layers in FP8 (TransformerEngine, Ada or newer GPUs).",
    )
    fp8_recipe: Literal["delayed", "tensorwise", "blockwise", "mxfp8"] = Field(
        default="delayed", description="How FP8 scales are found."
    )
    fp8_margin: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Powers of two kept free above the largest value seen."
    )
    fp8_amax_history_len: Count = Field(
        default=1024, description="Steps over which the delayed recipe looks for the largest value."
    )
    fp8_amax_compute_algo: Literal["most_recent", "max"] = Field(
        default="max", description="What the delayed recipe takes from that history."
    )
    fp8_param: bool = Field(
        default=False, description="Keep the weights in FP8, too, and gather them so."
    )
    fp8_dot_product_attention: bool = Field(
        default=False, description="Run attention in FP8, too (cuDNN's kernels)."
    )
    first_last_layers_bf16: bool = Field(
        default=False, description="Leave the first and the last layers in BF16."
    )
    num_layers_at_start_in_bf16: Annotated[int, Field(ge=0)] = Field(
        default=1, description="First layers that first_last_layers_bf16 leaves in BF16."
    )
    num_layers_at_end_in_bf16: Annotated[int, Field(ge=0)] = Field(
        default=1, description="Last layers that first_last_layers_bf16 leaves in BF16."
    )
    fp4: Literal["e2m1"] | None = Field(
        default=None,
        description="Run the linear layers in FP4 (TransformerEngine 2.7, Blackwell or newer).",
    )
    fp4_recipe: Literal["nvfp4"] = Field(default="nvfp4", description="How FP4 scales are found.")
    recompute_granularity: Annotated[Literal["selective", "full"] | None, Operational()] = Field(
        default=None,
        description="Recompute attention (selective) or whole layers (full) in the backward.",
    )
    recompute_method: Annotated[Literal["uniform", "block"] | None, Operational()] = Field(
        default=None,
        description="Which layers full recomputation takes; needed with granularity full.",
    )
    recompute_num_layers: Annotated[Count | None, Operational()] = Field(
        default=None,
        description="Layers per recomputed chunk (uniform), or recomputed layers (block).",
    )

    recompute_modules: Annotated[list[RecomputeModule] | None, Operational()] = Field(
        default=None,
        description="What selective recomputation takes; by default core_attn, the attention.",
    )
    distribute_saved_activations: Annotated[bool, Operational()] = Field(
        default=False,
        description="With full recomputation, keep each tensor-parallel rank its share of a"
        " layer's input.",
    )


class OptimizerSettings(Settings):
    """Adam, and the learning rate over the iterations (``OptimizerParamScheduler``)."""

    lr: Positive = Field(default=1e-3, description="Highest learning rate.")
    min_lr: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="Lowest learning rate of the decay; by default a tenth of lr."
    )
    lr_decay_style: Literal["cosine", "linear", "WSD", "constant"] = Field(
        default="cosine", description="Shape of the decay; WSD is warm-up, stable, decay."
    )
    lr_warmup_iters: Annotated[int, Field(ge=0)] | None = Field(
        default=None,
        description="Iterations of linear warm-up; by default 5 % of train_iters, at most 2000.",
    )
    lr_decay_iters: Count | None = Field(
        default=None, description="Iteration at which min_lr is reached; by default train_iters."
    )
    lr_wsd_decay_iters: Count | None = Field(
        default=None, description="Length of WSD's decay; by default a tenth of lr_decay_iters."
    )
    lr_wsd_decay_style: Literal["exponential", "linear", "cosine", "minus_sqrt"] = Field(
        default="minus_sqrt", description="Shape of WSD's decay."
    )
    adam_beta1: Fraction = Field(default=0.9, description="Decay of Adam's mean.")
    adam_beta2: Fraction = Field(default=0.95, description="Decay of Adam's square.")
    adam_eps: Positive = Field(default=1e-8, description="Adam's epsilon.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        default=0.1, description="Decoupled weight decay of matrices; biases and norms have none."
    )
    clip_grad: Annotated[float, Field(ge=0)] = Field(
        default=1.0, description="Longest gradient (global L2 norm); 0 clips nothing."
    )
    use_distributed_optimizer: Annotated[bool, Operational()] = Field(
        default=True,
        description="Shard the optimizer's state over the data-parallel ranks (ZeRO-1).",
    )
    use_precision_aware_optimizer: bool = Field(
        default=False,
        description="Let the optimizer's state have other formats than FP32 (TransformerEngine).",
    )
    main_grads_dtype: Literal["fp32", "bf16"] = Field(
        default="fp32", description="Format of the gradients that the optimizer reads."
    )
    main_params_dtype: Literal["fp32", "fp16"] = Field(
        default="fp32", description="Format of the optimizer's own copy of the weights."
    )
    exp_avg_dtype: Literal["fp32", "fp16", "bf16", "fp8"] = Field(
        default="fp32", description="Format of Adam's mean."
    )
    exp_avg_sq_dtype: Literal["fp32", "fp16", "bf16", "fp8"] = Field(
        default="fp32", description="Format of Adam's square."
    )
    grad_reduce_in_fp32: bool = Field(
        default=True, description="Add up and reduce gradients in FP32, also of BF16 weights."
    )

    @model_validator(mode="after")
    def _lr_falls(self) -> Self:
        if self.min_lr is not None and self.min_lr > self.lr:
            raise ValueError(f"min_lr {self.min_lr} is above lr {self.lr}")
        return self


class BatchSettings(Settings):
    """How many sequences a step takes, and how long they are."""

    train_iters: Count = Field(description="Optimizer steps.")
    micro_batch_size: Annotated[Count, Operational()] = Field(
        default=4, description="Sequences that one rank takes through the model at once."
    )
    global_batch_size: Count = Field(
        default=16, description="Sequences of one optimizer step, over all ranks and microbatches."
    )
    seq_length: Count | None = Field(
        default=None,
        description="Tokens of a sequence; by default the model's max_position_embeddings.",
    )


class DataSettings(Settings):
    """What is read, and which part of it is held out."""

    data: Annotated[str, Reference(types=("dataset",), files=True)] = Field(
        description="A tokenize stage, a dataset artifact, or a .bin/.idx pair without its suffix."
    )
    tokenizer: Annotated[str, Reference.to("tokenizer")] | None = Field(
        default=None,
        description="The tokenizer of a bare .bin/.idx pair; a dataset artifact has its own.",
    )
    split: str = Field(
        default="969,30,1",
        pattern=SPLIT,
        description="Shares of training, validation and test documents, as Megatron writes them; "
        "not for a dataset that a split stage has cut already.",
    )
    num_workers: Annotated[int | None, Field(ge=0), Operational()] = Field(
        default=None,
        description="Processes that read batches ahead on each rank; by default 2 on GPUs, else 0.",
    )

    @property
    def shares(self) -> Shares:
        """The training, validation and test shares, which sum to 1."""
        return shares(self.split)

    @model_validator(mode="after")
    def _split_has_training_data(self) -> Self:
        shares(self.split)
        return self


class CheckpointSettings(Settings):
    """When weights are saved, and where they start from."""

    load: Annotated[str, Reference.to("checkpoint")] | None = Field(
        default=None,
        description="A checkpoint whose weights to start from, instead of random ones.",
    )
    save_interval: Annotated[Count, Operational()] = Field(
        default=500, description="Iterations between checkpoints."
    )
    keep_last: Annotated[Count, Operational()] = Field(
        default=2, description="Checkpoints kept; older ones are removed."
    )


class MonitorSettings(Settings):
    """What is measured, and what to do when the loss goes wrong."""

    log_interval: Annotated[Count, Operational()] = Field(
        default=10, description="Iterations between rows of metrics."
    )
    eval_interval: Annotated[Count, Operational()] = Field(
        default=100, description="Iterations between evaluations."
    )
    eval_iters: Annotated[int, Field(ge=0)] = Field(
        default=10,
        description="At most this many global batches of held-out data; 0 evaluates nothing.",
    )
    on_nan: Annotated[Literal["stop", "skip"], Operational()] = Field(
        default="stop", description="When loss or gradient is not finite: stop, or skip the batch."
    )
    on_loss_spike: Annotated[Literal["off", "stop", "skip"], Operational()] = Field(
        default="off", description="When the loss jumps: nothing, stop, or skip the batch."
    )
    loss_spike_factor: Annotated[float, Field(gt=1), Operational()] = Field(
        default=2.0, description="A loss over this many times the window's median is a spike."
    )
    loss_spike_window: Annotated[int, Field(ge=2), Operational()] = Field(
        default=50, description="Iterations that the median is taken over."
    )
    max_skipped_in_a_row: Annotated[Count, Operational()] = Field(
        default=10, description="Stop when this many batches in a row had to be skipped."
    )
    distributed_timeout_minutes: Annotated[Count, Operational()] = Field(
        default=10, description="A rank that waits longer than this for the others gives up."
    )
