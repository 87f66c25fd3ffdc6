"""What every stage kind is made of: typed settings, references to artifacts, and a registry entry.

A domain folder's ``config.py`` holds the settings (pydantic, no torch) and a ``STAGES`` tuple; the
heavy function is named as ``"module:function"`` and imported by the worker alone.
"""

from __future__ import annotations

import importlib
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from toolkit.artifacts import ArtifactType
from toolkit.errors import ToolkitError
from toolkit.quantities import Memory, Name, TimeLimit

SAMPLE_PREFIX = "sample:"
FINISH = "finish"
"""The last phase of a sharded stage: one task, which publishes."""


class Settings(BaseModel):
    """Strict settings: unknown keys are refused, ``"3"`` is not an int, values can't be changed."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        protected_namespaces=(),
        validate_default=False,
        defer_build=True,
    )


@dataclass(frozen=True)
class Reference:
    """Marks a string setting that names an artifact: ``Annotated[str, Reference("tokenizer")]``.

    The value is the name of another stage, or a path; with ``samples``, also a name of data.
    A reference without types takes files alone (paths and globs), not artifacts.
    """

    types: tuple[ArtifactType, ...] = ()
    files: bool = False
    """Whether the path may be a plain file, folder or glob rather than an artifact's folder."""
    samples: bool = False
    """Whether names of data are accepted: ``sample:python-docs``, ``hf:`` names, and URLs."""

    @classmethod
    def to(cls, *artifact_types: ArtifactType) -> Reference:
        """A reference to an artifact of one of these types."""
        return cls(types=artifact_types)

    @classmethod
    def to_data(cls, *artifact_types: ArtifactType) -> Reference:
        """A reference to files, a name of data, or an artifact of one of these types."""
        return cls(types=artifact_types, files=True, samples=True)


@dataclass(frozen=True)
class Operational:
    """Marks a setting that changes how a stage runs, but not what it makes.

    ``Annotated[int, Operational()]``: such settings (the parallel layout, how often to save) are
    left out of the fingerprint, so that a run may be resumed with other values.
    """


class Resources(Settings):
    """What one stage asks of the cluster. Ranks = ``nodes`` x ``ntasks_per_node``, one per GPU."""

    nodes: Annotated[int, Field(ge=1)] = 1
    ntasks_per_node: Annotated[
        int | None,
        Field(ge=1, description="Ranks on each node; by default what the layout needs at least."),
    ] = None
    cpus_per_task: Annotated[
        int | None,
        Operational(),
        Field(ge=1, description="CPU cores (and OMP threads) of each rank."),
    ] = None
    gpus_per_node: Annotated[
        int | None,
        Operational(),
        Field(ge=0, description="GPUs on each node; by default one per rank where GPUs are used."),
    ] = None
    memory_per_node: Annotated[
        Memory | None,
        Operational(),
        Field(description="Memory on each node, such as 64G; by default the cores' share of it."),
    ] = None
    exclusive: Annotated[
        bool | None, Operational(), Field(description="Whether its nodes are given to it alone.")
    ] = None
    time_limit: Annotated[
        TimeLimit | None,
        Operational(),
        Field(description="When a cluster may end a job: 4:00:00, or 2-12:00:00 with days."),
    ] = None
    partition: Annotated[
        Name | None, Operational(), Field(description="Slurm partition, in place of the cluster's.")
    ] = None
    qos: Annotated[
        Name | None, Operational(), Field(description="Slurm QOS, in place of the cluster's.")
    ] = None
    constraint: Annotated[
        Name | None, Operational(), Field(description="Slurm node features, such as h100&ib.")
    ] = None
    chain: Annotated[
        int | None,
        Operational(),
        Field(
            ge=1,
            description="How many jobs are sent, each to go on where the one before was stopped;"
            " 1: one job, in place of the cluster's chain.",
        ),
    ] = None
    max_tasks: Annotated[
        int | None,
        Operational(),
        Field(ge=1, description="Of a sharded stage: how many of its tasks may run at one time."),
    ] = None


