"""The ``tokenize`` stage: documents to Megatron's indexed dataset, none lost without a word.

The sources are cut into shards, which any number of ranks and processes tokenize (see
``tokenize_shard.py`` and ``tasks.py``); a last step merges them. The result is the same, byte for
byte, whatever that number is, and however often work was killed.
"""

from __future__ import annotations

import itertools
import json
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.artifacts import Artifact, write_json
from toolkit.context import StageContext
from toolkit.data.backends import choose_backend
from toolkit.data.config import TokenizeConfig
from toolkit.data.dataset_info import describe
from toolkit.data.documents import DocumentReader
from toolkit.data.files import Source
from toolkit.data.fim import Fim
from toolkit.data.inputs import expand_inputs
from toolkit.data.merge import merge_indexed
from toolkit.data.shards import Part, plan_shards
from toolkit.data.tasks import Task, TaskResult, checksum, results, run_tasks, worker_count
from toolkit.data.tokenize_shard import QUARANTINE, Recipe, ShardWork, batches, file_name
from toolkit.data.tokenizer_folder import TokenizerFolder, open_tokenizer, take_tokenizer
from toolkit.errors import DataError, ToolkitError
from toolkit.stage import FINISH

logger = logging.getLogger(__name__)
SHARDS = "shards"
PLAN = "plan.json"


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


def run(config: TokenizeConfig, context: StageContext) -> Artifact | None:
    """Tokenize the sources and publish a ``dataset`` artifact.

    Raises:
        DataError: see ``DocumentReader``; also where no document has a text, or where a source
            changed since the work was planned.
        ToolkitError: the tokenizer has no end-of-document token, or the backend can't be used.
    """
    started = time.monotonic()
    plan = make_plan(config, context)
    if context.runs(SHARDS):
        workers = worker_count(config.resources, context)
        function = "toolkit.data.tokenize_shard:tokenize_shard"
        run_tasks(SHARDS, function, plan.tasks, context, workers=workers)
    if not context.runs(FINISH):
        return None
    return _finish(config, context, plan, started)


