"""What finished pretraining runs say: their speed, their memory, their loss."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from toolkit.artifacts import MANIFEST, read_artifact
from toolkit.errors import ToolkitError
from toolkit.megatron.config import PretrainConfig
from toolkit.pipeline.state import STAGE_FILE, read_stage_file, read_state
from toolkit.plan.describe import run_of
from toolkit.plan.hardware import Hardware
from toolkit.plan.memory import GIB, largest, memory_by_stage
from toolkit.plan.parameters import active_parameter_count, parameter_count
from toolkit.plan.scaling import Trained
from toolkit.plan.shape import Run
from toolkit.plan.throughput import Estimator
from toolkit.tracking import METRICS, read_metrics


@dataclass(frozen=True)
class Measured:
    """One finished pretraining stage."""

    folder: Path
    run: Run
    trained: Trained
    step_seconds: float
    """Median over the rows of metrics, the first left out."""
    memory_gib: float
    """The most that a rank's allocator had."""
    device: str


def read_measured(folder: Path) -> list[Measured]:
    """The finished pretraining stages of a run's folder, or the one whose folder it is.

    Raises:
        ToolkitError: there is none, or one can't be read.
    """
    places = [folder] if (folder / STAGE_FILE).is_file() else sorted(folder.glob(f"*/{STAGE_FILE}"))
    stages = [path if path == folder else path.parent for path in places]
    found = [_read(stage) for stage in stages if _is_finished_pretraining(stage)]
    if not found:
        hint = "the folder of a run (runs/NAME), or of one of its stages (runs/NAME/base)"
        raise ToolkitError("no finished pretrain stage", where=str(folder), hint=hint)
    return found


def _is_finished_pretraining(stage: Path) -> bool:
    file = read_stage_file(stage)
    made = (stage / "artifact" / MANIFEST).is_file()
    return file is not None and file.kind == "pretrain" and made


def _read(stage: Path) -> Measured:
    file = read_stage_file(stage)
    assert file is not None
    try:
        config = PretrainConfig.model_validate(file.config)
    except ValidationError as error:
        message = f"the settings of another version: {error.errors()[0]['msg']}"
        raise ToolkitError(message, where=str(stage / STAGE_FILE)) from None
    info = read_artifact(stage / "artifact").info
    timed = [row for row in read_metrics(stage) if "seconds_per_step" in row]
    if not timed:
        raise ToolkitError("no row has a time", where=str(stage / METRICS))
    world = int(info["layout"]["world_size"])
    run = run_of(config, world, _vocabulary(stage))
    idle = parameter_count(run.model) - active_parameter_count(run.model)
    trained = Trained(
        name=f"{stage.parent.name}/{stage.name}",
        parameters=int(info["parameters"]) - idle,
        tokens=int(info["consumed_samples"]) * config.sequence,
        loss=_loss(info, timed),
    )
    state = read_state(stage)
    return Measured(
        folder=stage,
        run=run,
        trained=trained,
        step_seconds=statistics.median(row["seconds_per_step"] for row in timed[1:] or timed),
        memory_gib=max(row.get("memory_gib", 0.0) for row in timed),
        device=str(state.attempts[-1].get("device", "cpu")) if state.attempts else "cpu",
    )


def _loss(info: Mapping[str, Any], rows: list[dict[str, Any]]) -> float:
    found = info.get("validation_loss", rows[-1].get("loss"))
    if found is None:
        raise ToolkitError("the last row has no loss, and nothing was evaluated")
    return float(found)


def _vocabulary(stage: Path) -> int:
    text = (stage / "artifact" / "model.json").read_text(encoding="utf-8")
    return int(json.loads(text)["vocab_size"])


@dataclass(frozen=True)
class Calibration:
    """What one run says of the constants."""

    measured: Measured
    estimated_seconds: float
    """With the constants as they were."""
    sustained: float
    """With which the estimate is what was measured."""
    estimated_gib: float
    """Of the fullest rank, without the margin: what the allocator has."""


LEAST, MOST = 0.02, 1.5
"""Sustained shares that are believed."""


def calibrate(measured: Measured, hardware: Hardware) -> Calibration:
    """Fit the sustained share, so that a run's step takes as long as it did.

    Raises:
        ToolkitError: the run was on CPUs, or no believable share explains it.
    """
    where = str(measured.folder)
    if measured.device == "cpu":
        raise ToolkitError("ran on CPUs, and the constants are of GPUs", where=where)

    def seconds(sustained: float) -> float:
        estimator = Estimator(run.model, run.precision, hardware.calibrated(sustained))
        return estimator.estimate(run.layout).step_seconds

    run, target = measured.run, measured.step_seconds
    low, high = LEAST, MOST
    if not seconds(high) <= target <= seconds(low):
        raise ToolkitError(
            f"a step took {target:.3g} s; with the most that the GPUs can do it takes"
            f" {seconds(high):.3g} s, and with {LEAST:.0%} of it {seconds(low):.3g} s",
            where=where,
            hint="is the cluster's profile that of the machine it ran on?",
        )
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if seconds(middle) > target else (low, middle)
    fullest = largest(memory_by_stage(run.model, run.layout, run.precision))
    return Calibration(
        measured=measured,
        estimated_seconds=seconds(hardware.tuning.sustained),
        sustained=round((low + high) / 2, 3),
        estimated_gib=(fullest.total - fullest.margin) / GIB,
    )
