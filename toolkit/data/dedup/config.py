"""Settings of deduplication and decontamination. Light: no numpy."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from toolkit.data.dedup.lsh import choose_bands
from toolkit.stage import Reference, Settings

EXACT, BUCKETS, SHINGLES, VERIFY, CLUSTERS = (
    "exact",
    "near-buckets",
    "near-shingles",
    "near-verify",
    "near-clusters",
)
"""The phases, in their order; each is done by all ranks before the next one begins."""


class ExactDedupSettings(Settings):
    """Of documents with one normalised text, the first in the order of the sources stays.

    Normalised: Unicode NFC, and every run of white space one blank, none at the ends.
    """

    lowercase: bool = Field(
        default=False, description="Take texts that differ in nothing but case for equal."
    )


class NearDedupSettings(Settings):
    """Of documents that share most of their word n-grams, one of each cluster stays."""

    threshold: float = Field(
        default=0.8,
        gt=0.0,
        lt=1.0,
        description="Jaccard similarity of the sets of n-grams from which on two documents are "
        "near duplicates.",
    )
    ngram: int = Field(
        default=5,
        ge=1,
        le=100,
        description="Words, or characters, in a shingle; a shorter document is one shingle.",
    )
    unit: Literal["words", "characters"] = Field(
        default="words",
        description="What n-grams are made of: words (runs of letters, digits and marks, in lower "
        "case; an ideograph is a word of its own), or characters of the same words, "
        "joined by one blank.",
    )
    num_perm: int = Field(
        default=256,
        ge=16,
        le=4096,
        description="Values in a MinHash signature, of 2 bytes each.",
    )
    bands: int | None = Field(
        default=None, ge=1, description="Bands of a signature; by default chosen for the threshold."
    )
    rows: int | None = Field(
        default=None, ge=1, description="Values in a band; by default chosen for the threshold."
    )
    false_negative_weight: float = Field(
        default=0.98,
        gt=0.0,
        lt=1.0,
        description="What a missed pair weighs when bands and rows are chosen, against a pair "
        "that must be compared in vain with the rest to 1; 0.98 finds at least 95 % at the "
        "threshold itself.",
    )
    verify: Literal["exact", "signatures"] = Field(
        default="exact",
        description="exact: pairs whose signatures leave a doubt (3 standard errors about the "
        "threshold) are decided by their sets of n-grams; signatures: by the estimate alone.",
    )
    keep: Literal["first", "longest"] = Field(
        default="first",
        description="Which document of a cluster stays: the first in the order of the sources, or "
        "the longest (of equals the first).",
    )

    def banding(self) -> tuple[int, int]:
        """``(bands, rows)``, as set or as chosen: see ``choose_bands``."""
        if self.bands is not None and self.rows is not None:
            return self.bands, self.rows
        return choose_bands(self.threshold, self.num_perm, self.false_negative_weight)

    @model_validator(mode="after")
    def _banding_fits(self) -> Self:
        if (self.bands is None) != (self.rows is None):
            raise ValueError("bands and rows go together: set both, or neither")
        if self.bands and self.rows and self.bands * self.rows > self.num_perm:
            raise ValueError(
                f"bands x rows = {self.bands * self.rows} needs as many values, but num_perm is "
                f"{self.num_perm}"
            )
        return self


class DecontaminateSettings(Settings):
    """Documents that hold an n-gram of an evaluation's items are removed."""

    evaluations: list[Annotated[str, Reference.to_data()]] = Field(
        min_length=1,
        description="Files, folders and globs of evaluation data, and sample: names; a record is "
        "an item.",
    )
    keys: list[str] | None = Field(
        default=None,
        min_length=1,
        description="Keys whose texts, one after another, are an item; by default all keys that "
        "have a text.",
    )
    ngram: int = Field(
        default=13,
        ge=2,
        le=100,
        description="Words that a document and an item must share in a row; 13 is GPT-3's.",
    )
    min_words: int = Field(
        default=8,
        ge=1,
        description="Items with fewer words than ngram match as a whole; of fewer words than "
        "this, never (they are counted).",
    )
    min_matches: int = Field(
        default=1, ge=1, description="Different n-grams that a document must share to be removed."
    )
    ignore: list[Annotated[str, Reference.to_data()]] = Field(
        default=[],
        description="Files of text whose n-grams never count: licences, prompts, boilerplate.",
    )

    @model_validator(mode="after")
    def _short_items_are_shorter(self) -> Self:
        if self.min_words > self.ngram:
            raise ValueError(
                f"min_words {self.min_words} must be at most ngram, which is {self.ngram}"
            )
        return self


def dedup_phases(
    exact: ExactDedupSettings | None, near: NearDedupSettings | None
) -> tuple[str, ...]:
    """The phases that these settings need, in their order."""
    near_phases = (BUCKETS, SHINGLES, VERIFY, CLUSTERS) if near else ()
    return ((EXACT,) if exact else ()) + near_phases