class StageConfig(Settings):
    """The settings that every stage has."""

    kind: str
    resources: Annotated[Resources, Operational()] = Resources()

    def artifact_type(self) -> ArtifactType:
        """The type of the artifact that this stage makes with these settings."""
        raise NotImplementedError

    def minimum_ranks(self) -> int:
        """The smallest world size that these settings allow."""
        return 1

    def phases(self) -> tuple[str, ...]:
        """Of a sharded stage: what is done one after another, each by all ranks.

        A single task named ``finish`` comes behind them and publishes the artifact.
        """
        return ("work",)

    def world_size(self) -> int:
        """Ranks this stage runs on: what ``resources`` asks, or the least that it needs."""
        per_node = self.resources.ntasks_per_node
        if per_node is None:
            per_node = max(1, -(-self.minimum_ranks() // self.resources.nodes))
        return self.resources.nodes * per_node


Spread = Literal["process", "ranks", "shards"]


@dataclass(frozen=True)
class StageKind:
    """A kind of stage: what a pipeline file may say after ``kind:``."""

    name: str
    config: type[StageConfig]
    run: str
    """``"module:function"``; the function takes ``(config, context)`` and returns an Artifact."""
    summary: str
    """One line for the help text and the README's table."""
    spread: Spread = "process"
    """``process``: one; ``ranks``: one per GPU with a rendezvous; ``shards``: an array of tasks
    for each of ``StageConfig.phases``, which need not run at one time, and a last task."""
    extras: tuple[str, ...] = field(default=("data", "train"))
    """The optional dependencies it needs, as in ``pip install megatron-toolkit[train]``."""
    gpus: bool = False
    """Whether it uses a GPU where there is one; a kind that spreads over ranks does in any case."""

    @property
    def uses_gpus(self) -> bool:
        """Whether each of its ranks wants a GPU."""
        return self.gpus or self.spread == "ranks"

    def load(self) -> Callable[..., Any]:
        """Import the function that runs this kind; heavy.

        Raises:
            ToolkitError: a package of the kind's extras is not installed here.
        """
        name, _, function = self.run.partition(":")
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if (error.name or "toolkit").partition(".")[0] == "toolkit":
                raise
            extras = ",".join(self.extras)
            raise ToolkitError(
                f"{self.name} needs the package {error.name}, which is not installed here",
                hint=f"in the checkout: pip install -c constraints.txt -e '.[{extras}]'",
            ) from error
        return typing.cast("Callable[..., Any]", getattr(module, function))


Found = tuple[tuple[str | int, ...], str, Reference]
"""A reference in settings: the path to the setting, its value, and what it may name."""


def references(config: BaseModel) -> Iterator[Found]:
    """Every reference that a config holds."""
    model = type(config)  # not dict(config): a setting called ``keys`` would hide its method
    yield from raw_references(model, {name: getattr(config, name) for name in model.model_fields})


def raw_references(model: type[BaseModel], values: Mapping[str, Any]) -> Iterator[Found]:
    """Every reference in settings that have not been validated, and may not be valid."""
    for name, info in model.model_fields.items():
        marks = [m for m in info.metadata if isinstance(m, Reference)]
        annotation: Any = Annotated[info.annotation, marks[0]] if marks else info.annotation
        for path, value, mark in _walk(annotation, values.get(name)):
            yield (name, *path), value, mark


def _walk(annotation: Any, value: Any) -> Iterator[Found]:
    if isinstance(value, BaseModel):
        yield from references(value)
    elif isinstance(value, Mapping):
        for model in _models(annotation):
            yield from raw_references(model, value)
    elif isinstance(value, str):
        mark = _mark(annotation)
        if mark is not None:
            yield (), value, mark
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            for inner in _arguments(annotation):
                for path, text, mark in _walk(inner, item):
                    yield (index, *path), text, mark


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The settings classes in an annotation, through unions and ``Annotated``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) in (Annotated, typing.Union, types.UnionType):
        for inner in typing.get_args(annotation):
            yield from _models(inner)


def _mark(annotation: Any) -> Reference | None:
    """The Reference in an annotation such as ``Annotated[str, Reference(...)] | None``."""
    if typing.get_origin(annotation) is Annotated:
        inner, *marks = typing.get_args(annotation)
        found = next((m for m in marks if isinstance(m, Reference)), None)
        return found or _mark(inner)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next((m for a in typing.get_args(annotation) if (m := _mark(a))), None)
    return None


def _arguments(annotation: Any) -> Iterator[Any]:
    """The item types of a list annotation, through unions and ``Annotated``."""
    origin = typing.get_origin(annotation)
    if origin in (list, tuple):
        yield typing.get_args(annotation)[0]
    elif origin is Annotated:
        yield from _arguments(typing.get_args(annotation)[0])
    elif origin in (typing.Union, types.UnionType):
        for choice in typing.get_args(annotation):
            yield from _arguments(choice)
