"""Settings of ``export`` and ``import``: between Megatron checkpoints and Hugging Face folders."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from toolkit.artifacts import ArtifactType
from toolkit.stage import Operational, Reference, StageConfig, StageKind

UNITS = {"MB": 10**6, "GB": 10**9}


class ConvertConfig(StageConfig):
    """What both directions share: the gate's settings."""

    tolerance: Annotated[float, Operational()] = Field(
        default=1e-4,
        gt=0,
        description="Largest difference between the logits of both models, computed in float32 "
        "on the same weights, that may be published.",
    )
    compare_tokens: Annotated[int, Operational()] = Field(
        default=4096,
        ge=2,
        description="Length of the longest sequence that the gate compares; the model's own "
        "maximum where that is shorter.",
    )


class ExportConfig(ConvertConfig):
    """A Megatron checkpoint, of any parallel layout, to a Hugging Face folder."""

    kind: Literal["export"] = "export"
    checkpoint: Annotated[str, Reference.to("checkpoint")] = Field(
        description="The Megatron checkpoint to export: a pretrain or import stage, or a path."
    )
    iteration: int | None = Field(
        default=None,
        ge=0,
        description="The iteration to export; by default the checkpoint's latest.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="Data type of the written weights; auto keeps the checkpoint's own.",
    )
    max_shard_size: str = Field(
        default="5GB",
        pattern=r"^[1-9]\d*(MB|GB)$",
        description="Largest size of one safetensors file, such as 500MB or 5GB.",
    )

    def artifact_type(self) -> ArtifactType:
        """A Hugging Face model."""
        return "model"

    def max_shard_bytes(self) -> int:
        """``max_shard_size`` in bytes."""
        return int(self.max_shard_size[:-2]) * UNITS[self.max_shard_size[-2:]]


class ImportConfig(ConvertConfig):
    """A Hugging Face Llama or GPT-2 to a Megatron checkpoint, for ``pretrain``'s ``load``."""

    kind: Literal["import"] = "import"
    model: Annotated[str, Reference.to("model")] = Field(
        description="The Hugging Face model to import: an export, sft or merge stage, or a path."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="Data type of the checkpoint's weights; auto keeps the model's own.",
    )

    def artifact_type(self) -> ArtifactType:
        """A Megatron checkpoint."""
        return "checkpoint"


STAGES: tuple[StageKind, ...] = (
    StageKind(
        name="export",
        config=ExportConfig,
        run="toolkit.megatron.convert.export:run",
        summary="a Megatron checkpoint to a Hugging Face folder, logits compared",
    ),
    StageKind(
        name="import",
        config=ImportConfig,
        run="toolkit.megatron.convert.import_hf:run",
        summary="a Hugging Face folder to a Megatron checkpoint, logits compared",
    ),
)
