"""The ``clean`` stage: documents in, documents out, every one that goes counted with its reason.

The sources are cut into shards, which any number of ranks and processes take through the pipeline;
where duplicates are to go, further phases find them over all shards, and a last one leaves them
out. The result is the same, byte for byte, whatever the number of ranks and processes.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.artifacts import Artifact, link_or_copy
from toolkit.context import StageContext
from toolkit.data.clean.account import describe, show
from toolkit.data.clean.config import EVALUATIONS, FILTER, WRITE, CleanConfig
from toolkit.data.clean.ids import check_ids
from toolkit.data.clean.pipeline import FILTERS
from toolkit.data.clean.settings import SAFE_HARBOR_LIMITS
from toolkit.data.clean.shard import QUARANTINE, CleanWork, Recipe, WriteWork
from toolkit.data.dedup.evaluations import index_task
from toolkit.data.dedup.phases import Dedup, HashedShard
from toolkit.data.inputs import expand_inputs
from toolkit.data.planning import remember_sources
from toolkit.data.shards import plan_shards
from toolkit.data.tasks import Task, TaskResult, checksum, results, run_tasks, worker_count
from toolkit.errors import DataError
from toolkit.stage import FINISH

logger = logging.getLogger(__name__)


@dataclass
class Work:
    """The stage under way: its phases, each of which needs those before it."""

    config: CleanConfig
    context: StageContext

    def __post_init__(self) -> None:
        self.workers = worker_count(self.config.resources, self.context)
        self.owners: dict[str, str] = {}
        """The source, as the settings have it, of each task."""
        settings = self.config.decontaminate
        self.evaluations = [Task("00000", index_task(settings, self.context))] if settings else []

    def index(self) -> None:
        """Index the evaluation data."""
        run_tasks(
            EVALUATIONS,
            "toolkit.data.dedup.evaluations:write_index",
            self.evaluations,
            self.context,
            workers=1,
        )

    def evaluations_folder(self) -> Path | None:
        """Where the index of the evaluation data is."""
        if not self.evaluations:
            return None
        return results(EVALUATIONS, self.evaluations, self.context)[0].folder

    def filter_tasks(self) -> list[Task]:
        """One for each shard, in the order of the sources."""
        recipe = Recipe.of(self.config, self.context.seed, self.evaluations_folder())
        tasks: list[Task] = []
        for reference in self.config.sources:
            sources = expand_inputs([reference], self.context)
            for shard in plan_shards(
                sources, self.config.shard_bytes, sample_by=self.config.sample_by
            ):
                task = Task(f"{len(tasks):05d}", CleanWork(recipe, shard.parts), shard.size)
                tasks.append(task)
                self.owners[task.key] = reference
        return tasks

    def filter(self) -> None:
        """Take the shards through the pipeline."""
        function = "toolkit.data.clean.shard:clean_shard"
        run_tasks(FILTER, function, self.filter_tasks(), self.context, workers=self.workers)

    def filtered(self) -> list[TaskResult]:
        """What the first phase made."""
        return results(FILTER, self.filter_tasks(), self.context)

    def dedup(self) -> Dedup:
        """Deduplication over what the first phase made."""
        name = f"documents.{self.config.output_format}"
        shards = [
            HashedShard(
                str(one.folder),
                int(one.info["written"]),
                str(one.path(name)),
                int(one.info["characters_written"]),
            )
            for one in self.filtered()
        ]
        return Dedup(
            self.context,
            shards,
            self.config.exact_dedup,
            self.config.near_dedup,
            texts="toolkit.data.clean.store:read_texts",
            workers=self.workers,
        )

    def write_tasks(self, dedup: Dedup) -> list[Task]:
        """One for each shard."""
        recipe = Recipe.of(self.config, self.context.seed, self.evaluations_folder())
        removals = dedup.removals()
        return [
            Task(one.key, WriteWork(recipe, str(one.folder), index, removals))
            for index, one in enumerate(self.filtered())
        ]


def run(config: CleanConfig, context: StageContext) -> Artifact | None:
    """Clean the sources and publish a ``documents`` artifact.

    Raises:
        DataError: see ``MetadataReader``; a source changed since the work began; no document is
            left; two documents have one id, where that is an error.
        ToolkitError: see ``Pipeline``.
    """
    started = time.monotonic()
    _try_filters(config)
    remember_sources(expand_inputs(config.sources, context), context)
    work = Work(config, context)
    if work.evaluations and context.runs(EVALUATIONS):
        work.index()
    if context.runs(FILTER):
        work.filter()
    dedup = _find_duplicates(work)
    if dedup and context.runs(WRITE):
        run_tasks(
            WRITE,
            "toolkit.data.clean.shard:write_unique",
            work.write_tasks(dedup),
            context,
            workers=work.workers,
        )
    if not context.runs(FINISH):
        return None
    return _finish(work, dedup, started)


def _try_filters(config: CleanConfig) -> None:
    """Make each filter once, so that what one lacks is said before the work begins."""
    for settings in config.filters:
        FILTERS[settings.filter](settings)


def _find_duplicates(work: Work) -> Dedup | None:
    """Run the phases of deduplication that this process has to; None where none is set."""
    phases = work.config.dedup_phases
    if not phases or work.context.phase in (EVALUATIONS, FILTER):
        return None
    dedup = work.dedup()
    for phase in phases:
        if work.context.runs(phase):
            dedup.run(phase)
    return dedup


def _finish(work: Work, dedup: Dedup | None, started: float) -> Artifact:
    """Put the files together, account for every document, and publish."""
    config, context = work.config, work.context
    filtered = work.filtered()
    written = results(WRITE, work.write_tasks(dedup), context) if dedup else []
    info = describe(config, work.owners, filtered, written, dedup, work.evaluations_folder())
    _refuse_nothing(info, config)
    check_ids(filtered, work.filter_tasks(), config, info["counts"])
    built = context.building()
    try:
        _assemble(built, filtered, written, config)
        artifact = context.publish(built, "documents", info=info)
    except BaseException:
        shutil.rmtree(built, ignore_errors=True)
        raise
    for phase in config.phases():
        shutil.rmtree(context.work / phase, ignore_errors=True)
    if config.pii and config.pii.preset:
        logger.warning("%s: %s", config.pii.preset, SAFE_HARBOR_LIMITS)
    show(info, time.monotonic() - started)
    return artifact


def _refuse_nothing(info: dict[str, object], config: CleanConfig) -> None:
    counts, drops = info["counts"], info["drops"]
    assert isinstance(counts, dict) and isinstance(drops, dict)
    if counts["written"]:
        return
    most = max(drops, key=drops.__getitem__, default=None)
    why = f"; most were removed as {most} ({drops[most]})" if most else ""
    raise DataError(
        f"no document is left of {counts['read']}: {counts['empty']} were empty, "
        f"{counts['quarantined']} bad{why}",
        where=", ".join(config.sources),
        hint=f"is {config.text_key!r} the right text_key, and do the filters fit these documents?",
    )


def _assemble(
    built: Path, filtered: Sequence[TaskResult], written: Sequence[TaskResult], config: CleanConfig
) -> None:
    """Link what the tasks wrote, checked by its checksums, under the artifact's names."""
    form = config.output_format
    final = written or filtered
    for target in (built / "documents", *([built / "removed"] if config.keep_removed else [])):
        target.mkdir()
    for index, (first, last) in enumerate(zip(filtered, final, strict=True)):
        if int(first.info["written"]) > sum(last.info["drops"].values() if written else ()):
            _link(last, f"documents.{form}", built / "documents" / f"{index:05d}.{form}")
        if config.keep_removed:
            if first.info["drops"]:
                _link(first, f"removed.{form}", built / "removed" / f"{index:05d}.{form}")
            if written and last.info["drops"]:
                name = f"{index:05d}-duplicates.{form}"
                _link(last, f"removed.{form}", built / "removed" / name)
    _join(built / QUARANTINE, (one.path(QUARANTINE) for one in filtered if QUARANTINE in one.files))


def _link(result: TaskResult, name: str, target: Path) -> None:
    path = result.path(name)
    if checksum(path) != result.checksums[name]:
        raise DataError(
            "the file's checksum differs from the one recorded when it was written",
            where=str(path),
            hint=f"remove {result.folder} and run the same command again",
        )
    link_or_copy(path, target)


def _join(target: Path, parts: Iterable[Path]) -> None:
    for part in parts:
        with target.open("ab") as stream, part.open("rb") as source:
            shutil.copyfileobj(source, stream)
