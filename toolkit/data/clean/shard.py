"""The tasks of ``clean``: a shard's documents through the pipeline, then without duplicates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.artifacts import link_or_copy
from toolkit.data.clean.batch import LANGUAGE
from toolkit.data.clean.config import CleanConfig
from toolkit.data.clean.filter_settings import FilterSettings
from toolkit.data.clean.pipeline import Pipeline
from toolkit.data.clean.reading import MetadataReader
from toolkit.data.clean.settings import NormalizeSettings, PiiSettings
from toolkit.data.clean.store import REMOVED, OutputFormat, open_writer, read_stored
from toolkit.data.config import SampleBy
from toolkit.data.dedup.config import ExactDedupSettings, NearDedupSettings
from toolkit.data.dedup.decontaminate import load_index
from toolkit.data.dedup.hashes import DocumentHashes
from toolkit.data.dedup.phases import Removals
from toolkit.data.quarantine import Quarantine, stop_at
from toolkit.data.shards import Part
from toolkit.data.tasks import TaskOutput

BATCH_CHARACTERS, BATCH_DOCUMENTS = 2 << 20, 2048
QUARANTINE = "quarantine.jsonl"
IDS = "ids.bin"
"""Sorted u64 hashes of the ids that records have."""


@dataclass(frozen=True)
class Recipe:
    """The settings that say what becomes of a document, without those of how the work is done."""

    text_key: str
    id_key: str
    sample_by: SampleBy
    quarantine: bool
    normalize: NormalizeSettings | None
    filters: tuple[FilterSettings, ...]
    pii: PiiSettings | None
    exact: ExactDedupSettings | None
    near: NearDedupSettings | None
    evaluations: str | None
    """The folder of the evaluations' index."""
    keep_removed: bool
    form: OutputFormat
    seed: int

    @classmethod
    def of(cls, config: CleanConfig, seed: int, evaluations: Path | None) -> Recipe:
        """The recipe of a configuration."""
        return cls(
            text_key=config.text_key,
            id_key=config.id_key,
            sample_by=config.sample_by,
            quarantine=config.on_error == "quarantine",
            normalize=config.normalize,
            filters=tuple(config.filters),
            pii=config.pii,
            exact=config.exact_dedup,
            near=config.near_dedup,
            evaluations=str(evaluations) if evaluations else None,
            keep_removed=config.keep_removed,
            form=config.output_format,
            seed=seed,
        )

    @property
    def documents(self) -> str:
        """The file of a task that has its documents."""
        return f"documents.{self.form}"

    @property
    def removed(self) -> str:
        """The file of a task that has what it removed."""
        return f"removed.{self.form}"

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of documents beside text, id and metadata."""
        return LANGUAGE if any(one.filter == "language" for one in self.filters) else ()


@dataclass(frozen=True)
class CleanWork:
    """What a task of the first phase is given."""

    recipe: Recipe
    parts: tuple[Part, ...]


def clean_shard(work: CleanWork, output: TaskOutput) -> dict[str, Any]:
    """Read, repair, filter and scrub a shard's documents, and write those that stay.

    Raises:
        DataError: a record that is none, unless bad ones are quarantined; see ``RecordReader``.
        ToolkitError: see ``Pipeline``.
    """
    recipe = work.recipe
    evaluations = load_index(Path(recipe.evaluations)) if recipe.evaluations else None
    pipeline = Pipeline(
        recipe.normalize,
        recipe.filters,
        recipe.pii,
        evaluations,
        recipe.seed,
        keep_removed=recipe.keep_removed,
    )
    tally: Counter[str] = Counter()
    languages: Counter[str] = Counter()
    with Quarantine(output.path(QUARANTINE)) as quarantine:
        reader = MetadataReader(
            work.parts,
            recipe.text_key,
            recipe.id_key,
            quarantine if recipe.quarantine else stop_at,
            recipe.sample_by,
        )
        _clean(reader, pipeline, recipe, output, tally, languages)
    np.sort(np.array(reader.ids, np.uint64)).tofile(output.path(IDS))
    drops = sum(pipeline.drops.values())
    assert reader.read == tally["written"] + drops + reader.empty + reader.bad
    return {
        **{name: tally[name] for name in ("written", "characters_read", "characters_written")},
        "read": reader.read,
        "empty": reader.empty,
        "quarantined": reader.bad,
        "drops": dict(pipeline.drops),
        "changed": dict(pipeline.changed),
        "pii": dict(pipeline.pii),
        "languages": dict(languages),
        "contaminated_items": sorted(pipeline.items),
    }


def _clean(
    reader: MetadataReader,
    pipeline: Pipeline,
    recipe: Recipe,
    output: TaskOutput,
    tally: Counter[str],
    languages: Counter[str],
) -> None:
    extra = recipe.columns
    with (
        open_writer(output.path(recipe.documents), recipe.form, extra) as writer,
        open_writer(output.path(recipe.removed), recipe.form, (*extra, *REMOVED)) as aside,
        DocumentHashes(output.folder, recipe.exact, recipe.near) as hashes,
    ):
        for texts, metadata in _batches(reader):
            tally["characters_read"] += sum(map(len, texts))
            kept, removed = pipeline(texts, metadata)
            hashes.add(kept.texts)
            for document in kept.stored():
                writer.write(document)
                languages[document.metadata.get("language", "")] += bool(extra)
            for document in removed if recipe.keep_removed else ():
                aside.write(document)
            tally["written"] += len(kept)
            tally["characters_written"] += sum(map(len, kept.texts))
            output.progress(reader.bytes_read, documents=tally["written"])
    languages.pop("", None)
    if not recipe.keep_removed:
        output.path(recipe.removed).unlink()


def _batches(reader: MetadataReader) -> Iterator[tuple[list[str], list[dict[str, Any]]]]:
    texts: list[str] = []
    metadata: list[dict[str, Any]] = []
    size = 0
    for text, beside in reader:
        texts.append(text)
        metadata.append(beside)
        size += len(text)
        if size >= BATCH_CHARACTERS or len(texts) >= BATCH_DOCUMENTS:
            yield texts, metadata
            texts, metadata, size = [], [], 0
    if texts:
        yield texts, metadata


@dataclass(frozen=True)
class WriteWork:
    """What a task of the last phase is given."""

    recipe: Recipe
    folder: str
    """Of the first phase's task."""
    shard: int
    removals: Removals


