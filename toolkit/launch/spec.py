"""A launch spec: one job, free of any scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from toolkit.pipeline.registry import stage_kinds
from toolkit.pipeline.run import Task


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


def launch_spec(task: Task, python: str, needs: Sequence[str] = ()) -> LaunchSpec:
    """The job that works on one stage; a stage that does not spread over ranks gets one task."""
    kind = stage_kinds()[task.config.kind]
    resources = task.config.resources
    spreads = kind.spread == "ranks"
    nodes = resources.nodes if spreads else 1
    return LaunchSpec(
        stage=task.name,
        folder=task.folder,
        argv=(python, "-m", "toolkit.worker", str(task.folder)),
        nodes=nodes,
        ntasks_per_node=task.config.world_size() // nodes if spreads else 1,
        cpus_per_task=resources.cpus_per_task,
        dependencies=tuple(needs),
    )
