"""``tracking:`` in a pipeline file: where metrics go besides ``metrics.jsonl``."""

from __future__ import annotations

import importlib.util
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from toolkit.stage import Settings

SinkName = Literal["wandb", "mlflow", "tensorboard"]
SCHEMES = ("http", "https", "file", "sqlite", "postgresql", "mysql", "mssql", "databricks")


def _valid_uri(text: str) -> str:
    """Refuse relative paths, which mean another folder on each node, and passwords."""
    scheme = re.match(r"([a-z]+)(\+[a-z0-9]+)?(:|$)", text)
    if scheme is None or scheme[1] not in SCHEMES or text in SCHEMES[:-1]:
        raise ValueError(f"must begin with one of {', '.join(s + ':' for s in SCHEMES)}")
    if re.match(r"[^/]*://[^/@]*@", text):
        raise ValueError(
            "holds a name or password: these come by MLFLOW_TRACKING_USERNAME and"
            " MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, in the environment"
        )
    return text


def _valid_base(text: str) -> str:
    if not re.fullmatch(r"https?://[^/@\s]+(/[^@\s]*)?", text):
        raise ValueError("must be a URL, http://HOST or https://HOST, without name or password")
    return text


class WandbSettings(Settings):
    """Weights & Biases; the key is WANDB_API_KEY in the environment, or in ~/.netrc."""

    project: str | None = Field(
        default=None, min_length=1, description="By default the pipeline's name."
    )
    entity: str | None = Field(
        default=None, min_length=1, description="Team or user; by default the key's own."
    )
    group: str | None = Field(
        default=None, min_length=1, description="By default the name of the run's folder."
    )
    tags: list[str] = Field(default=[], description="Tags of every stage's run.")
    mode: Literal["online", "offline", "disabled"] | None = Field(
        default=None,
        description="offline: into the stage's folder, for wandb sync; by default WANDB_MODE's, or"
        " online.",
    )
    base_url: Annotated[str, AfterValidator(_valid_base)] | None = Field(
        default=None, description="A server of one's own; by default WANDB_BASE_URL's, or W&B's."
    )


class MlflowSettings(Settings):
    """MLflow; tokens and passwords are MLFLOW_TRACKING_TOKEN and so on in the environment."""

    tracking_uri: Annotated[str, AfterValidator(_valid_uri)] | None = Field(
        default=None,
        description="https://HOST, or file:///FOLDER; by default MLFLOW_TRACKING_URI's.",
    )
    experiment_name: str | None = Field(
        default=None, min_length=1, description="By default the pipeline's name."
    )
    tags: dict[str, str] = Field(default={}, description="Tags of every stage's run.")


class Tracking(Settings):
    """Where metrics go besides each stage's ``metrics.jsonl``; shapes nothing that is made."""

    wandb: WandbSettings | None = Field(default=None, description="Weights & Biases; null: not.")
    mlflow: MlflowSettings | None = Field(default=None, description="MLflow; null: not.")
    tensorboard: bool | None = Field(
        default=None,
        description="Events in each stage's tensorboard/; by default of stages that train, where"
        " tensorboard is installed.",
    )

    def named(self, pipeline: str) -> Tracking:
        """With the pipeline's name where a project or an experiment has none."""
        wandb, mlflow = self.wandb, self.mlflow
        if wandb is not None and wandb.project is None:
            wandb = wandb.model_copy(update={"project": pipeline})
        if mlflow is not None and mlflow.experiment_name is None:
            mlflow = mlflow.model_copy(update={"experiment_name": pipeline})
        return self.model_copy(update={"wandb": wandb, "mlflow": mlflow})

    def sinks(self, *, trains: bool) -> list[SinkName]:
        """The sinks that a stage's metrics go to.

        Args:
            trains: whether the stage's kind has a curve to show.
        """
        chosen: list[SinkName] = []
        if self.wandb is not None and self.wandb.mode != "disabled":
            chosen.append("wandb")
        if self.mlflow is not None:
            chosen.append("mlflow")
        if self.tensorboard or (self.tensorboard is None and trains and installed("tensorboard")):
            chosen.append("tensorboard")
        return chosen

    def missing(self) -> list[SinkName]:
        """The sinks that were asked for and whose package is not installed here."""
        return [sink for sink in self.sinks(trains=False) if not installed(sink)]


EXTRA: dict[SinkName, str] = {"wandb": "track", "mlflow": "track", "tensorboard": "train"}
"""The optional dependencies that a sink's package comes with."""


def installed(package: str) -> bool:
    """Whether a package could be imported here; nothing is imported.

    A mere folder of that name is none: wandb leaves one wherever it was used.
    """
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def lacking(sink: SinkName) -> str:
    """What is wrong where a sink's package is not installed, and how to install it."""
    return (
        f"tracking.{sink} needs the package {sink}, which is not installed here"
        f" (pip install 'megatron-toolkit[{EXTRA[sink]}]')"
    )