def write_unique(work: WriteWork, output: TaskOutput) -> dict[str, Any]:
    """Write a shard's documents without those that are duplicates of others."""
    recipe, source = work.recipe, Path(work.folder, work.recipe.documents)
    removals = {one.index: one for one in work.removals.of(work.shard)}
    drops: Counter[str] = Counter(one.reason for one in removals.values())
    if not removals:
        link_or_copy(source, output.path(recipe.documents))
        return {"drops": {}, "characters": 0, "languages": {}}
    characters, languages = 0, Counter[str]()
    extra = recipe.columns
    with (
        open_writer(output.path(recipe.documents), recipe.form, extra) as writer,
        open_writer(output.path(recipe.removed), recipe.form, (*extra, *REMOVED)) as aside,
    ):
        for index, document in enumerate(read_stored(source)):
            removal = removals.get(index)
            if removal is None:
                writer.write(document)
                continue
            characters += len(document.text)
            if "language" in document.metadata and extra:
                languages[document.metadata["language"]] += 1
            document.reason = removal.reason
            document.detail = f"shard {removal.kept_shard:05d}, document {removal.kept_index}"
            aside.write(document)
    if not recipe.keep_removed:
        output.path(recipe.removed).unlink()
    return {"drops": dict(drops), "characters": characters, "languages": dict(languages)}
