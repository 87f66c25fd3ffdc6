"""From a stage's file to the processes that pass its metrics on."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from toolkit.errors import ConfigError, ToolkitError
from toolkit.pipeline.loading import Loaded
from toolkit.pipeline.problems import unknown
from toolkit.pipeline.registry import stage_kinds
from toolkit.pipeline.run import read_run
from toolkit.pipeline.state import StageFile, locked, read_stage_file
from toolkit.tracking.config import Tracking, lacking
from toolkit.tracking.identity import run_id, where
from toolkit.tracking.job import End, Job
from toolkit.tracking.senders import Senders

logger = logging.getLogger(__name__)
PATIENCE = 600.0
"""Seconds that ``send_again`` waits for a stage's trackers."""
ENDS: dict[str, End] = {end: end for end in get_args(End)}


@dataclass(frozen=True)
class Sent:
    """What became of one stage's metrics in one tracker."""

    stage: str
    sink: str
    where: str
    whole: bool
    """Whether it has all of them now."""


def tracking_jobs(folder: Path, file: StageFile, versions: Mapping[str, str]) -> list[Job]:
    """What is to be sent of the stage in ``folder``, to each sink whose package is there.

    What is missing is said. Only the holder of the stage's lock may call this.

    Args:
        folder: the stage's folder, in which its run id is kept.
        file: its ``stage.yaml``.
        versions: of packages, to be recorded with the settings.

    Raises:
        ToolkitError: the run id is there, and can't be read.
    """
    if not file.tracking:
        return []
    tracking = Tracking.model_validate(file.tracking)
    sinks = tracking.sinks(trains=stage_kinds()[file.kind].spread == "ranks")
    missing = tracking.missing()
    for sink in missing:
        logger.error("%s; the stage goes on without it", lacking(sink))
    config = {
        **file.config,
        "seed": file.seed,
        "fingerprint": file.fingerprint,
        "versions": dict(versions),
    }
    return [
        Job(
            sink=sink,
            folder=folder,
            run_id=run_id(folder),
            stage=file.stage,
            kind=file.kind,
            settings=_settings(tracking, sink),
            config=config,
        )
        for sink in sinks
        if sink not in missing
    ]


def _settings(tracking: Tracking, sink: str) -> dict[str, Any]:
    found = tracking.model_dump(mode="json")[sink]
    return found if isinstance(found, dict) else {}


def start_senders(folder: Path, file: StageFile, versions: Mapping[str, str]) -> Senders:
    """Start what passes a stage's metrics on; what can't be started is said, and ends nothing."""
    try:
        return Senders(tracking_jobs(folder, file, versions))
    except (OSError, RuntimeError, ValueError, ToolkitError) as error:
        # No process or thread can be had, or the settings are of another version's.
        logger.error("metrics are not passed on: %s", error)
        return Senders([])


def send_again(run: Path, stage: str | None = None, online: bool = False) -> Iterator[Sent]:
    """Send what the trackers lack of a run's stages: after an outage, or from another network.

    A stage that runs is left to its own senders, and one that never began has nothing.

    Args:
        run: the run's folder.
        stage: this one alone.
        online: to W&B's server, whatever mode the stages ran in.

    Raises:
        ToolkitError: the folder is not a run's, or there is no such stage.
    """
    states = read_run(run)
    if stage is not None and stage not in states:
        raise ToolkitError(unknown("stage", stage, states), where=str(run))
    for name, state in states.items():
        folder = (run / name).resolve()
        file = read_stage_file(folder)
        end = ENDS.get(state.status)
        if stage in (None, name) and file is not None and end is not None:
            with locked(folder, "stage"):
                jobs = tracking_jobs(folder, _online(file) if online else file, state.versions)
                late = Senders(jobs).end(end, patience=PATIENCE)
            for job in jobs:
                yield Sent(name, job.sink, where(folder, job.sink), job.sink not in late)


def _online(file: StageFile) -> StageFile:
    wandb = file.tracking.get("wandb")
    if wandb is None:
        return file
    return replace(file, tracking=file.tracking | {"wandb": wandb | {"mode": "online"}})


def refuse_missing(loaded: Loaded) -> None:
    """Before a pipeline runs on this machine: have what its metrics are passed on with.

    Raises:
        ConfigError: a package is not installed, or MLflow's address is nowhere.
    """
    tracking, source = loaded.pipeline.tracking, loaded.source
    problems = [source.problem(("tracking", sink), lacking(sink)) for sink in tracking.missing()]
    mlflow = tracking.mlflow
    if mlflow and not mlflow.tracking_uri and not os.environ.get("MLFLOW_TRACKING_URI"):
        message = "has no tracking_uri, and MLFLOW_TRACKING_URI is not set"
        problems.append(source.problem(("tracking", "mlflow"), message))
    if problems:
        raise ConfigError(problems)
