"""A launch spec: one job, free of any scheduler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from toolkit.megatron.config import PretrainConfig
from toolkit.pipeline.registry import stage_kinds
from toolkit.pipeline.run import Run, Task
from toolkit.quantities import megabytes, minutes
from toolkit.stage import FINISH, Resources, StageConfig
from toolkit.worker import PHASE


@dataclass(frozen=True)
class LaunchSpec:
    """What is to be started, and how often."""

    stage: str
    folder: Path
    """The stage's folder, which is the worker's only argument."""
    argv: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    nodes: int = 1
    ntasks_per_node: int = 1
    cpus_per_task: int | None = None
    dependencies: tuple[str, ...] = ()
    """The names of the jobs that must have ended well before this one starts; of a chain: one
    of its links."""
    needs: tuple[Path, ...] = ()
    """The folders of the stages that those jobs work on."""
    link: int = 1
    links: int = 1
    """Of a chain: jobs that go on where the one before was stopped; this is number ``link``."""
    phase: str | None = None
    """The one phase of a sharded stage that it works on."""
    array: bool = False
    """Whether its ranks are tasks of their own, which need not run at one time."""
    max_tasks: int | None = None
    """Of an array: how many may run at one time."""
    rendezvous: bool = False
    """Whether its ranks meet, and so must all run at one time."""
    gpus_per_node: int = 0
    gpus_wanted: bool = False
    """Whether it takes a GPU for each rank where nodes have some; ``gpus_per_node`` is not set."""
    memory: int | None = None
    """Of each node, in megabytes."""
    time_limit: int | None = None
    """In minutes."""
    exclusive: bool | None = None
    """Whether its nodes are its alone; None: as the cluster has it."""
    queue: dict[str, str] = field(default_factory=dict)
    """Where it waits, by Slurm's names (partition, qos, constraint), in place of the cluster's."""

    @property
    def whole(self) -> str:
        """Its name in the pipeline: the stage's, with the phase where there is one."""
        return f"{self.stage}.{self.phase}" if self.phase else self.stage

    @property
    def name(self) -> str:
        """The job's own name: that in the pipeline, with its number where it is one of a chain."""
        return f"{self.whole}.{self.link}" if self.links > 1 else self.whole

    @property
    def world_size(self) -> int:
        """Ranks over all nodes."""
        return self.nodes * self.ntasks_per_node


def launch_specs(task: Task, python: str, needs: Sequence[str] = ()) -> tuple[LaunchSpec, ...]:
    """The jobs that work on one stage, one after another.

    A sharded stage that is given several ranks has a job for each phase and a last one that
    finishes; any other stage has one job, and one rank where it doesn't spread.
    """
    kind = stage_kinds()[task.config.kind]
    ranks = 1 if kind.spread == "process" else task.config.world_size()
    whole = _with_resources(
        LaunchSpec(
            stage=task.name,
            folder=task.folder,
            argv=(python, "-m", "toolkit.worker", str(task.folder)),
            environment=layout_environment(task.config),
            dependencies=tuple(needs),
            rendezvous=kind.spread == "ranks",
            gpus_wanted=kind.uses_gpus and task.config.resources.gpus_per_node is None,
        ),
        task.config.resources,
        ranks,
    )
    if kind.spread != "shards" or ranks == 1:
        return (whole,)
    return tuple(_phases(whole, task.config.phases()))


def _with_resources(spec: LaunchSpec, resources: Resources, ranks: int) -> LaunchSpec:
    nodes = min(resources.nodes, ranks)
    memory, limit = resources.memory_per_node, resources.time_limit
    return replace(
        spec,
        nodes=nodes,
        ntasks_per_node=ranks // nodes,
        cpus_per_task=resources.cpus_per_task,
        gpus_per_node=resources.gpus_per_node or 0,
        memory=megabytes(memory) if memory else None,
        time_limit=minutes(limit) if limit else None,
        exclusive=resources.exclusive,
        max_tasks=resources.max_tasks,
        queue={n: v for n in ("partition", "qos", "constraint") if (v := getattr(resources, n))},
    )


def _phases(whole: LaunchSpec, phases: Sequence[str]) -> list[LaunchSpec]:
    """A job for each phase, each after the one before it, and the last one alone."""
    specs: list[LaunchSpec] = []
    for phase in (*phases, FINISH):
        last = phase == FINISH
        specs.append(
            replace(
                whole,
                phase=phase,
                environment=whole.environment | {PHASE: phase},
                dependencies=(specs[-1].name,) if specs else whole.dependencies,
                array=not last,
                nodes=1 if last else whole.nodes,
                ntasks_per_node=1 if last else whole.ntasks_per_node,
            )
        )
    return specs


def layout_environment(config: StageConfig) -> dict[str, str]:
    """What must stand in the environment before Python starts, by the parallel layout.

    Megatron-core wants one connection with tensor or context parallelism on GPUs before Blackwell:
    kernels then run in the order in which they were launched, and communication overlaps
    computation (``megatron/core/model_parallel_config.py``; newer GPUs don't mind it). Where
    experts' tokens travel meanwhile, or FSDP's weights, more connections serve better
    (Megatron-LM's ``arguments.py``), and none is set.
    """
    if not isinstance(config, PretrainConfig):
        return {}
    parallel = config.parallel
    shared = parallel.tensor_model_parallel_size > 1 or parallel.context_parallel_size > 1
    in_order = shared and not parallel.overlap_moe_expert_parallel_comm and not parallel.fsdp
    return {"CUDA_DEVICE_MAX_CONNECTIONS": "1"} if in_order else {}


def run_specs(
    run: Run,
    needs: Mapping[str, Sequence[str]],
    python: str,
    under_way: Mapping[str, str] | None = None,
    chain: int | None = None,
) -> list[LaunchSpec]:
    """The jobs of a run in order of work, joined as its stages need each other.

    Args:
        run: stages that are complete have no job, and nothing waits for them.
        needs: for each stage, the stages whose artifacts it takes.
        python: the interpreter where the jobs run.
        under_way: by stage, the last job of those that have jobs already: they get no others, and
            what needs them waits for that job.
        chain: links of stages that spread over ranks, where a stage doesn't say.
    """
    last = dict(under_way or {})
    specs: list[LaunchSpec] = []
    for task in run.tasks:
        if task.action == "skip" or task.name in (under_way or {}):
            continue
        sent = {stage: [need for need in needs[stage] if need in last] for stage in needs}
        after = _direct(sent[task.name], sent)
        found = launch_specs(task, python, [last[need] for need in after])
        folders = tuple(run.folder / need for need in after)
        for spec in found:
            links = task.config.resources.chain or (chain if spec.rendezvous else None) or 1
            specs += [
                replace(spec, needs=folders, link=link + 1, links=links) for link in range(links)
            ]
        last[task.name] = found[-1].whole
    return specs


def _direct(stages: Sequence[str], needs: Mapping[str, Sequence[str]]) -> list[str]:
    """The stages that none of the others needs: when these are done, all are."""
    behind: set[str] = set()
    todo = [need for stage in stages for need in needs[stage]]
    while todo:
        stage = todo.pop()
        todo += [] if stage in behind else needs[stage]
        behind.add(stage)
    return [stage for stage in stages if stage not in behind]
