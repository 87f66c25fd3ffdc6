"""What a ``tokenize`` stage is to do: its sources cut into tasks, its encoder chosen.

Every rank makes the same plan by itself, and the first one's view of the sources is kept: no rank
tells another anything.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.context import StageContext
from toolkit.data.backends import PROBE_DOCUMENTS, choose_backend
from toolkit.data.config import TokenizeConfig
from toolkit.data.documents import DocumentReader
from toolkit.data.files import Source
from toolkit.data.fim import Fim
from toolkit.data.inputs import expand_each_input
from toolkit.data.keys import file_name
from toolkit.data.planning import remember_sources
from toolkit.data.shards import Part, plan_shards
from toolkit.data.tasks import Task
from toolkit.data.tokenize_shard import Recipe, ShardWork, batches
from toolkit.data.tokenizer_folder import TokenizerFolder, open_tokenizer
from toolkit.errors import ToolkitError


@dataclass(frozen=True)
class Group:
    """Sources that become one dataset, or one of each key."""

    name: str
    """In front of the prefixes; empty where there is one group."""
    weight: float | None
    references: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What is to be done: the same on every rank."""

    recipe: Recipe
    tasks: list[Task]
    groups: list[Group]
    owners: dict[str, tuple[str, str]]
    """The group's name and the reference, as the settings have it, of each task's key."""
    reason: str
    """Why the recipe's backend was chosen."""


@dataclass(frozen=True)
class Cut:
    """The part of the sources that one task reads."""

    group: Group
    reference: str
    """As the settings have it."""
    parts: tuple[Part, ...]
    offsets: tuple[int, ...]
    """Where each part's bytes begin in its file."""
    size: int


def cut_sources(config: TokenizeConfig, context: StageContext) -> list[Cut]:
    """Cut the sources into shards, each of one source of the settings."""
    named = [(group, r) for group in make_groups(config) for r in group.references]
    each = expand_each_input([reference for _, reference in named], context)
    return [
        Cut(group, reference, *shard)
        for (group, reference), sources in zip(named, each, strict=True)
        for shard in _shards(sources, config)
    ]


def make_plan(config: TokenizeConfig, context: StageContext, cuts: Sequence[Cut]) -> Plan:
    """Choose the encoder by the first documents, and say what is to be done."""
    tokenizer = open_tokenizer(context.path(config.tokenizer))
    eod_id = end_of_document(config, context, tokenizer)
    backend, reason = choose_backend(
        tokenizer,
        _first_texts(config, cuts[0].parts),
        config.backend,
        parse_special_tokens=config.parse_special_tokens,
    )
    recipe = Recipe(
        keys=config.text_keys,
        sample_by=config.sample_by,
        sentences=config.level == "sentence",
        quarantine=config.on_error == "quarantine",
        eod_id=eod_id,
        parse_special_tokens=config.parse_special_tokens,
        fim=Fim.of(config.fim, tokenizer, context.seed) if config.fim else None,
        vocab_size=tokenizer.vocab_size,
        tokenizer_sha256=tokenizer.sha256,
        tokenizer=str(context.path(config.tokenizer)),
        backend=backend,
    )
    remember_sources([part.source for cut in cuts for part in cut.parts], context)
    works = [ShardWork(recipe, cut.parts, cut.offsets) for cut in cuts]
    tasks = [
        Task(f"{n:05d}", work, c.size) for n, (work, c) in enumerate(zip(works, cuts, strict=True))
    ]
    owners = {t.key: (c.group.name, c.reference) for t, c in zip(tasks, cuts, strict=True)}
    return Plan(recipe, tasks, make_groups(config), owners, reason)


def make_groups(config: TokenizeConfig) -> list[Group]:
    """The datasets that the sources become: one, or where they have weights, one of each."""
    weighted = config.weighted()
    if not weighted:
        return [Group("", None, config.references())]
    total = sum(source.weight for source in weighted)
    names = [file_name(source.name or Path(source.source).name) for source in weighted]
    return [
        Group(f"{number:02d}_{name}_", source.weight / total, (source.source,))
        for number, (name, source) in enumerate(zip(names, weighted, strict=True))
    ]


def _shards(
    sources: Sequence[Source], config: TokenizeConfig
) -> list[tuple[tuple[Part, ...], tuple[int, ...], int]]:
    """Shards as parts, the offsets of their bytes, and their sizes."""
    found, ends = [], dict.fromkeys((source.name for source in sources), 0)
    for shard in plan_shards(sources, config.shard_bytes, sample_by=config.sample_by):
        offsets = []
        for part in shard.parts:
            offsets.append(ends[part.source.name])
            ends[part.source.name] += part.size
        found.append((shard.parts, tuple(offsets), shard.size))
    return found


def _first_texts(config: TokenizeConfig, parts: Sequence[Part]) -> list[str]:
    """The first documents, for the probe; bad records are the shards' to report."""
    reader = DocumentReader(parts, config.text_keys, lambda bad: None, config.sample_by)
    first = next(batches(itertools.islice(reader, PROBE_DOCUMENTS)), [])
    return [document.text for document in first]


def end_of_document(
    config: TokenizeConfig, context: StageContext, tokenizer: TokenizerFolder
) -> int | None:
    """The id of the token that ends a document; None where none is to be appended.

    Raises:
        ToolkitError: none is known, or the vocabulary hasn't the one that is named.
    """
    if not config.append_eod:
        return None
    if config.eod_token is not None:
        return tokenizer.id_of(config.eod_token, "eod_token")
    known = context.artifact(config.tokenizer).info.get("eod_token") or tokenizer.eos_token()
    if known is None:
        raise ToolkitError(
            "the tokenizer has no eos_token to end documents with",
            where=str(context.path(config.tokenizer)),
            hint="name one of its tokens as eod_token, or set append_eod: false",
        )
    return tokenizer.id_of(known, "eos_token")
