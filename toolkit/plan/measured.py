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
from toolkit.plan.parameters import active_parameter_count, parameter_count
from toolkit.plan.scaling import Trained
from toolkit.plan.shape import Run
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
    """The most that a rank's allocator had given out."""
    reserved_gib: float | None
    """The most that it had taken from the GPU; None where no row says it."""
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
        reserved_gib=max(
            (row["memory_reserved_gib"] for row in timed if "memory_reserved_gib" in row),
            default=None,
        ),
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
