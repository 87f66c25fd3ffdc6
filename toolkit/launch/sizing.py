"""``toolkit plan``: the pretraining stages of a pipeline, sized for a cluster's profile."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toolkit.errors import Problem, ToolkitError
from toolkit.launch.cluster import Cluster, load_cluster
from toolkit.launch.machine import machine_of
from toolkit.megatron.config import PretrainConfig
from toolkit.pipeline.loading import Loaded, load_pipeline
from toolkit.pipeline.source import Source
from toolkit.plan.describe import run_of
from toolkit.plan.hardware import Hardware
from toolkit.plan.layout import violations
from toolkit.plan.machine import capability_of
from toolkit.plan.memory import GIB, largest, memory_by_stage
from toolkit.plan.plain import plain_found, plain_sizing
from toolkit.plan.search import Found, search
from toolkit.plan.shape import Run
from toolkit.plan.sizing import Sizing, hardware_of, size_run
from toolkit.plan.stages import stage_problems, vocab_size
from toolkit.plan.throughput import Estimator
from toolkit.stage import StageConfig


@dataclass(frozen=True)
class Question:
    """What is asked: a pipeline, a cluster, and what differs from what they say."""

    file: Path
    overrides: Sequence[str]
    cluster: str
    gpus: int | None = None
    """On so many GPUs, in place of what the file asks."""
    tokens: int | None = None
    """For so many tokens, in place of ``train_iters``."""
    search: bool = False


@dataclass(frozen=True)
class StageAnswer:
    """One pretraining stage."""

    name: str
    hardware: Hardware
    violations: tuple[str, ...]
    """Why its own layout can't work on these GPUs; then there is no sizing of it."""
    sizing: Sizing | None
    found: Found | None
    run: Run
    """As the file has it, on the GPUs that are asked for."""
    notes: tuple[str, ...] = ()
    """What the profile does not allow: more GPUs than a job may have."""
    search_seconds: float = 0.0

    def plain(self) -> dict[str, Any]:
        """All of it, for programs."""
        told: dict[str, Any] = {
            "name": self.name,
            "violations": list(self.violations),
            "notes": list(self.notes),
        }
        if self.sizing is not None:
            told |= plain_sizing(self.sizing)
        if self.found is not None:
            told["search"] = plain_found(self.found, self.run.layout, self.search_seconds)
        return told


def cluster_hardware(name: str) -> tuple[Hardware, Cluster, Source]:
    """The GPUs and the network of a profile.

    Raises:
        ConfigError: there is no such profile, or it has mistakes.
        ToolkitError: it names no GPUs, or some that there are no constants for.
    """
    cluster, source = load_cluster(name)
    try:
        return _hardware(cluster), cluster, source
    except ToolkitError as error:
        place = source.place(("node",)) or source.place(())
        where = f"{place.file}:{place.line}" if place else name
        raise ToolkitError(error.message, where=where, hint=error.hint) from None


def _hardware(cluster: Cluster) -> Hardware:
    node = cluster.node
    return hardware_of(node.gpu_type, node.gpus, cluster.network, cluster.planning)


def memory_warnings(loaded: Loaded, cluster: Cluster) -> list[str]:
    """The pretraining stages whose fullest rank needs more than a GPU of the cluster has.

    Where the GPUs or a vocabulary are not known, that is said instead; where there are no GPUs,
    nothing.
    """
    if not cluster.node.gpus:
        return []
    try:
        hardware = _hardware(cluster)
    except ToolkitError as error:
        return [f"{error.message}: whether a training fits was not looked at ({error.hint})"]
    found = []
    for name, config in loaded.pipeline.stages.items():
        if not isinstance(config, PretrainConfig):
            continue
        try:
            run = _run(loaded, name, config, cluster)
        except ToolkitError as error:
            found.append(f"{error.message}; whether it fits was not looked at ({error.hint})")
            continue
        whole, margin = (run.model, run.layout, run.precision), hardware.tuning.fragmentation
        needed = largest(memory_by_stage(*whole, fragmentation=margin)).total
        if needed > hardware.gpu.memory:
            found.append(
                f"{name}: its fullest rank needs about {needed / GIB:.0f} GiB, and a GPU"
                f" ({hardware.gpu.name}) has {hardware.gpu.memory / GIB:.0f};"
                " toolkit plan --search finds layouts that fit"
            )
    return found


