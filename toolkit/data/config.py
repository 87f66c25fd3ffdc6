"""Settings of the data stages: ``train-tokenizer`` and ``tokenize``. Light: no numpy, no torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from toolkit.artifacts import ArtifactType
from toolkit.stage import Operational, Reference, StageConfig, StageKind

BYTES = 256
"""Tokens that a byte-level vocabulary starts from."""
EOD_TOKEN = "<|endoftext|>"
PAD_TOKEN = "<|pad|>"
CHAT_TOKENS: dict[str, tuple[str, ...]] = {
    "roles": ("<|system|>", "<|user|>", "<|assistant|>"),
    "chatml": ("<|im_start|>", "<|im_end|>"),
}
"""The special tokens of each chat template."""
END_OF_TURN = {"roles": EOD_TOKEN, "chatml": "<|im_end|>"}
"""What ends the assistant's turn: the tokenizer's ``eos_token``."""

Sources = Annotated[
    list[Annotated[str, Reference.to_data()]],
    Field(
        min_length=1,
        description="Files (.txt, .json, .jsonl, each also .gz or .zst, and .parquet), folders "
        "and globs of them, and sample: names.",
    ),
]
TextKey = Annotated[
    str,
    Field(min_length=1, description="Key, or parquet column, that holds a document's text."),
]
SampleBy = Annotated[
    Literal["document", "paragraph", "line"],
    Field(description="What one document is in a .txt file: all of it, a paragraph, or a line."),
]
"""The name and the words are those of Hugging Face datasets' text reader."""


class TrainTokenizerConfig(StageConfig):
    """A byte-level BPE tokenizer, trained on the sources, saved as Hugging Face saves one."""

    kind: Literal["train-tokenizer"] = "train-tokenizer"
    sources: Sources
    vocab_size: int = Field(
        ge=BYTES,
        le=1 << 20,
        description="Tokens in the vocabulary, the 256 bytes and the special tokens included.",
    )
    text_key: TextKey = "text"
    sample_by: SampleBy = "document"
    min_frequency: int = Field(
        default=2, ge=1, description="How often a pair must occur to become a token."
    )
    max_token_length: int | None = Field(
        default=64, ge=2, description="Longest token in bytes, so that no boilerplate becomes one."
    )
    max_bytes: int = Field(
        default=1_000_000_000,
        ge=1,
        description="Text to train on at most; of more, each file gives its beginning, in "
        "proportion to its size.",
    )
    chat_template: Literal["roles", "chatml"] = Field(
        default="roles",
        description="roles: <|user|>...<|assistant|>...<|endoftext|>, so that base and chat "
        "models stop on one token; chatml: <|im_start|>user ... <|im_end|>.",
    )
    additional_special_tokens: list[str] = Field(
        default=[], description="Further tokens that text never becomes, such as <|tool|>."
    )

    def special_tokens(self) -> list[str]:
        """All special tokens, in the order of their ids; the end of a document is 0."""
        return [
            EOD_TOKEN,
            PAD_TOKEN,
            *CHAT_TOKENS[self.chat_template],
            *self.additional_special_tokens,
        ]

    @model_validator(mode="after")
    def _special_tokens_differ(self) -> Self:
        tokens = self.special_tokens()
        twice = sorted({t for t in tokens if tokens.count(t) > 1})
        if twice:
            raise ValueError(
                f"additional_special_tokens repeats {', '.join(twice)}; "
                f"there already are {', '.join(dict.fromkeys(tokens))}"
            )
        if not all(token.strip() for token in tokens):
            raise ValueError("additional_special_tokens has a blank token")
        return self

    @model_validator(mode="after")
    def _room_for_bytes(self) -> Self:
        special = len(self.special_tokens())
        if self.vocab_size < BYTES + special:
            raise ValueError(
                f"vocab_size {self.vocab_size} is too small: {BYTES} bytes and {special} special "
                f"tokens need at least {BYTES + special}"
            )
        return self

    def artifact_type(self) -> ArtifactType:
        """Always ``tokenizer``."""
        return "tokenizer"


class TokenizeConfig(StageConfig):
    """Text to Megatron's indexed dataset: ``{text_key}_document.bin`` and ``.idx``."""

    kind: Literal["tokenize"] = "tokenize"
    sources: Sources
    tokenizer: Annotated[str, Reference.to("tokenizer", "model")] = Field(
        description="A train-tokenizer stage, or a Hugging Face tokenizer or model folder."
    )
    text_key: TextKey = "text"
    sample_by: SampleBy = "document"
    append_eod: bool = Field(
        default=True, description="End every document with the end-of-document token."
    )
    eod_token: str | None = Field(
        default=None,
        description="The end-of-document token; by default the one that train-tokenizer chose, "
        "or the eos_token of a tokenizer made elsewhere.",
    )
    on_error: Literal["error", "quarantine"] = Field(
        default="error",
        description="What a bad line or record does: stop the stage, or be written aside to "
        "quarantine.jsonl in the artifact and counted.",
    )
    backend: Annotated[Literal["auto", "gigatoken", "tokenizers"], Operational()] = Field(
        default="auto",
        description="auto: gigatoken where its tokens equal those of tokenizers on the first "
        "documents, else tokenizers; the tokens are the same in either case.",
    )

    def artifact_type(self) -> ArtifactType:
        """Always ``dataset``."""
        return "dataset"


STAGES = (
    StageKind(
        name="train-tokenizer",
        config=TrainTokenizerConfig,
        run="toolkit.data.tokenizer:run",
        summary="train a byte-level BPE tokenizer with special tokens and a chat template",
        extras=("data",),
    ),
    StageKind(
        name="tokenize",
        config=TokenizeConfig,
        run="toolkit.data.tokenize:run",
        summary="text to Megatron's indexed .bin/.idx, strict or with a quarantine",
        extras=("data",),
    ),
)
