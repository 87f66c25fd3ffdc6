"""Settings of the ``evaluate`` stage; no torch."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from toolkit.artifacts import ArtifactType
from toolkit.data.config import SampleBy, TextKey
from toolkit.stage import Operational, Reference, Settings, StageConfig, StageKind

Source = Annotated[str, Reference.to_data()]
Sources = Annotated[list[Source], Field(min_length=1)]


class PerplexityConfig(Settings):
    """Perplexity on texts: each document's tokens, every one scored exactly once.

    A document longer than the window is read in overlapping windows. Its first token is
    predicted from the token that begins (or separates) documents alone; none that ends it is
    scored, so the figure is one of the text.
    """

    sources: Sources = Field(
        description="Text files, folders, globs or sample: names; each gets rows of its own."
    )
    text_key: TextKey = "text"
    sample_by: SampleBy = "document"
    max_documents: int | None = Field(
        None, ge=1, description="Read at most this many documents of each source."
    )
    max_bytes: int | None = Field(
        None,
        ge=1,
        description="Read at most this many bytes (UTF-8) of each source; a limit in tokens would "
        "give models with different tokenizers different texts.",
    )


class AnswerLossConfig(Settings):
    """Mean loss per token of the assistant's turns; what comes before them is only context."""

    data: Sources = Field(
        description="Conversations: files, folders, globs or sample: names; each gets rows of its "
        "own."
    )
    format: str = Field(
        "auto",
        description="How the records are laid out (alpaca, messages, sharegpt, prompt-completion); "
        "auto recognises it.",
    )
    columns: dict[str, str] | None = Field(
        None, description="Which keys of the records hold the prompt, the answer, and so on."
    )
    max_examples: int | None = Field(
        None, ge=1, description="Read at most this many conversations of each source."
    )


class PreferencesConfig(Settings):
    """Share of pairs whose chosen answer the model finds likelier than the rejected one."""

    data: Sources = Field(
        description="Pairs: files, folders, globs or sample: names; each gets rows of its own."
    )
    format: str = Field("auto", description="How the records are laid out; auto recognises it.")
    columns: dict[str, str] | None = Field(
        None, description="Which keys of the records hold the prompt, chosen and rejected."
    )
    max_examples: int | None = Field(
        None, ge=1, description="Read at most this many pairs of each source."
    )


class HarnessConfig(Settings):
    """Tasks of lm-evaluation-harness: built-in ones by name, or local YAML without a network."""

    tasks: list[str] = Field(
        min_length=1, description="Names of tasks, groups or tags; of local ones their `task:`."
    )
    include_path: list[Annotated[str, Reference(files=True)]] = Field(
        default_factory=list,
        description="Folders of local task YAML files; data_files in them may be relative to them.",
    )
    num_fewshot: int | None = Field(
        None, ge=0, description="Examples shown before each question; by default the task's own."
    )
    limit: int | None = Field(
        None, ge=1, description="Use only the first so many questions of each task, for a trial."
    )
    chat: bool = Field(
        False, description="Whether questions are put through the model's chat template."
    )


class GenerationsConfig(Settings):
    """What each model writes after the same prompts."""

    prompts: list[str] = Field(min_length=1, description="The prompts, one text each.")
    max_new_tokens: int = Field(128, ge=1, description="Tokens to write at most.")
    temperature: float = Field(
        0.0, ge=0, description="0 takes the likeliest token each time; above it, sampling."
    )
    top_p: float = Field(
        1.0, gt=0, le=1, description="Sample from the likeliest tokens of this total probability."
    )
    seed: int | None = Field(
        None, ge=0, description="Seed of the sampling; by default the pipeline's."
    )
    chat: bool = Field(
        True,
        description="Whether a prompt is a user's turn in the model's chat template, where it has "
        "one, or plain text to go on from.",
    )


UNTRAINED = "untrained"
"""The column of the untrained baseline."""
MEASURES = ("perplexity", "answer_loss", "preferences", "lm_eval", "generations")


class EvaluateConfig(StageConfig):
    """Several models, the same measures, one table."""

    kind: Literal["evaluate"] = "evaluate"
    models: list[Annotated[str, Reference.to("model", "adapter")]] = Field(
        min_length=1,
        description="Models and adapters, in the order of the table's columns; each is also "
        "compared with the one before it.",
    )
    untrained_baseline: bool = Field(
        False,
        description="Also score a freshly initialised model of the first model's shape, to show "
        "what training brought; it writes no generations.",
    )
    perplexity: PerplexityConfig | None = Field(None, description="Perplexity on texts.")
    answer_loss: AnswerLossConfig | None = Field(
        None, description="Loss on the assistant's tokens of conversations."
    )
    preferences: PreferencesConfig | None = Field(
        None, description="Preference accuracy on pairs of answers."
    )
    lm_eval: HarnessConfig | None = Field(None, description="Tasks of lm-evaluation-harness.")
    generations: GenerationsConfig | None = Field(
        None, description="What the models write, side by side."
    )
    seq_length: int | None = Field(
        None,
        ge=2,
        description="Window in tokens; by default the smallest context of the models, at most "
        "4096. The same for all, as a longer context alone lowers the loss.",
    )
    stride: int | None = Field(
        None,
        ge=1,
        description="Tokens between windows of a long document, by default half of seq_length; "
        "smaller gives each token more context, and takes longer.",
    )
    batch_size: Annotated[int, Operational()] = Field(
        8, ge=1, description="Windows scored at once."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Precision of the weights; auto is bfloat16 on a GPU, else float32."
    )

    @model_validator(mode="after")
    def _something_to_do(self) -> Self:
        if not any(getattr(self, name) for name in MEASURES):
            raise ValueError(f"nothing to measure: set at least one of {', '.join(MEASURES)}")
        return self

    @model_validator(mode="after")
    def _models_once(self) -> Self:
        twice = [name for name, count in Counter(self.models).items() if count > 1]
        if twice:
            raise ValueError(f"models lists {', '.join(twice)} more than once")
        if self.untrained_baseline and UNTRAINED in self.models:
            raise ValueError(f"with untrained_baseline, no model may be called {UNTRAINED}")
        return self

    @model_validator(mode="after")
    def _stride_fits(self) -> Self:
        if self.stride and self.seq_length and self.stride > self.seq_length:
            raise ValueError(
                f"stride {self.stride} leaves tokens out between windows of seq_length "
                f"{self.seq_length}; it may be at most that"
            )
        return self

    def artifact_type(self) -> ArtifactType:
        """Always ``scores``."""
        return "scores"


STAGES = (
    StageKind(
        name="evaluate",
        config=EvaluateConfig,
        run="toolkit.evaluate.stage:run",
        summary="score models side by side: perplexity, answer loss, preferences, lm_eval, samples",
        gpus=True,
    ),
)
