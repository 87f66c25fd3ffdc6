"""The ``tokenize`` stage: documents to Megatron's indexed dataset, none lost without a word.

The sources are cut into shards, which any number of ranks and processes tokenize (see
``tokenize_shard.py`` and ``tasks.py``); a last step merges them. The result is the same, byte for
byte, whatever that number is, and however often work was killed.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from toolkit.artifacts import Artifact, link_or_copy
from toolkit.context import StageContext
from toolkit.data.config import TokenizeConfig
from toolkit.data.dataset_info import describe, weights
from toolkit.data.indexed import bin_path, idx_path
from toolkit.data.merge import merge_indexed
from toolkit.data.pack.blend import write_data_args
from toolkit.data.task_checks import verify
from toolkit.data.tasks import (
    TaskResult,
    results,
    run_tasks,
    start_crew,
    worker_count,
)
from toolkit.data.tokenize_plan import Plan, cut_sources, make_plan
from toolkit.data.tokenize_shard import QUARANTINE
from toolkit.data.tokenizer_folder import copy_tokenizer
from toolkit.errors import DataError
from toolkit.stage import FINISH

logger = logging.getLogger(__name__)
SHARDS = "shards"
FUNCTION = "toolkit.data.tokenize_shard:tokenize_shard"


def run(config: TokenizeConfig, context: StageContext) -> Artifact | None:
    """Tokenize the sources and publish a ``dataset`` artifact.

    Raises:
        DataError: see ``DocumentReader``; also where no document has a text, or where a source
            changed since the work was planned.
        ToolkitError: the tokenizer has no end-of-document token, or the backend can't be used.
    """
    started = time.monotonic()
    cuts = cut_sources(config, context)
    if not context.runs(SHARDS):
        return _finish(config, context, make_plan(config, context, cuts), started)
    workers = worker_count(config.resources, context)
    with ExitStack() as stack:
        crew = None
        if min(workers, len(cuts[context.rank :: context.world_size])) > 1:
            crew = stack.enter_context(start_crew(FUNCTION, len(cuts), workers))
        plan = make_plan(config, context, cuts)
        run_tasks(SHARDS, FUNCTION, plan.tasks, context, workers=workers, crew=crew)
    return _finish(config, context, plan, started) if context.runs(FINISH) else None


def _finish(config: TokenizeConfig, context: StageContext, plan: Plan, started: float) -> Artifact:
    """Put the shards together and publish them."""
    done = results(SHARDS, plan.tasks, context)
    _refuse_nothing(done, config)
    built = context.building()
    try:
        copy_tokenizer(context.path(config.tokenizer), built / "tokenizer")
        verify(done, context)
        pieces = _pieces(config, plan, done)
        checksums = _assemble(pieces, built)
        bad = _join_quarantines(done, built / QUARANTINE)
        info = describe(config, plan, done, prefixes_of(pieces), built)
        if len(info["prefixes"]) > 1 and len(config.text_keys) == 1:
            listed = {"weights": weights(plan.groups, prefixes_of(pieces), built), **info}
            write_data_args(built, context.folder / "artifact", listed)
        artifact = context.publish(built, "dataset", info=info, checksums=checksums)
    except BaseException:
        shutil.rmtree(built, ignore_errors=True)
        raise
    shutil.rmtree(context.work / SHARDS, ignore_errors=True)
    if bad:
        logger.warning("%d records are set aside in %s", bad, QUARANTINE)
    counts, seconds = info["counts"], time.monotonic() - started
    if total := sum(task.size for task in plan.tasks) / 1e6:
        shown = {"documents": counts["written"], "tokens": counts["tokens"]}
        context.progress(total, total, unit="MB", **shown)
    logger.info(
        "%s documents, %s tokens of %.1f MB of text in %.1f s (%.1f MB/s) by %s (%s)",
        *(f"{counts['written']:,}", f"{counts['tokens']:,}", counts["text_bytes"] / 1e6, seconds),
        *(counts["text_bytes"] / 1e6 / seconds, plan.recipe.backend, plan.reason),
    )
    return artifact


@dataclass(frozen=True)
class Piece:
    """A pair of files of the artifact, and the shards' pairs that it is made of."""

    group: str
    name: str
    parts: list[Path]


def _pieces(config: TokenizeConfig, plan: Plan, done: Sequence[TaskResult]) -> list[Piece]:
    found = []
    for group in [group.name for group in plan.groups]:
        shards = [result for result in done if plan.owners[result.key][0] == group]
        for inner in map(plan.recipe.prefix, config.text_keys):
            name = f"{group}{inner}"
            if config.output == "shards":
                found += [Piece(group, f"{name}_{s.key}", [s.path(inner)]) for s in shards]
            else:
                found.append(Piece(group, name, [shard.path(inner) for shard in shards]))
    return found


def prefixes_of(pieces: Sequence[Piece]) -> dict[str, list[str]]:
    """The names of each group's pieces."""
    found: dict[str, list[str]] = {}
    for piece in pieces:
        found.setdefault(piece.group, []).append(piece.name)
    return found


def _assemble(pieces: Sequence[Piece], built: Path) -> dict[str, str]:
    """Merge or link the shards; gives the SHA-256 of the tokens, which a thread makes meanwhile."""
    stopped = Event()
    with ThreadPoolExecutor(1) as beside:
        hashing = beside.submit(_checksums, pieces, stopped)
        try:
            for piece in pieces:
                if len(piece.parts) == 1:
                    _take(piece.parts[0], built / piece.name)
                else:
                    merge_indexed(piece.parts, built / piece.name)
            return hashing.result()
        finally:
            stopped.set()  # a signal must not wait for terabytes to be hashed


def _checksums(pieces: Sequence[Piece], stopped: Event) -> dict[str, str]:
    """By the names of the pieces' files, from the shards that were just verified."""
    found = {}
    for piece in pieces:
        digest = hashlib.sha256()
        for part in piece.parts:
            if stopped.is_set():
                return {}
            with bin_path(part).open("rb") as stream:
                hashlib.file_digest(stream, lambda: digest)  # noqa: B023 - called at once
        found[bin_path(Path(piece.name)).as_posix()] = digest.hexdigest()
    return found


def _take(source: Path, target: Path) -> None:
    """Give a shard's pair of files another name."""
    for path in (bin_path, idx_path):
        link_or_copy(path(source), path(target))


def _join_quarantines(done: Sequence[TaskResult], target: Path) -> int:
    """Put the quarantined records of all shards into one file, if there are any."""
    parts = [result.path(QUARANTINE) for result in done if QUARANTINE in result.checksums]
    if parts:
        with target.open("wb") as stream:
            for part in parts:
                with part.open("rb") as records:
                    shutil.copyfileobj(records, stream)
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
