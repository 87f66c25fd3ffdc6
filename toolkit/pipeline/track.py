"""From a stage's file to the processes that pass its metrics on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.errors import ToolkitError
from toolkit.pipeline.registry import stage_kinds
from toolkit.pipeline.state import StageFile
from toolkit.tracking.config import Tracking, lacking
from toolkit.tracking.identity import run_id
from toolkit.tracking.job import Job
from toolkit.tracking.senders import Senders

logger = logging.getLogger(__name__)


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
    except (OSError, ToolkitError) as error:
        logger.error("metrics are not passed on: %s", error)
        return Senders([])


def tracking_notes(tracking: Tracking) -> list[str]:
    """What this machine lacks of what a pipeline asks; the one that runs it may have it."""
    return [lacking(sink) for sink in tracking.missing()]
