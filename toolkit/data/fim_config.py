"""Settings of fill-in-the-middle. Light: no numpy."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from toolkit.stage import Settings

FIM_TOKENS: tuple[tuple[str, str, str], ...] = (
    ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
    ("<fim_prefix>", "<fim_middle>", "<fim_suffix>"),
    ("<fim-prefix>", "<fim-middle>", "<fim-suffix>"),
    ("[PREFIX]", "[MIDDLE]", "[SUFFIX]"),
    ("\u2581<PRE>", "\u2581<MID>", "\u2581<SUF>"),
    ("<|fim\u2581begin|>", "<|fim\u2581end|>", "<|fim\u2581hole|>"),
)
"""The tokens for prefix, middle and suffix that known tokenizers have: cl100k and Qwen, StarCoder,
SantaCoder, tekken, Code Llama, DeepSeek-Coder."""

Rate = Annotated[float, Field(ge=0, le=1)]
TokenName = Annotated[str, Field(min_length=1)]


class FimSettings(Settings):
    """Fill-in-the-middle (Bavarian et al. 2022): which documents, in which order, which tokens."""

    fim_rate: Rate = Field(default=0.5, description="Share of the documents that are rearranged.")
    fim_spm_rate: Rate = Field(
        default=0.5,
        description="Share of those in the order suffix, prefix, middle; the others have prefix, "
        "suffix, middle.",
    )
    prefix_token: TokenName | None = Field(
        default=None,
        description="Token before the prefix; by default the three tokens are found by the names "
        "that known tokenizers give them.",
    )
    middle_token: TokenName | None = Field(default=None, description="Token before the middle.")
    suffix_token: TokenName | None = Field(default=None, description="Token before the suffix.")

    @model_validator(mode="after")
    def _all_tokens_or_none(self) -> Self:
        tokens = [self.prefix_token, self.middle_token, self.suffix_token]
        named = [token for token in tokens if token is not None]
        if len(named) not in (0, 3) or len(set(named)) != len(named):
            raise ValueError(
                "set prefix_token, middle_token and suffix_token, each to another token, or none"
            )
        return self
