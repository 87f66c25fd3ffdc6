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
from toolkit.launch.named import named
from toolkit.launch.rendered import RenderedJob
from toolkit.pipeline.loading import Loaded, load_pipeline
from toolkit.pipeline.registry import stage_kinds
from toolkit.pipeline.run import Run
from toolkit.pipeline.source import Source
from toolkit.plan.stages import stage_problems
from toolkit.quantities import megabytes, minutes
from toolkit.stage import StageConfig
from toolkit.tracking.config import Tracking, lacking


def load_for(
    file: Path,
    overrides: Sequence[str],
    cluster: Cluster,
    cluster_source: Source,
    *,
    here: bool = True,
) -> Loaded:
    """Load a pipeline for a cluster.

    Args:
        file: the pipeline.
        overrides: settings that win over the file's.
        cluster: the profile.
        cluster_source: where it stands, for messages.
        here: whether jobs are sent from this machine: what they need must be here then.

    Raises:
        ConfigError: every mistake of the file, every layout that can't work, and all that the
            cluster doesn't have.
    """

    def check(name: str, config: StageConfig, source: Source) -> Iterator[Problem]:
        yield from stage_problems(name, config, source, machine_of(cluster))
        for key, message in resource_problems(config, cluster):
            yield source.problem(("stages", name, "resources", key), message)

    own = list(profile_problems(cluster, cluster_source))
    own += place_problems(cluster, cluster_source) if here else []
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
    if (asked.chain or 1) > 1 and cluster.submit_with == "submitit":
        yield "chain", "submitit requeues, and has no chains: submit_with: sbatch has"
    elif (asked.chain or 1) > 1 and kind.spread == "shards" and spread * asked.nodes > 1:
        yield "chain", "a stage whose tasks are an array has no chain: each task is requeued"
    memory = asked.memory_per_node
    if memory and node.memory and megabytes(memory) > megabytes(node.memory):
        yield "memory_per_node", f"{memory} on a node that has {node.memory}"
    limit = asked.time_limit
    if limit and limits.time_limit and minutes(limit) > minutes(limits.time_limit):
        yield "time_limit", f"{limit}, where a job may have {limits.time_limit}"
    if limit and minutes(limit) * 60 <= cluster.signal_seconds:
        yield "time_limit", f"{limit} is no longer than signal_seconds, {cluster.signal_seconds} s"


def profile_problems(cluster: Cluster, source: Source) -> Iterator[Problem]:
    """What is wrong with a profile in itself: its limits."""
    longest = cluster.limits.time_limit
    if longest and minutes(cluster.time_limit) > minutes(longest):
        yield source.problem(("time_limit",), f"is above limits.time_limit, {longest}")
    if minutes(cluster.time_limit) * 60 <= cluster.signal_seconds:
        message = f"{cluster.signal_seconds} s ahead of the limit of {cluster.time_limit}"
        yield source.problem(
            ("signal_seconds",), f"{message} a job is told to save: it would have no time to work"
        )


def place_problems(cluster: Cluster, source: Source) -> Iterator[Problem]:
    """What jobs need that is not here and now: the image, and secrets."""
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


def hidden_warnings(cluster: Cluster, run: Run) -> list[str]:
    """The files of this machine that stages take, and that no mount shows in their container.

    They may lie in the image, or be mounted by the site for everybody: so these are no mistakes.
    """
    if cluster.container.runtime == "none":
        return []
    seen = [run.folder, *_seen(cluster)]
    asked = {
        f"stages.{task.name}: {i['folder']}": Path(i["folder"])
        for task in run.tasks
        for i in task.file.inputs.values()
        if Path(i["folder"]).is_absolute()
    }
    asked |= {
        f"environment.{name}: {value}": Path(str(value))
        for name, value in cluster.environment.items()
        if str(value).startswith("/") and Path(str(value)).exists()
    }
    return [
        f"{what} is not mounted into the container under its own name"
        for what, path in asked.items()
        if not any(path.is_relative_to(folder) for folder in seen)
    ]


def _seen(cluster: Cluster) -> list[Path]:
    """The folders that a container has under the name that they have outside."""
    pairs = [mount.split(":")[:2] for mount in cluster.container.mounts]
    seen = [Path(host) for host, inside in pairs if host == inside]
    if cluster.container.runtime == "apptainer":  # it mounts these by itself
        seen += [Path.home(), Path("/tmp")]
    return seen


def tracking_warnings(cluster: Cluster, tracking: Tracking) -> list[str]:
    """What the jobs may lack to pass metrics on: packages, a key, an address.

    An image or ~/.netrc may have them; and a stage goes on without.
    """
    notes = [lacking(s) for s in tracking.missing() if cluster.container.runtime == "none"]
    given = {*cluster.secrets, *cluster.secret_files, *cluster.environment}
    wandb, mlflow = tracking.wandb, tracking.mlflow
    if wandb is not None and wandb.mode in (None, "online") and "WANDB_API_KEY" not in given:
        notes.append("tracking.wandb: WANDB_API_KEY is none of the profile's secrets")
    if mlflow is not None and not mlflow.tracking_uri and "MLFLOW_TRACKING_URI" not in given:
        notes.append(
            "tracking.mlflow: no tracking_uri, and no MLFLOW_TRACKING_URI in the profile's"
            " environment or secrets"
        )
    return notes


def refusals(jobs: Sequence[RenderedJob]) -> list[Problem]:
    """What ``sbatch --test-only`` says against the scripts; nothing where there is no sbatch.

    It goes by their options alone, so that one script speaks for all that ask for the same.
    """
    if not slurm.here():
        return []
    alike: dict[str, list[RenderedJob]] = {}
    for job in jobs:
        alike.setdefault(_asked(job.text), []).append(job)
    refused: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory(prefix="toolkit-check-") as folder:
        for same in alike.values():
            script = Path(folder, same[0].file)
            script.write_text(same[0].text, encoding="utf-8")
            message = slurm.test_only(str(script))
            if message is not None:
                refused.setdefault(message, []).extend(job.stage for job in same)
    found = []
    for message, stages in refused.items():
        first, *others = dict.fromkeys(stages)
        also = f" (so of {named(others)})" if others else ""
        found.append(Problem(f"stages.{first}", message + also))
    return found


def _asked(script: str) -> str:
    """What a script asks of Slurm, but for its names."""
    options = [line for line in script.splitlines() if line.startswith("#SBATCH ")]
    own = ("#SBATCH --job-name=", "#SBATCH --output=", "#SBATCH --error=")
    return "\n".join(line for line in options if not line.startswith(own))
