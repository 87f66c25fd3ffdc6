"""Settings of normalisation and of what becomes of personal data. Light: no numpy."""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from toolkit.stage import Reference, Settings

SAFE_HARBOR_LIMITS = (
    "rules find no names in free text (only behind a title or a label, or as a signature), no "
    "places but street addresses, ZIP codes and labelled ones, and no identifier of an unknown "
    "form: have a sample reviewed before the documents are called de-identified"
)
"""What the preset cannot do; said in the log and in the artifact too."""


class NormalizeSettings(Settings):
    """Repairs of text, each by itself."""

    fix_encoding: bool = Field(
        default=True, description="Repair text that was decoded wrongly (cafÃ©), as ftfy does."
    )
    unescape_html: bool | Literal["auto"] = Field(
        default="auto",
        description="Turn entities (&eacute;) into characters; auto: up to the first line with <.",
    )
    fix_line_breaks: bool = Field(
        default=True, description="Make every kind of line end a line feed."
    )
    remove_control_chars: bool = Field(
        default=True,
        description="Remove control characters but tab and line feed, terminals' colour codes, and "
        "byte order marks.",
    )
    unicode: Literal["NFC", "NFD", "NFKC", "NFKD"] | None = Field(
        default="NFC", description="Unicode's normal form; null: as it is."
    )


Kind = Literal[
    "email",
    "phone",
    "ip",
    "credit-card",
    "iban",
    "us-ssn",
    "nl-bsn",
    "uk-nino",
    "fr-nir",
    "de-steuer-id",
    "es-dni",
    "it-codice-fiscale",
]


class PiiSettings(Settings):
    """Personal data that has a form: found by pattern and checksum, replaced, counted by kind.

    ``preset: hipaa-safe-harbor`` is for clinical notes: the 18 identifiers of 45 CFR 164.514(b)(2)
    as far as rules go. Rules find no names in free text (only behind a title or a label, or as a
    signature), no places but street addresses, ZIP codes and labelled ones, and no identifier of an
    unknown form: have a sample reviewed before the documents are called de-identified.
    """

    kinds: list[Kind] = Field(
        default=["email", "phone", "ip", "credit-card", "iban"],
        description="What to look for; national ids by country.",
    )
    preset: Literal["hipaa-safe-harbor"] | None = Field(
        default=None,
        description="hipaa-safe-harbor: the 18 identifiers of clinical notes as far as rules go, "
        "beside kinds; names in free text are beyond rules, so have a sample reviewed.",
    )
    replace_with: Literal["tag", "surrogate"] = Field(
        default="tag",
        description="tag: <EMAIL>; surrogate: a plausible one that belongs to nobody, the same "
        "for the same within a run.",
    )
    ip_public_only: bool = Field(
        default=True, description="Leave private, local and reserved IP addresses alone."
    )
    metadata: Literal["scrub", "keep", "drop"] = Field(
        default="scrub",
        description="What becomes of the record's other keys: their texts are scrubbed too, they "
        "stay as they are, or they are left out; ids stay.",
    )
    surrogate_key_file: Annotated[str, Reference(files=True)] | None = Field(
        default=None,
        description="File that holds the secret of the surrogates, of 8 bytes or more; by default "
        "it is made from the stage's seed, so that who has the seed can test guesses.",
    )

    @model_validator(mode="after")
    def _key_is_used(self) -> Self:
        if self.surrogate_key_file is not None and self.replace_with != "surrogate":
            raise ValueError("surrogate_key_file goes with replace_with: surrogate")
        return self

    @model_validator(mode="after")
    def _kinds_differ(self) -> Self:
        twice = sorted({kind for kind in self.kinds if self.kinds.count(kind) > 1})
        if twice or not (self.kinds or self.preset):
            what = f"has {twice[0]!r} twice" if twice else "is empty, and there is no preset"
            raise ValueError(f"kinds {what}; known are {', '.join(get_args(Kind))}")
        return self
