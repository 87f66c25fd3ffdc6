"""Settings of the data stages: ``train-tokenizer`` and ``tokenize``. Light: no numpy, no torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from toolkit.artifacts import ArtifactType
from toolkit.data.fim_config import FimSettings
from toolkit.data.keys import file_name
from toolkit.stage import Operational, Reference, Settings, StageConfig, StageKind

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
    list[Annotated[str, Reference.to_data("documents")]],
    Field(
        min_length=1,
        description="Files (.txt, .json, .jsonl, .html, .warc, each also .gz, .zst, .bz2 or .xz, "
        ".parquet, .arrow), folders and globs of them, URLs, hf: and sample: names, clean stages.",
    ),
]


class WeightedSource(Settings):
    """Sources with their share of a blend."""

    source: Annotated[str, Reference.to_data("documents")] = Field(
        description="A file, folder, glob, sample: name, hf: name or URL, or a clean stage."
    )
    weight: float = Field(gt=0, description="Its share of the samples; the sum need not be 1.")
    name: str | None = Field(
        default=None, description="Names its part of the dataset; by default the source's name."
    )


WeightedSources = Annotated[
    list[WeightedSource],
    Field(min_length=1, description="Sources with weights: a blend, as --data-path has it."),
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
    sources: Sources | WeightedSources
    tokenizer: Annotated[str, Reference.to("tokenizer", "model")] = Field(
        description="A train-tokenizer stage, or a Hugging Face tokenizer or model folder."
    )
    text_key: TextKey | list[TextKey] = Field(
        default="text",
        description="Key, or parquet column, that holds a document's text, dotted where nested; a "
        "list makes a dataset of each.",
    )
    sample_by: SampleBy = "document"
    level: Literal["document", "sentence"] = Field(
        default="document",
        description="sentence: a document's sentences are its sequences, as BERT's data has them.",
    )
    append_eod: bool = Field(
        default=True, description="End every document with the end-of-document token."
    )
    eod_token: str | None = Field(
        default=None,
        description="The end-of-document token; by default the one that train-tokenizer chose, "
        "or the eos_token of a tokenizer made elsewhere.",
    )
    parse_special_tokens: bool = Field(
        default=False,
        description="Take special tokens that stand written out in a text for what they name, "
        "rather than for text.",
    )
    fim: FimSettings | None = Field(
        default=None, description="Fill-in-the-middle: which documents are cut and rearranged."
    )
    on_error: Literal["error", "quarantine"] = Field(
        default="error",
        description="What a bad line or record does: stop the stage, or be written aside to "
        "quarantine.jsonl in the artifact and counted.",
    )
    shard_bytes: int = Field(
        default=64 << 20,
        ge=1,
        description="Bytes of the sources that one task reads: the unit of resuming and spreading.",
    )
    output: Literal["merged", "shards"] = Field(
        default="merged",
        description="One .bin/.idx pair, or a pair for each shard, which pretrain blends, as "
        "Megatron-LM does with --data-args-path data_path.txt.",
    )
    backend: Annotated[
        Literal["auto", "gigatoken", "tokenizers", "sentencepiece", "tiktoken"], Operational()
    ] = Field(
        default="auto",
        description="auto: gigatoken where its tokens equal those of the tokenizer's own library "
        "on the first documents, else that library; the tokens are the same in either case.",
    )

    @property
    def text_keys(self) -> tuple[str, ...]:
        """The text keys, one or several."""
        return (self.text_key,) if isinstance(self.text_key, str) else tuple(self.text_key)

    def weighted(self) -> list[WeightedSource]:
        """The sources that have weights: all of them, or none."""
        return [source for source in self.sources if isinstance(source, WeightedSource)]

    def references(self) -> tuple[str, ...]:
        """What every source names, weighted or not."""
        return tuple(s if isinstance(s, str) else s.source for s in self.sources)

    def phases(self) -> tuple[str, ...]:
        """The shards; then they are merged."""
        return ("shards",)

    @model_validator(mode="after")
    def _keys_differ(self) -> Self:
        if not self.text_keys or len(set(self.text_keys)) < len(self.text_keys):
            raise ValueError("text_key must name one key, or several that differ")
        named: dict[str, str] = {}
        for key in self.text_keys:
            if (other := named.setdefault(file_name(key), key)) != key:
                raise ValueError(
                    f"text_key: {other!r} and {key!r} would both be written to "
                    f"{file_name(key)}_{self.level}.bin; tokenize them in two stages"
                )
        return self

    @model_validator(mode="after")
    def _fim_needs_whole_documents(self) -> Self:
        if self.fim and (self.level == "sentence" or self.parse_special_tokens):
            raise ValueError(
                "fim rearranges whole documents of plain text: it goes with level: document and "
                "parse_special_tokens: false"
            )
        return self

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [source.name for source in self.weighted() if source.name]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"sources has the name {twice[0]!r} twice")
        return self

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
        spread="shards",
        extras=("data",),
    ),
)
