"""A cluster's profile: what a Slurm cluster has, and how jobs are sent to it.

``configs/clusters/NAME.yaml``; read as strictly as a pipeline, with the same messages.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from toolkit.errors import ConfigError, Problem, ToolkitError
from toolkit.launch.network import PRESETS, Network
from toolkit.launch.profile_values import SECRET, Line, Option, SecretName, Variable, Version
from toolkit.pipeline.loading import read_extended
from toolkit.pipeline.problems import problems_of, unknown
from toolkit.pipeline.registry import stage_kinds
from toolkit.pipeline.source import Source
from toolkit.plan.config import Planning
from toolkit.preflight.config import Preflight
from toolkit.quantities import Memory, Name, TimeLimit
from toolkit.share import share
from toolkit.stage import Resources, Settings


class Node(Settings):
    """What one node has; a job that asks for more is refused before it is sent."""

    cpus: int = Field(ge=1, description="CPU cores that jobs may have.")
    memory: Memory | None = Field(
        default=None, description="Memory that jobs may have, as sinfo -o %m says it: 2000G."
    )
    gpus: int = Field(default=0, ge=0, description="GPUs.")
    gpu_type: Name | None = Field(
        default=None, description="The GPUs' type in Slurm's gres: h100, in --gpus-per-node=h100:8."
    )

    @model_validator(mode="after")
    def _type_of_what(self) -> Node:
        if self.gpu_type and not self.gpus:
            raise ValueError("has a gpu_type and no gpus")
        return self


class Limits(Settings):
    """What the partition allows one job."""

    nodes: int | None = Field(default=None, ge=1, description="Nodes.")
    time_limit: TimeLimit | None = Field(default=None, description="The longest time limit.")


class Container(Settings):
    """What the ranks run in."""

    runtime: Literal["none", "pyxis", "apptainer", "podman"] = Field(
        default="none", description="Who starts it; none: the ranks run on the node itself."
    )
    image: Line | None = Field(
        default=None, description="A file (.sqsh, .sif), or a name in a registry."
    )
    mounts: list[Line] = Field(
        default=[], description="HOST:CONTAINER or HOST:CONTAINER:ro, each; the run is mounted too."
    )

    @model_validator(mode="after")
    def _whole(self) -> Container:
        if (self.runtime == "none") != (self.image is None):
            raise ValueError("runtime and image go together: both, or runtime none alone")
        wrong = [m for m in self.mounts if not re.fullmatch(r"/[^:,]*:/[^:,]*(:r[ow])?", m)]
        if wrong:
            raise ValueError(f"mounts are /HOST:/CONTAINER or /HOST:/CONTAINER:ro, not {wrong[0]}")
        return self


class Software(Settings):
    """What the image has, or the nodes where no container is used; for ``toolkit check`` alone."""

    transformer_engine: Version | None = Field(
        default=None, description="TransformerEngine's version: FP8 recipes need a new one."
    )
    cuda: Version | None = Field(default=None, description="CUDA's version: 12.9.")
    torch: Version | None = Field(default=None, description="PyTorch's version.")
    megatron_core: Version | None = Field(
        default=None, description="megatron-core's version; some rules are of older ones alone."
    )


class Cluster(Settings):
    """A Slurm cluster, and how jobs are sent to it."""

    listing: ClassVar[str] = "toolkit schema cluster"
    """What prints all keys, for messages."""

    scheduler: Literal["slurm"] = Field(description="What takes the jobs.")
    submit_with: Literal["sbatch", "submitit"] = Field(
        default="sbatch", description="What sends them: scripts of our own, or submitit."
    )
    partition: Name | None = Field(default=None, description="By default the cluster's own.")
    account: Name | None = Field(default=None, description="Who pays.")
    qos: Name | None = Field(default=None, description="Quality of service.")
    constraint: Name | None = Field(default=None, description="Node features: h100&ib.")
    reservation: Name | None = Field(default=None, description="A reservation to run in.")
    exclude: list[Name] = Field(default=[], description="Nodes that no job may have.")
    segment: int | None = Field(
        default=None, ge=1, description="Nodes of one block that belong together (NVL72)."
    )
    options: list[Option] = Field(default=[], description="More options of sbatch, as they are.")
    node: Node = Field(description="What one node has.")
    limits: Limits = Field(default=Limits(), description="What one job may have at most.")
    time_limit: TimeLimit = Field(description="Of every job whose stage asks for no other.")
    exclusive: bool = Field(
        default=False, description="Whether jobs that spread over ranks get their nodes alone."
    )
    max_tasks: int | None = Field(
        default=None, ge=1, description="Tasks of one array that may run at one time."
    )
    resources: dict[str, Resources] = Field(
        default={},
        description="By kind of stage, what it asks for where the pipeline doesn't say:"
        " {pretrain: {nodes: 4, ntasks_per_node: 8}}.",
    )
    run_root: Line = Field(
        default="runs",
        description="Folder of all runs, shared by all nodes; ~ and $NAMES are filled in.",
    )
    python: Line | None = Field(
        default=None, description="The nodes' Python; by default the one that submits, or python3."
    )
    container: Container = Field(default=Container(), description="What the ranks run in.")
    modules: list[Name] = Field(default=[], description="Environment modules to load.")
    prolog: list[Line] = Field(default=[], description="Lines of bash to run before the ranks.")
    software: Software = Field(
        default=Software(), description="Versions that FP8 and fused kernels depend on."
    )
    environment: dict[Variable, str | int] = Field(
        default={}, description="Of every rank; wins over the network's preset."
    )
    network: Network = Field(default="none", description="The fabric between nodes: NCCL's preset.")
    secrets: list[SecretName] = Field(
        default=[], description="Variables passed on from whoever submits, by name alone."
    )
    secret_files: dict[SecretName, Line] = Field(
        default={}, description="Variables read in the job from files that nobody else can read."
    )
    launch: Literal["srun", "torchrun"] = Field(
        default="srun", description="Who starts ranks: srun, one task each; or torchrun on a node."
    )
    cpu_bind: Name | None = Field(
        default="cores", description="srun's --cpu-bind; null where the cluster binds by itself."
    )
    signal_seconds: int = Field(
        default=300,
        ge=30,
        le=65535,
        description="How long before its time limit a job is told to save: a step and a save.",
    )
    requeue: bool = Field(
        default=True,
        description="Whether a job goes on after its time limit, a lost node, or a crash that came"
        " further than the last one.",
    )
    chain: int | None = Field(
        default=None,
        ge=2,
        description="Of stages that spread over ranks: how many jobs are sent, each to go on where"
        " the one before was stopped, in place of one job that is requeued; they wait in the queue"
        " at one time.",
    )
    max_restarts: int = Field(
        default=10,
        ge=0,
        description="How often one job is started again after its time limit or a crash; what Slurm"
        " does by itself (a preemption, a lost node) doesn't count.",
    )
    watchdog_seconds: int | None = Field(
        default=1800,
        ge=5,
        description="A training step, a save, or a batch of an evaluation takes no longer: else the"
        " ranks write their stacks to their logs, and end; null: they may take any time.",
    )

    preflight: Preflight = Field(
        default=Preflight(), description="What nodes are asked before they work."
    )
    planning: Planning = Field(
        default=Planning(), description="For toolkit plan: prices, power, and measured constants."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Cluster:
        both = sorted(set(self.secrets) & (set(self.environment) | set(self.secret_files)))
        if both:
            raise ValueError(f"{both[0]} is a secret, and is given another way, too")
        if self.submit_with == "submitit" and self.launch == "torchrun":
            raise ValueError("submitit starts every rank itself: launch is srun then")
        if self.chain and self.submit_with == "submitit":
            raise ValueError("submitit requeues, and has no chains: submit_with: sbatch has")
        return self

    @field_validator("resources")
    @classmethod
    def _known_kinds(cls, resources: dict[str, Resources]) -> dict[str, Resources]:
        strange = [kind for kind in resources if kind not in stage_kinds()]
        if strange:
            raise ValueError(unknown("kind", strange[0], stage_kinds()))
        return resources

    @field_validator("environment")
    @classmethod
    def _no_secret(cls, environment: dict[str, str | int]) -> dict[str, str | int]:
        """Refuse what would stand in every script, and in ``scontrol show job``'s, too."""
        for name in environment:
            if SECRET.search(name):
                hint = "name it in secrets, or its file in secret_files"
                raise ValueError(f"{name} looks like a secret, and all may read scripts: {hint}")
        return environment

    def variables(self) -> dict[str, str]:
        """The environment that every rank gets; no secret is in it."""
        own = {name: str(value) for name, value in self.environment.items()}
        return PRESETS[self.network] | own

    def root(self) -> Path:
        """The folder of all runs.

        Raises:
            ToolkitError: it names a variable that is not set here.
        """
        text = os.path.expandvars(Path(self.run_root).expanduser())
        if "$" in text:
            hint = "set the variable, or give the folder with --run-dir"
            raise ToolkitError(f"run_root names what is not set here: {self.run_root}", hint=hint)
        return Path(text)


def load_cluster(name: str) -> tuple[Cluster, Source]:
    """A profile by the name of a shipped one, or by its path; and its source for messages.

    Raises:
        ConfigError: there is none, or it has mistakes: all of them, with file, line and key.
    """
    source = read_extended(_find(name))
    try:
        return Cluster.model_validate(source.data), source
    except ValidationError as error:
        raise ConfigError(
            sorted(problems_of(error, Cluster, source, ()), key=lambda p: p.line or 0)
        ) from None


def _find(name: str) -> Path:
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return Path(name)
    shipped = {p.stem: p for p in sorted(share("configs", "clusters").glob("*.yaml"))}
    if name not in shipped:
        message = unknown("cluster", name, shipped) + "; or the path of a .yaml file"
        raise ConfigError([Problem("--cluster", message)])
    return shipped[name]