def answer(question: Question) -> Iterator[StageAnswer]:
    """Size every pretraining stage of the file.

    Raises:
        ConfigError: mistakes in one of the two files.
        ToolkitError: nothing to size, or a vocabulary that nobody knows.
    """
    hardware, cluster, source = cluster_hardware(question.cluster)
    loaded = _load(question, cluster, source)
    stages = {
        name: config
        for name, config in loaded.pipeline.stages.items()
        if isinstance(config, PretrainConfig)
    }
    if not stages:
        raise ToolkitError("no pretrain stage to plan", where=str(question.file))
    for name, config in stages.items():
        yield _stage(question, loaded, name, config, hardware, cluster)


def _load(question: Question, cluster: Cluster, source: Source) -> Loaded:
    """Layouts are looked at here only where the file's own number of ranks is what is asked.

    Data may lie elsewhere: a run is sized before its data is made, and away from the cluster.
    """

    def check(name: str, config: StageConfig, of: Source) -> Iterator[Problem]:
        free = question.gpus is not None or question.search
        if not (free and isinstance(config, PretrainConfig)):
            yield from stage_problems(name, config, of, machine_of(cluster))

    asked = {kind: source.at(("resources", kind)) for kind in cluster.resources}
    return load_pipeline(question.file, question.overrides, check, asked, inputs=False)


def _stage(
    question: Question,
    loaded: Loaded,
    name: str,
    config: PretrainConfig,
    hardware: Hardware,
    cluster: Cluster,
) -> StageAnswer:
    run = _run(loaded, name, config, cluster, question.gpus)
    wrong = tuple(f"{v.key}: {v.message}" for v in violations(run))
    notes = _beyond(run.layout.world_size, cluster)
    step = config.global_batch_size * config.sequence
    tokens = question.tokens or config.train_iters * step
    sizing = None if wrong else size_run(run, hardware, tokens, cluster.planning)
    if not question.search:
        return StageAnswer(name, hardware, wrong, sizing, None, run, notes)
    started = time.perf_counter()
    found = search(run, Estimator(run.model, run.precision, hardware))
    seconds = time.perf_counter() - started
    if sizing is None and found.best:
        best = replace(run, layout=found.best[0].layout)
        sizing = size_run(best, hardware, tokens, cluster.planning)
    return StageAnswer(name, hardware, wrong, sizing, found, run, notes, seconds)


def _beyond(gpus: int, cluster: Cluster) -> tuple[str, ...]:
    """Why no job may have so many GPUs, where that is so."""
    nodes, each = cluster.limits.nodes, cluster.node.gpus
    if nodes is None or gpus <= nodes * each:
        return ()
    return (f"{gpus:,} GPUs, where a job may have {nodes * each:,} ({nodes} nodes of {each})",)


def _run(
    loaded: Loaded,
    name: str,
    config: PretrainConfig,
    cluster: Cluster,
    gpus: int | None = None,
) -> Run:
    vocabulary = vocab_size(loaded, name) or config.model.vocab_size
    if vocabulary is None:
        raise ToolkitError(
            f"{name}: the vocabulary's size is not known: no stage here makes its tokenizer",
            where=str(loaded.pipeline.file),
            hint=f"stages.{name}.model.vocab_size=128256, as the tokenizer has",
        )
    gpu = _hardware(cluster).gpu.name
    machine = replace(machine_of(cluster), gpu=gpu, capability=capability_of(gpu))
    return run_of(config, gpus or config.world_size(), vocabulary, machine)