def make_plan(config: TokenizeConfig, context: StageContext) -> Plan:
    """Cut the sources into tasks, and choose the encoder by the first documents."""
    tokenizer = open_tokenizer(context.path(config.tokenizer))
    eod_id = end_of_document(config, context, tokenizer)
    groups = make_groups(config)
    every = [reference for group in groups for reference in group.references]
    _remember(context, expand_inputs(every, context))
    first = _first_texts(config, context, every)
    backend, reason = choose_backend(
        tokenizer, first, config.backend, parse_special_tokens=config.parse_special_tokens
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
    plan = Plan(recipe, [], groups, {}, reason)
    for group, reference in ((g, r) for g in groups for r in g.references):
        for parts, offsets, size in _cut(expand_inputs([reference], context), config):
            key = f"{len(plan.tasks):05d}"
            plan.tasks.append(Task(key, ShardWork(recipe, parts, offsets), size))
            plan.owners[key] = (group.name, reference)
    return plan


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


def _cut(
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


def _remember(context: StageContext, sources: Sequence[Source]) -> None:
    """Keep what the sources were when the work began, and refuse others later.

    Ranks may start hours apart: a file that came, went or changed in between would shift the
    documents of every shard behind it.
    """
    path = context.work / PLAN
    now = {s.name: [s.size, s.mtime_ns, s.etag] for s in sources}
    if not path.exists():
        write_json(path, now)
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    if before == now:
        return
    what, name = _first_difference(before, now)
    raise DataError(
        f"the sources changed since this stage began: {what}",
        where=name,
        hint="--fresh begins the stage anew with the sources as they are now",
    )


def _first_difference(before: dict[str, Any], now: dict[str, Any]) -> tuple[str, str]:
    """What changed between two lists of sources, and the first name that did."""
    for name in sorted(now.keys() | before.keys()):
        if name not in before:
            return "a file that was not there", name
        if name not in now:
            return "a file is gone", name
        if before[name] != now[name]:
            return f"{before[name][0]:,} bytes before, {now[name][0]:,} now, or written again", name
    return "their order", next(iter(now))


def _first_texts(
    config: TokenizeConfig, context: StageContext, references: Sequence[str]
) -> list[str]:
    """The first batch of documents, for the probe; bad records are the shards' to report."""
    reader = DocumentReader(
        expand_inputs(references[:1], context), config.text_keys, lambda bad: None, config.sample_by
    )
    documents = itertools.islice(reader, 128)
    return [
        document.text for batch in itertools.islice(batches(documents), 1) for document in batch
    ]


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


def _finish(config: TokenizeConfig, context: StageContext, plan: Plan, started: float) -> Artifact:
    """Put the shards together and publish them."""
    done = results(SHARDS, plan.tasks, context)
    _refuse_nothing(done, config)
    built = context.building()
    try:
        tokenizer = take_tokenizer(context.path(config.tokenizer), built / "tokenizer")
        _verify(done, context)
        prefixes = _assemble(config, plan, done, built)
        bad = _join_quarantines(done, built / QUARANTINE)
        info = describe(config, plan, done, prefixes, built, tokenizer)
        artifact = context.publish(built, "dataset", info=info)
    except BaseException:
        shutil.rmtree(built, ignore_errors=True)
        raise
    shutil.rmtree(context.work / SHARDS, ignore_errors=True)
    if bad:
        logger.warning("%d records are set aside in %s", bad, QUARANTINE)
    counts, seconds = info["counts"], time.monotonic() - started
    total = sum(task.size for task in plan.tasks) / 1e6
    shown = {"documents": counts["written"], "tokens": counts["tokens"]}
    context.progress(total, total, unit="MB", **shown)
    logger.info(
        "%s documents, %s tokens of %.1f MB of text in %.1f s (%.1f MB/s) by %s (%s)",
        *(f"{counts['written']:,}", f"{counts['tokens']:,}", counts["text_bytes"] / 1e6, seconds),
        *(counts["text_bytes"] / 1e6 / seconds, plan.recipe.backend, plan.reason),
    )
    return artifact


def _verify(done: Sequence[TaskResult], context: StageContext) -> None:
    """Compare every shard with its checksum: hours may lie between its writing and this."""
    total = sum(path.stat().st_size for result in done for path in result.files.values()) / 1e6
    seen = 0.0
    for result in done:
        for name, recorded in result.checksums.items():
            path = result.path(name)
            if checksum(path) != recorded:
                raise DataError(
                    "the shard's checksum differs from the one recorded when it was written",
                    where=str(path),
                    hint=f"remove {result.folder} and run the same command again",
                )
            seen += path.stat().st_size / 1e6
            context.progress(seen, total, unit="MB verified")


def _assemble(
    config: TokenizeConfig, plan: Plan, done: Sequence[TaskResult], built: Path
) -> dict[str, list[str]]:
    """Merge or link the shards; gives the prefixes of each group, of all keys."""
    found: dict[str, list[str]] = {}
    for group in [group.name for group in plan.groups]:
        shards = [result for result in done if plan.owners[result.key][0] == group]
        for key in config.text_keys:
            inner = plan.recipe.prefix(key)
            parts = [shard.path(inner) for shard in shards]
            if config.output == "shards":
                names = [f"{group}{inner}_{shard.key}" for shard in shards]
                for part, name in zip(parts, names, strict=True):
                    _take(part, built / name)
            else:
                names = [f"{group}{inner}"]
                if len(parts) == 1:
                    _take(parts[0], built / names[0])
                else:
                    merge_indexed(parts, built / names[0])
            found.setdefault(group, []).extend(names)
    return found


def _take(source: Path, target: Path) -> None:
    """Give a shard's pair of files another name: a hard link, since all lies in one folder."""
    for suffix in (".bin", ".idx"):
        target.with_name(target.name + suffix).hardlink_to(source.with_name(source.name + suffix))


def _join_quarantines(done: Sequence[TaskResult], target: Path) -> int:
    """Put the quarantined records of all shards into one file, if there are any."""
    parts = [result.path(QUARANTINE) for result in done if QUARANTINE in result.checksums]
    if parts:
        with target.open("wb") as stream:
            for part in parts:
                stream.write(part.read_bytes())
    return sum(int(result.info["quarantined"]) for result in done)


def _refuse_nothing(done: Sequence[TaskResult], config: TokenizeConfig) -> None:
    if any(counts["written"] for result in done for counts in result.info["keys"].values()):
        return
    read = sum(int(result.info["read"]) for result in done)
    bad = sum(int(result.info["quarantined"]) for result in done)
    keys = " or ".join(map(repr, config.text_keys))
    raise DataError(
        f"no document has a text: of {read} records {read - bad} are empty and {bad} are bad",
        where=", ".join(config.references()),
        hint=f"is {keys} the right text_key?",
    )
