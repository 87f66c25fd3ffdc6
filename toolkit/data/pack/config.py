"""Settings of ``pack``, ``split`` and ``blend``: from tokens to what training reads. No numpy."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from toolkit.artifacts import ArtifactType
from toolkit.data.chat_formats import CONVERSATION_FIELDS, ConversationFormat
from toolkit.data.chat_preferences import PREFERENCE_FIELDS
from toolkit.data.chat_settings import ChatSettings, known_columns
from toolkit.stage import Reference, StageConfig, StageKind

PARTS = ("train", "valid", "test")
TOKENIZE = "tokenize"
Shares = tuple[float, float, float]
DatasetName = Annotated[str, Reference.to("dataset")]

SPLIT = r"^\s*[0-9.]+\s*(,\s*[0-9.]+\s*){0,2}$"
"""``969,30,1``: Megatron's way to write the shares of training, validation and test."""


def shares(split: str) -> Shares:
    """The training, validation and test shares that a ``split`` setting gives; they sum to 1.

    Raises:
        ValueError: no number where one is expected, or nothing is left to train on.
    """
    try:
        weights = [float(part) for part in split.split(",")]
        weights += [0.0] * (3 - len(weights))
        total = sum(weights)
        found = weights[0] / total, weights[1] / total, weights[2] / total
    except (ValueError, ZeroDivisionError):
        found = (0.0, 0.0, 0.0)
    if found[0] <= 0:
        raise ValueError(f"split {split!r} leaves nothing to train on; write it like 969,30,1")
    return found


class PackConfig(ChatSettings, StageConfig):
    """Conversations, or the documents of a dataset, as rows of exactly ``seq_length`` tokens.

    Best-fit decreasing puts several into a row; in training none of them sees another.
    """

    kind: Literal["pack"] = "pack"
    data: list[Annotated[str, Reference.to_data("documents")]] = Field(
        default=[],
        description="Conversations to tokenize and pack: files (.jsonl, .json, .parquet, "
        "compressed too), folders and globs of them, and sample: names.",
    )
    dataset: DatasetName | None = Field(
        default=None, description="Instead of data: a tokenize stage, whose documents are packed."
    )
    tokenizer: Annotated[str, Reference.to("tokenizer", "model")] | None = Field(
        default=None,
        description="With data: a train-tokenizer stage, or a tokenizer's or model's folder.",
    )
    seq_length: int = Field(ge=8, description="Tokens of a packed row: the training's seq_length.")
    overflow: Literal["error", "truncate", "split"] = Field(
        default="error",
        description="What is longer than a row: stops the stage, is cut off (lost tokens are "
        "counted), or goes on in pieces that don't see one another.",
    )
    rows: Literal["conversations", "preferences"] = Field(
        default="conversations",
        description="What data holds; of preferences, the chosen answer is trained.",
    )
    format: ConversationFormat | Literal["pairs", "transcripts"] = Field(
        default="auto", description="Layout of data's rows; auto recognises each row by its keys."
    )
    pad_token: str | None = Field(
        default=None,
        description="The token that fills rows up, never trained on; by default the tokenizer's "
        "pad_token, or its eos_token.",
    )

    def artifact_type(self) -> ArtifactType:
        """Always ``dataset``."""
        return "dataset"

    def phases(self) -> tuple[str, ...]:
        """Conversations are tokenized shard by shard; the finish packs."""
        return (TOKENIZE,)

    @model_validator(mode="after")
    def _one_input(self) -> Self:
        if bool(self.data) == (self.dataset is not None):
            raise ValueError(
                "set data (conversations to tokenize) or dataset (a tokenize stage): one of them"
            )
        if bool(self.data) != (self.tokenizer is not None):
            raise ValueError("tokenizer goes with data, and is needed there; a dataset has its own")
        return self

    @model_validator(mode="after")
    def _rows_fit(self) -> Self:
        pairs = self.rows == "preferences"
        only = ("pairs", "transcripts") if not pairs else ("sharegpt", "alpaca", "self-instruct",
                                                           "prompt-completion", "text")  # fmt: skip
        if self.format in only:
            raise ValueError(
                f"format {self.format} is none of {self.rows}; leave it out, or set rows: "
                f"{'conversations' if pairs else 'preferences'}"
            )
        known_columns(self.columns, PREFERENCE_FIELDS if pairs else CONVERSATION_FIELDS)
        return self


class SplitConfig(StageConfig):
    """A dataset cut by documents into training, validation and test data, each a pair of files."""

    kind: Literal["split"] = "split"
    data: DatasetName = Field(description="A dataset that has not been split.")
    split: str = Field(
        default="98,1,1",
        pattern=SPLIT,
        description="Shares of training, validation and test documents, as Megatron writes them.",
    )
    by: Literal["content", "shuffle"] = Field(
        default="content",
        description="content: a hash of a document's tokens decides, so that its copies fall on "
        "one side and it stays there when the corpus grows; shuffle: exact shares, drawn by the "
        "seed.",
    )

    def artifact_type(self) -> ArtifactType:
        """Always ``dataset``."""
        return "dataset"

    @model_validator(mode="after")
    def _holds_something_out(self) -> Self:
        if shares(self.split)[0] == 1:
            raise ValueError(f"split {self.split!r} holds nothing out; write it like 98,1,1")
        return self


class BlendConfig(StageConfig):
    """Several datasets as one, mixed by weight while training; no token is copied."""

    kind: Literal["blend"] = "blend"
    data: list[DatasetName] = Field(min_length=2, description="The datasets, all of one tokenizer.")
    weights: list[Annotated[float, Field(gt=0)]] | None = Field(
        default=None,
        description="Each dataset's share of the training samples, in any scale.",
    )
    by: Literal["tokens", "documents", "temperature"] | None = Field(
        default=None,
        description="Instead of weights: in proportion to the tokens (the default), to the "
        "documents, or to tokens ^ (1 / temperature).",
    )
    temperature: float | None = Field(
        default=None,
        ge=1,
        description="1 is in proportion to the tokens; the higher, the more alike the shares.",
    )

    def artifact_type(self) -> ArtifactType:
        """Always ``dataset``."""
        return "dataset"

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if self.weights is not None and self.by is not None:
            raise ValueError("weights and by exclude each other; set one of them")
        if self.weights is not None and len(self.weights) != len(self.data):
            raise ValueError(
                f"weights has {len(self.weights)} values for the {len(self.data)} datasets of data"
            )
        if not all(math.isfinite(weight) for weight in self.weights or ()):
            raise ValueError("weights must be finite numbers above 0")
        if (self.by == "temperature") != (self.temperature is not None):
            raise ValueError("by: temperature and temperature: NUMBER go together")
        if len(set(self.data)) != len(self.data):
            raise ValueError("data names a dataset twice; give it a larger weight instead")
        return self


STAGES = (
    StageKind(
        name="split",
        config=SplitConfig,
        run="toolkit.data.pack.split:run",
        summary="a dataset to training, validation and test data, by documents",
        extras=("data",),
    ),
    StageKind(
        name="pack",
        config=PackConfig,
        run="toolkit.data.pack.stage:run",
        summary="conversations or documents to full rows for pretrain, with a loss mask",
        spread="shards",
    ),
    StageKind(
        name="blend",
        config=BlendConfig,
        run="toolkit.data.pack.blend:run",
        summary="several datasets as one, mixed by weight",
        extras=("data",),
    ),
)
