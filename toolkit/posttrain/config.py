"""Settings of the post-training stages: ``sft``, ``dpo`` and ``merge``; no torch is loaded here."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from toolkit.artifacts import ArtifactType
from toolkit.data.chat_formats import CONVERSATION_FIELDS, ConversationFormat
from toolkit.data.chat_preferences import PREFERENCE_FIELDS, PreferenceFormat
from toolkit.data.chat_settings import known_columns
from toolkit.posttrain.settings import NotNegative, TunedConfig, with_learning_rate
from toolkit.stage import Reference, StageConfig, StageKind

DpoLoss = Literal[
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
]
"""The losses of TRL's ``DPOTrainer``."""


class SftConfig(TunedConfig):
    """Supervised fine-tuning: the loss is on the assistant's tokens alone."""

    kind: Literal["sft"] = "sft"
    format: ConversationFormat = Field(
        default="auto", description="Layout of the rows; auto recognises each row by its keys."
    )
    packing: bool = Field(
        default=False,
        description="Fill each sequence of max_length with whole rows (best fit); rows never see "
        "one another.",
    )
    loss_type: Literal["nll", "dft"] = Field(
        default="nll", description="nll: cross-entropy; dft: weighted by the token's probability."
    )

    @model_validator(mode="before")
    @classmethod
    def _learning_rate(cls, values: Any) -> Any:
        return with_learning_rate(values, full=2e-5, adapter=2e-4)

    @field_validator("columns")
    @classmethod
    def _columns_are_known(cls, columns: dict[str, str] | None) -> dict[str, str] | None:
        return known_columns(columns, CONVERSATION_FIELDS)


class DpoConfig(TunedConfig):
    """Direct preference optimization (arXiv:2305.18290) and its kin, by TRL's ``DPOTrainer``.

    The reference is the model at the start: with ``peft`` the same weights with the adapter off,
    else a copy.
    """

    kind: Literal["dpo"] = "dpo"
    format: PreferenceFormat = Field(
        default="auto", description="Layout of the rows; auto recognises each row by its keys."
    )
    loss_type: list[DpoLoss] = Field(
        default=["sigmoid"],
        min_length=1,
        description="Losses that are added up; sft beside another keeps the chosen answers likely.",
    )
    loss_weights: list[float] | None = Field(
        default=None, description="Weight of each loss_type; by default 1 each."
    )
    beta: Annotated[float, Field(gt=0)] = Field(
        default=0.1, description="How strongly the model is held to the reference."
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        default=0.0, description="Share of pairs taken for swapped, in robust and exo_pair."
    )
    collapse_threshold: Annotated[float, Field(gt=0)] = Field(
        default=0.5,
        description="Alarm when the chosen answers' log-probability per token has fallen by this "
        "much, in nats, while the margin over the rejected ones grew.",
    )
    on_collapse: Literal["warn", "stop"] = Field(
        default="warn", description="Whether the alarm is logged and recorded, or ends the stage."
    )

    @model_validator(mode="before")
    @classmethod
    def _learning_rate(cls, values: Any) -> Any:
        return with_learning_rate(values, full=1e-6, adapter=1e-5)

    @field_validator("columns")
    @classmethod
    def _columns_are_known(cls, columns: dict[str, str] | None) -> dict[str, str] | None:
        return known_columns(columns, PREFERENCE_FIELDS)

    @model_validator(mode="after")
    def _losses_fit(self) -> Self:
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss_type):
            raise ValueError(
                f"loss_weights has {len(self.loss_weights)} values for the {len(self.loss_type)} "
                f"of loss_type ({', '.join(self.loss_type)})"
            )
        if "exo_pair" in self.loss_type and not self.label_smoothing:
            raise ValueError(
                "loss_type exo_pair needs label_smoothing above 0; its paper has 0.001"
            )
        return self


class MergeConfig(StageConfig):
    """An adapter added into its base: a dense model, checked against base and adapter apart."""

    kind: Literal["merge"] = "merge"
    adapter: Annotated[str, Reference.to("adapter")] = Field(
        description="The adapter; its base is found through it, and may be an adapter too."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="Precision of the saved weights; auto is that of the base."
    )
    tolerance: NotNegative | None = Field(
        default=None,
        description="Largest difference of any logit on fixed inputs; by default 0.001 for "
        "float32 weights, 0.15 for 16-bit ones.",
    )

    def artifact_type(self) -> ArtifactType:
        """Always ``model``."""
        return "model"


DPO_LOSSES: tuple[str, ...] = get_args(DpoLoss)

STAGES = (
    StageKind(
        name="sft",
        config=SftConfig,
        run="toolkit.posttrain.sft:run",
        summary="fine-tune on conversations (TRL): full or LoRA, packed, answers only in the loss",
        spread="ranks",
    ),
    StageKind(
        name="dpo",
        config=DpoConfig,
        run="toolkit.posttrain.dpo:run",
        summary="align to preference pairs (TRL): DPO and its kin, with an alarm for collapse",
        spread="ranks",
    ),
    StageKind(
        name="merge",
        config=MergeConfig,
        run="toolkit.posttrain.merge:run",
        summary="add an adapter into its base, checked by logits",
    ),
)
