"""Settings of the filters: names and defaults are those of datatrove 0.10. Light: no numpy."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from toolkit.stage import Reference, Settings

Files = list[Annotated[str, Reference(files=True)]]
NGrams = list[Annotated[tuple[int, float], Field(strict=False)]]


class FilterSettings(Settings):
    """What every filter has."""

    filter: str
    name: str | None = Field(
        default=None,
        min_length=1,
        description="What its reasons begin with; by default the filter's name.",
    )

    @property
    def label(self) -> str:
        """What its reasons begin with."""
        return self.name or self.filter


class GopherQualitySettings(FilterSettings):
    """Rules of Gopher (arXiv 2112.11446, A.1) on words, symbols, bullets and stop words."""

    filter: Literal["gopher-quality"] = "gopher-quality"
    min_doc_words: int | None = Field(
        default=50, ge=0, description="Fewest words, those of punctuation alone not counted."
    )
    max_doc_words: int | None = Field(default=100_000, ge=1, description="Most words.")
    min_avg_word_length: float | None = Field(
        default=3, ge=0, description="Least mean length of a word, in characters."
    )
    max_avg_word_length: float | None = Field(
        default=10, gt=0, description="Greatest mean length of a word, in characters."
    )
    max_symbol_word_ratio: float | None = Field(
        default=0.1, ge=0, description="Most # for a word, and most ellipses for a word."
    )
    max_bullet_lines_ratio: float | None = Field(
        default=0.9, ge=0, description="Largest part of the lines that begin with a bullet or -."
    )
    max_ellipsis_lines_ratio: float | None = Field(
        default=0.3, ge=0, description="Largest part of the lines that end with an ellipsis."
    )
    max_non_alpha_words_ratio: float | None = Field(
        default=0.8,
        ge=0,
        description="Least part of the words that have a letter (the name is datatrove's).",
    )
    min_stop_words: int | None = Field(
        default=2, ge=0, description="Fewest different stop words that must occur."
    )
    stop_words: list[str] = Field(
        default=["the", "be", "to", "of", "and", "that", "have", "with"],
        description="The stop words, as written in running text.",
    )


class GopherRepetitionSettings(FilterSettings):
    """Rules of Gopher (arXiv 2112.11446, table A1) on repeated lines, paragraphs and n-grams."""

    filter: Literal["gopher-repetition"] = "gopher-repetition"
    dup_line_frac: float | None = Field(
        default=0.3, ge=0, description="Largest part of the lines that are repeats."
    )
    dup_para_frac: float | None = Field(
        default=0.3, ge=0, description="Largest part of the paragraphs that are repeats."
    )
    dup_line_char_frac: float | None = Field(
        default=0.2, ge=0, description="Largest part of the characters in repeated lines."
    )
    dup_para_char_frac: float | None = Field(
        default=0.2, ge=0, description="Largest part of the characters in repeated paragraphs."
    )
    top_n_grams: NGrams = Field(
        default=[(2, 0.2), (3, 0.18), (4, 0.16)],
        description="[n, largest part of the characters in the most frequent n-gram] pairs.",
    )
    dup_n_grams: NGrams = Field(
        default=[(5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10)],
        description="[n, largest part of the characters in repeated n-grams] pairs.",
    )

    @model_validator(mode="after")
    def _n_grams_ascend(self) -> Self:
        for name, limits in (("top_n_grams", self.top_n_grams), ("dup_n_grams", self.dup_n_grams)):
            sizes = [n for n, _ in limits]
            if any(n < 1 for n in sizes) or sizes != sorted(set(sizes)):
                raise ValueError(
                    f"{name}: each n must be greater than the one before it, from 1 on"
                )
        return self


class C4QualitySettings(FilterSettings):
    """Rules of C4 (arXiv 1910.10683, 2.2): lines that are no prose go, and short documents go.

    It edits: what is kept are a document's good lines.
    """

    filter: Literal["c4-quality"] = "c4-quality"
    remove_citations: bool = Field(
        default=True, description="Take [1], [edit] and [citation needed] out of lines."
    )
    filter_no_terminal_punct: bool = Field(
        default=True, description="Drop lines that don't end with . ? ! or a quotation mark."
    )
    min_num_sentences: int = Field(
        default=5, ge=-1, description="Fewest sentences in the lines that stay; -1: any number."
    )
    min_words_per_line: int = Field(
        default=3, ge=-1, description="Drop lines of fewer words; -1: any number."
    )
    max_word_length: int = Field(
        default=1000, ge=-1, description="Drop lines with a longer word; -1: any length."
    )
    filter_lorem_ipsum: bool = Field(
        default=True, description="Drop documents that have 'lorem ipsum' in a good line."
    )
    filter_javascript: bool = Field(default=True, description="Drop lines with 'javascript'.")
    filter_curly_bracket: bool = Field(
        default=True, description="Drop documents with { in a good line."
    )
    filter_policy: bool = Field(
        default=True, description="Drop lines of cookie notices and terms of use."
    )


class FineWebQualitySettings(FilterSettings):
    """FineWeb's rules (arXiv 2406.17557, 3.6) on line ends, short lines and repeated lines."""

    filter: Literal["fineweb-quality"] = "fineweb-quality"
    line_punct_thr: float = Field(
        default=0.12, ge=0, le=1, description="Least part of the lines that end a sentence."
    )
    line_punct_exclude_zero: bool = Field(
        default=False, description="Keep documents without any such line."
    )
    stop_chars: list[str] | None = Field(
        default=None,
        min_length=1,
        description="What ends a sentence; by default Unicode's sentence terminals.",
    )
    short_line_thr: float = Field(
        default=0.67, ge=0, le=1, description="Largest part of the lines that are short."
    )
    short_line_length: int = Field(
        default=30, ge=0, description="Characters of the longest short line."
    )
    char_duplicates_ratio: float = Field(
        default=0.01, ge=0, le=1, description="Largest part of the characters in repeated lines."
    )
    new_line_ratio: float = Field(default=0.3, ge=0, description="Most line ends for a word.")


