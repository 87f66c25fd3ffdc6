"""Settings of the stage ``clean``. Light: no numpy, no pyarrow."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from toolkit.artifacts import ArtifactType
from toolkit.data.clean.filter_settings import FilterChoice
from toolkit.data.clean.settings import NormalizeSettings, PiiSettings
from toolkit.data.config import SampleBy, Sources, TextKey
from toolkit.data.dedup.config import (
    DecontaminateSettings,
    ExactDedupSettings,
    NearDedupSettings,
    dedup_phases,
)
from toolkit.stage import StageConfig, StageKind

EVALUATIONS, FILTER, WRITE = "evaluations", "filter", "write"
"""The phases: evaluation data is indexed; documents are read, edited and judged one by one; of
duplicates one is kept."""


class CleanConfig(StageConfig):
    """Documents in, documents out: repaired, filtered, scrubbed, each removed one counted.

    A document passes normalisation, the filters in their order, and what scrubs personal data;
    then decontamination, exact and near deduplication, where they are set.
    """

    kind: Literal["clean"] = "clean"
    sources: Sources
    text_key: TextKey = "text"
    id_key: str = Field(
        default="id",
        min_length=1,
        description="Key of a document's id; where there is none, file:number is its id.",
    )
    sample_by: SampleBy = "document"
    on_error: Literal["error", "quarantine"] = Field(
        default="error",
        description="What a bad line or record does: stop the stage, or be written aside to "
        "quarantine.jsonl in the artifact and counted.",
    )
    normalize: NormalizeSettings | None = Field(
        default=NormalizeSettings(), description="Repairs of the text; null: none."
    )
    filters: list[FilterChoice] = Field(
        default=[], description="Filters, in the order in which documents pass them."
    )
    pii: PiiSettings | None = Field(
        default=None,
        description="Personal data to replace, also in removed/; not in quarantine.jsonl.",
    )
    decontaminate: DecontaminateSettings | None = Field(
        default=None, description="Remove documents that hold items of evaluation data."
    )
    exact_dedup: ExactDedupSettings | None = Field(
        default=None, description="Keep one of documents whose text is the same; {}: by default."
    )
    near_dedup: NearDedupSettings | None = Field(
        default=None, description="Keep one of documents that are nearly the same (MinHash)."
    )
    duplicate_ids: Literal["allow", "error"] = Field(
        default="allow",
        description="What two documents with one id do: be counted with a warning, or stop the "
        "stage.",
    )
    keep_removed: bool = Field(
        default=False, description="Write removed documents to removed/, with their reasons."
    )
    output_format: Literal["parquet", "jsonl.zst"] = Field(
        default="parquet", description="Format of the documents' files."
    )
    shard_bytes: int = Field(
        default=128 << 20,
        ge=1 << 10,
        description="Bytes on disk that one task reads, about; a task makes one file.",
    )

    @property
    def dedup_phases(self) -> tuple[str, ...]:
        """The phases of deduplication; none where it isn't set."""
        return dedup_phases(self.exact_dedup, self.near_dedup)

    def phases(self) -> tuple[str, ...]:
        """The filters; where duplicates go, the search for them and a last pass."""
        found = self.dedup_phases
        index = (EVALUATIONS,) if self.decontaminate else ()
        return (*index, FILTER, *found, *((WRITE,) if found else ()))

    def artifact_type(self) -> ArtifactType:
        """Always ``documents``."""
        return "documents"

    @model_validator(mode="after")
    def _labels_differ(self) -> Self:
        labels = [settings.label for settings in self.filters]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(
                f"two filters are called {twice[0]!r}: give them a name each, so that their "
                "reasons can be told apart"
            )
        return self


STAGES = (
    StageKind(
        name="clean",
        config=CleanConfig,
        run="toolkit.data.clean.run:run",
        summary="repair, filter, scrub and deduplicate documents, each removal counted by reason",
        spread="shards",
        extras=("data",),
    ),
)
