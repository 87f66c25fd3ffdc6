"""A launch spec: one job, free of any scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from toolkit.pipeline.registry import stage_kinds
from toolkit.pipeline.run import Task
from toolkit.stage import FINISH
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

    @property
    def world_size(self) -> int:
        """Ranks over all nodes."""
        return self.nodes * self.ntasks_per_node


def launch_specs(task: Task, python: str, needs: Sequence[str] = ()) -> tuple[LaunchSpec, ...]:
    """The jobs that work on one stage, one after another.

    A sharded stage that is given several ranks has a job for each phase and a last one that
    finishes; any other stage has one job, and one rank where it doesn't spread.
    """
    spread = stage_kinds()[task.config.kind].spread
    ranks = 1 if spread == "process" else task.config.world_size()
    nodes = 1 if spread == "process" else task.config.resources.nodes
    whole = LaunchSpec(
        stage=task.name,
        folder=task.folder,
        argv=(python, "-m", "toolkit.worker", str(task.folder)),
        nodes=nodes,
        ntasks_per_node=ranks // nodes,
        cpus_per_task=task.config.resources.cpus_per_task,
        dependencies=tuple(needs),
    )
    if spread != "shards" or ranks == 1:
        return (whole,)
    phases = [replace(whole, environment={PHASE: phase}) for phase in task.config.phases()]
    last = replace(whole, environment={PHASE: FINISH}, nodes=1, ntasks_per_node=1)
    return (*phases, last)
