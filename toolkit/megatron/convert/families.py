"""What a Hugging Face architecture is to the conversion, and which one represents a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from transformers import PreTrainedConfig

from toolkit.errors import ToolkitError
from toolkit.megatron.config import ModelConfig, TrainedModel
from toolkit.megatron.convert.mapping import Rule

ACTIVATIONS: dict[str, Literal["silu", "gelu", "gelu_tanh"]] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""Hugging Face's names of activations to Megatron's."""


class Family(ABC):
    """One Hugging Face architecture: its configuration and its parameters, both ways."""

    architecture: str
    """The class that config.json names."""
    model_type: str
    """The ``model_type`` of config.json."""

    @abstractmethod
    def obstacles(self, model: ModelConfig) -> Iterator[str]:
        """Why this architecture can't represent a Megatron model: one text per setting."""

    @abstractmethod
    def refusals(self, config: PreTrainedConfig) -> Iterator[str]:
        """What a Hugging Face configuration asks that megatron-core's GPTModel can't do, or that
        this conversion has no rule for: one text per key."""

    @abstractmethod
    def rules(self, model: ModelConfig) -> Iterator[Rule]:
        """The table of parameters."""

    @abstractmethod
    def hf_config(self, model: TrainedModel, tokens: dict[str, int | None]) -> PreTrainedConfig:
        """The configuration in Hugging Face's terms, with the ids of the special tokens."""

    @abstractmethod
    def model_config(self, config: PreTrainedConfig) -> ModelConfig:
        """The configuration in Megatron's terms."""


def family_of(model: ModelConfig, families: Sequence[Family]) -> Family:
    """The first family that represents ``model``.

    Raises:
        ToolkitError: none does; for each family, the settings that stand in the way.
    """
    if model.num_moe_experts is not None:
        raise ToolkitError(
            f"the model has {model.num_moe_experts} experts, and no architecture with experts is"
            " known here yet",
            hint=f"known are {', '.join(family.architecture for family in families)}",
        )
    reasons = []
    for family in families:
        obstacles = list(family.obstacles(model))
        if not obstacles:
            return family
        reasons.append(f"{family.architecture}: {'; '.join(obstacles)}")
    raise ToolkitError(
        "no Hugging Face architecture that export knows represents this model",
        hint="\n  ".join(reasons),
    )


def family_for(config: dict[str, Any], families: Sequence[Family], where: str) -> Family:
    """The family that a config.json names.

    Raises:
        ToolkitError: another architecture, or none named.
    """
    named = config.get("architectures") or []
    for family in families:
        if [family.architecture] == named or (
            not named and config.get("model_type") == family.model_type
        ):
            return family
    found = ", ".join(named) or f"model_type {config.get('model_type')}"
    raise ToolkitError(
        f"can't import the architecture {found}",
        where=where,
        hint=f"import knows {', '.join(family.architecture for family in families)}",
    )


def unlike(settings: ModelConfig | PreTrainedConfig, wanted: dict[str, Any]) -> Iterator[str]:
    """One text for every setting that isn't what is ``wanted``; one that is absent is fine."""
    for name, value in wanted.items():
        found = getattr(settings, name, value)
        if found != value:
            yield f"{name} is {found!r}, only {value!r} can be converted"
