"""What a cluster can't do of what a pipeline asks, said before anything is sent."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from toolkit.errors import ConfigError, Problem
from toolkit.launch import slurm
from toolkit.launch.cluster import Cluster
from toolkit.launch.machine import machine_of
from toolkit.launch.render import RenderedJob
from toolkit.pipeline.loading import Loaded, load_pipeline
from toolkit.pipeline.registry import stage_kinds
from toolkit.pipeline.source import Source
from toolkit.plan.stages import stage_problems
from toolkit.quantities import megabytes, minutes
from toolkit.stage import StageConfig


def load_for(
    file: Path, overrides: Sequence[str], cluster: Cluster, cluster_source: Source
) -> Loaded:
    """Load a pipeline for a cluster.

    Raises:
        ConfigError: every mistake of the file, every layout that can't work, and all that the
            cluster doesn't have.
    """

    def check(name: str, config: StageConfig, source: Source) -> Iterator[Problem]:
        yield from stage_problems(name, config, source, machine_of(cluster))
        for key, message in resource_problems(config, cluster):
            yield source.problem(("stages", name, "resources", key), message)

    own = list(profile_problems(cluster, cluster_source))
    asked = {kind: cluster_source.at(("resources", kind)) for kind in cluster.resources}
    try:
        loaded = load_pipeline(file, overrides, check, asked)
    except ConfigError as error:
        raise ConfigError([*own, *error.problems]) from None
    if own:
        raise ConfigError(own)
    return loaded


def resource_problems(config: StageConfig, cluster: Cluster) -> Iterator[tuple[str, str]]:
    """What a stage asks and the cluster doesn't have: the setting, and a sentence each."""
    asked, node, limits = config.resources, cluster.node, cluster.limits
    kind = stage_kinds()[config.kind]
    spread = 1 if kind.spread == "process" else config.world_size() // asked.nodes
    at_once = spread if kind.spread == "ranks" else 1
    if kind.spread == "ranks" and limits.nodes and asked.nodes > limits.nodes:
        yield "nodes", f"{asked.nodes} nodes, where a job may have {limits.nodes}"
    if kind.uses_gpus and node.gpus and at_once > node.gpus and asked.gpus_per_node is None:
        yield "ntasks_per_node", f"{at_once} ranks on a node that has {node.gpus} GPUs"
    if (asked.gpus_per_node or 0) > node.gpus:
        yield "gpus_per_node", f"{asked.gpus_per_node} GPUs on a node that has {node.gpus}"
    if (asked.cpus_per_task or 1) * at_once > node.cpus:
        cores = f"{at_once} x {asked.cpus_per_task or 1}"
        yield "cpus_per_task", f"{cores} cores on a node that has {node.cpus}"
    memory = asked.memory_per_node
    if memory and node.memory and megabytes(memory) > megabytes(node.memory):
        yield "memory_per_node", f"{memory} on a node that has {node.memory}"
    limit = asked.time_limit
    if limit and limits.time_limit and minutes(limit) > minutes(limits.time_limit):
        yield "time_limit", f"{limit}, where a job may have {limits.time_limit}"
    if limit and minutes(limit) * 60 <= cluster.signal_seconds:
        yield "time_limit", f"{limit} is no longer than signal_seconds, {cluster.signal_seconds} s"


def profile_problems(cluster: Cluster, source: Source) -> Iterator[Problem]:
    """What is wrong with a profile here and now: its own limits, the image, and secrets."""
    longest = cluster.limits.time_limit
    if longest and minutes(cluster.time_limit) > minutes(longest):
        yield source.problem(("time_limit",), f"is above limits.time_limit, {longest}")
    if minutes(cluster.time_limit) * 60 <= cluster.signal_seconds:
        yield source.problem(("signal_seconds",), "leaves no time before the job is told to save")
    image = cluster.container.image
    if image and image.startswith("/") and not Path(image).exists():
        yield source.problem(("container", "image"), f"no such file: {image}")
    for name in cluster.secrets:
        if not os.environ.get(name):
            hint = f"export {name}=... where you submit, or name a file in secret_files"
            yield source.problem(("secrets",), f"{name} is not set here", hint)
    for name, file in cluster.secret_files.items():
        problem = _secret_file_problem(Path(file))
        if problem:
            yield source.problem(("secret_files", name), problem)


def _secret_file_problem(path: Path) -> str | None:
    if not path.is_file():
        return f"no such file: {path}"
    mode = path.stat().st_mode & 0o777
    return f"{path} has mode {mode:o}; chmod 600 it" if mode not in (0o600, 0o400) else None


def mount_warnings(cluster: Cluster) -> list[str]:
    """The folders to mount that this machine doesn't have; the nodes may have them."""
    hosts = [mount.partition(":")[0] for mount in cluster.container.mounts]
    return [
        f"container.mounts: {host} is not on this machine"
        for host in hosts
        if not Path(host).exists()
    ]


def refusals(jobs: Sequence[RenderedJob]) -> list[Problem]:
    """What ``sbatch --test-only`` says against each script; nothing where there is no sbatch."""
    if not slurm.here():
        return []
    found = []
    with tempfile.TemporaryDirectory(prefix="toolkit-check-") as folder:
        for job in jobs:
            script = Path(folder, job.file)
            script.write_text(job.text, encoding="utf-8")
            message = slurm.test_only(str(script))
            if message is not None:
                found.append(Problem(f"stages.{job.stage}", message))
    return found