class LanguageSettings(FilterSettings):
    """Which language a document is in: by py3langid (model inside), or a fastText model file."""

    filter: Literal["language"] = "language"
    languages: list[str] | None = Field(
        default=None,
        min_length=1,
        description="Languages to keep, as ISO 639-1 codes or the model's labels; by default all.",
    )
    language_threshold: float = Field(
        default=0.65, ge=0, le=1, description="Least probability of the language."
    )
    label_only: bool = Field(
        default=False, description="Note the language of each document, and remove none."
    )
    model_path: Annotated[str, Reference(files=True)] | None = Field(
        default=None,
        description="A fastText model such as lid.176.bin; needs the package fasttext.",
    )
    max_characters: int | None = Field(
        default=4000,
        ge=100,
        description="Characters that are looked at, from the document's beginning; null: all.",
    )


class LengthSettings(FilterSettings):
    """How long a document may be."""

    filter: Literal["length"] = "length"
    min_characters: int | None = Field(default=None, ge=0, description="Fewest characters.")
    max_characters: int | None = Field(default=None, ge=1, description="Most characters.")
    min_words: int | None = Field(
        default=None, ge=0, description="Fewest words; a word is what stands between blanks."
    )
    max_words: int | None = Field(default=None, ge=1, description="Most words.")

    @model_validator(mode="after")
    def _bounds_make_sense(self) -> Self:
        pairs = {
            "characters": (self.min_characters, self.max_characters),
            "words": (self.min_words, self.max_words),
        }
        if all(low is None and high is None for low, high in pairs.values()):
            raise ValueError(
                "set at least one of min_characters, max_characters, min_words and max_words"
            )
        for unit, (low, high) in pairs.items():
            if low is not None and high is not None and low > high:
                raise ValueError(f"min_{unit} {low} is more than max_{unit} {high}")
        return self


class UrlSettings(FilterSettings):
    """Documents whose URL is on a list, or has words that are; lists may also be files."""

    filter: Literal["url"] = "url"
    url_key: str = Field(default="url", min_length=1, description="Key that holds the URL.")
    missing: Literal["error", "keep", "drop"] = Field(
        default="error", description="What becomes of a document without a URL."
    )
    extra_domains: list[str] = Field(
        default=[], description="Domains (example.com: with all below it) and hosts to drop."
    )
    extra_urls: list[str] = Field(default=[], description="URLs to drop, as written.")
    banned_words: list[str] = Field(
        default=[], description="Words of a URL, between its symbols, that drop a document."
    )
    banned_subwords: list[str] = Field(
        default=[], description="What drops a document anywhere in a URL's letters and digits."
    )
    soft_banned_words: list[str] = Field(
        default=[], description="Words of which soft_word_threshold together drop a document."
    )
    soft_word_threshold: int = Field(
        default=2, ge=1, description="Different soft_banned_words that drop a document."
    )
    domain_files: Files = Field(
        default=[], description="Files of domains, one a line; # begins a comment. May be .gz."
    )
    url_files: Files = Field(default=[], description="Files of URLs, one a line.")
    word_files: Files = Field(default=[], description="Files of banned words, one a line.")


class RegexSettings(FilterSettings):
    """Documents in which a regular expression is found, or is not."""

    filter: Literal["regex"] = "regex"
    regex_exp: str = Field(min_length=1, description="A Python regular expression, searched for.")
    action: Literal["drop", "keep"] = Field(
        default="drop", description="What becomes of documents in which it is found."
    )

    @model_validator(mode="after")
    def _compiles(self) -> Self:
        try:
            re.compile(self.regex_exp)
        except re.error as error:
            raise ValueError(f"regex_exp is no regular expression: {error}") from error
        return self


class FunctionSettings(FilterSettings):
    """A function of your own: ``def keep(text: str, metadata: dict) -> bool | str | None``.

    True or None keep the document, False drops it, and a text drops it with that reason. The
    module must be importable where the stage runs (PYTHONPATH); the function must depend on
    nothing but its arguments.
    """

    filter: Literal["function"] = "function"
    function: str = Field(pattern=r"^[\w.]+:[\w.]+$", description="The function, as module:name.")


FilterChoice = Annotated[
    GopherQualitySettings
    | GopherRepetitionSettings
    | C4QualitySettings
    | FineWebQualitySettings
    | LanguageSettings
    | LengthSettings
    | UrlSettings
    | RegexSettings
    | FunctionSettings,
    Field(discriminator="filter"),
]
