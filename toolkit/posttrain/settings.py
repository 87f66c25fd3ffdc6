"""The groups of settings that the post-training stages share; names are Hugging Face's and TRL's.

No torch is loaded here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from toolkit.artifacts import ArtifactType
from toolkit.data.chat_settings import ChatSettings
from toolkit.stage import Operational, Reference, Resources, Settings, StageConfig

Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
Source = Annotated[str, Reference.to_data()]

DEFAULT_MAX_LENGTH = 2048
"""Tokens of a row at most, where neither the settings nor a shorter model say otherwise."""


class PeftSettings(Settings):
    """Train an adapter, and leave the model as it is; names are peft's own (``LoraConfig``)."""

    method: Literal["lora"] = Field(description="lora: low-rank matrices beside linear layers.")
    r: Count = Field(default=16, description="Rank of the adapter's matrices.")
    lora_alpha: Count = Field(
        default=32, description="The update is scaled by lora_alpha / r (by / sqrt(r) in rsLoRA)."
    )
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="Dropout in front of the adapter."
    )
    target_modules: str | list[str] = Field(
        default="all-linear",
        description="Names of the layers that get an adapter, or all-linear: all but the output "
        "layer.",
    )
    use_rslora: bool = Field(default=False, description="Rank-stabilised scaling, for high ranks.")
    use_dora: bool = Field(
        default=False, description="Also train each weight's magnitude (DoRA); slower, finer."
    )

    @model_validator(mode="after")
    def _not_the_output_layer(self) -> Self:
        if "lm_head" in self.target_modules:
            raise ValueError(
                "target_modules may not have lm_head: TRL computes log-probabilities from its "
                "weight, so an adapter there would never be trained"
            )
        return self


class RowSettings(ChatSettings):
    """Which rows are read, and how."""

    data: list[Source] = Field(
        min_length=1,
        description="Files (.jsonl, .json, also .gz or .zst, .parquet), folders and globs of "
        "them, and sample: names.",
    )
    held_out: list[Source] = Field(
        default=[], description="Rows to evaluate on, of the same format, never trained on."
    )
    eval_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.05,
        description="Without held_out: this share of the data is held out, chosen by the seed.",
    )
    max_held_out: Count = Field(default=1000, description="Rows held out at most.")
    max_length: Annotated[int, Field(ge=8)] | None = Field(
        default=None,
        description="Tokens of a row at most, the rest is cut off at the end and counted; by "
        f"default the model's context, at most {DEFAULT_MAX_LENGTH}.",
    )


class TrainingSettings(Settings):
    """The loop of ``transformers.Trainer``, under its own names."""

    learning_rate: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="Highest learning rate; by default 10 times larger with peft."
    )
    per_device_train_batch_size: Count = Field(
        default=8, description="Rows (or packs) in one forward pass of one rank."
    )
    gradient_accumulation_steps: Count = Field(
        default=1, description="Forward passes per optimizer step."
    )
    num_train_epochs: Annotated[float, Field(gt=0)] = Field(
        default=1.0, description="Passes over the data; not used where max_steps is set."
    )
    max_steps: Count | None = Field(default=None, description="Optimizer steps, if fixed.")
    warmup_steps: NotNegative = Field(
        default=0.03, description="Steps of linear warm-up; below 1, that share of all steps."
    )
    lr_scheduler_type: Literal[
        "linear", "cosine", "constant", "constant_with_warmup", "inverse_sqrt", "polynomial"
    ] = Field(default="cosine", description="How the learning rate falls after the warm-up.")
    weight_decay: NotNegative = Field(default=0.0, description="Weight decay of AdamW.")
    max_grad_norm: Annotated[float, Field(gt=0)] = Field(
        default=1.0, description="Gradients are scaled down to this norm."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto",
        description="bf16: mixed precision, fp32 weights where they are trained, bf16 where they "
        "are frozen under an adapter; auto is bf16 on GPUs, fp32 on CPUs.",
    )
    gradient_checkpointing: Annotated[bool | None, Operational()] = Field(
        default=None,
        description="Compute activations twice to save memory; by default on GPUs only.",
    )
    eval_steps: Annotated[Count | None, Operational()] = Field(
        default=None,
        description="Evaluate on the held-out rows every so many steps, besides before and after.",
    )
    per_device_eval_batch_size: Annotated[Count, Operational()] = Field(
        default=8, description="Held-out rows in one forward pass."
    )
    logging_steps: Annotated[Count, Operational()] = Field(
        default=1, description="Log metrics every so many steps."
    )
    save_steps: Annotated[Count, Operational()] = Field(
        default=200, description="Save a checkpoint to resume from every so many steps."
    )
    keep_last: Annotated[int, Field(ge=1), Operational()] = Field(
        default=2, description="Checkpoints kept; older ones are deleted."
    )


class TunedConfig(RowSettings, TrainingSettings, StageConfig):
    """What ``sft`` and ``dpo`` have in common."""

    resources: Resources = Field(
        default=Resources(),
        description="Ranks multiply the batch here: another number of them is other training.",
    )
    model: Annotated[str, Reference.to("model", "adapter")] = Field(
        description="The model to start from; an adapter counts as merged into its base."
    )
    peft: PeftSettings | None = Field(
        default=None, description="Train an adapter; without it, all weights are trained."
    )

    def artifact_type(self) -> ArtifactType:
        """``adapter`` with ``peft``, else ``model``."""
        return "adapter" if self.peft else "model"


def with_learning_rate(values: Any, full: float, adapter: float) -> Any:
    """Fill in the learning rate that goes with what is trained, so that the plan shows it."""
    if isinstance(values, dict) and values.get("learning_rate") is None:
        return values | {"learning_rate": adapter if values.get("peft") else full}
    return values
