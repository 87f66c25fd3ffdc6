"""Reads a run folder, whole or partial, into what the page shows.

Everything but the folder itself may be missing: a run that failed at its first stage, or is
still going, has a report too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from toolkit.artifacts import MANIFEST
from toolkit.errors import ToolkitError
from toolkit.pipeline.registry import stage_kinds
from toolkit.pipeline.run import PIPELINE_FILE
from toolkit.pipeline.state import STAGE_FILE, StageState, read_state
from toolkit.stage import references
from toolkit.tracking import read_metrics
from toolkit.tracking.identity import links

PENDING, RUNNING, COMPLETE = "pending", "running", "complete"
FAILED, INTERRUPTED = "failed", "interrupted"
WORST_FIRST = (FAILED, INTERRUPTED, RUNNING, PENDING, COMPLETE)
TAIL_LINES, TAIL_BYTES = 20, 16_384


@dataclass(frozen=True)
class StageView:
    """One stage as its folder tells it."""

    name: str
    kind: str
    folder: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    state: StageState = field(default_factory=StageState)
    manifest: Mapping[str, Any] = field(default_factory=dict)
    """``artifact.json``; empty until the stage is complete."""
    metrics: tuple[Mapping[str, Any], ...] = ()
    parents: tuple[str, ...] = ()
    """Names of the stages whose artifacts it takes."""
    references: tuple[str, ...] = ()
    """All that it takes, as the settings name it: stages, paths, ``sample:`` names."""
    log_tail: str = ""
    """The last lines of its log, of a stage that failed."""
    problems: tuple[str, ...] = ()
    """Files of it that are there and can't be read."""

    @property
    def info(self) -> Mapping[str, Any]:
        """What the stage says of its artifact."""
        return mapping(self.manifest.get("info"))

    @property
    def fingerprint(self) -> str:
        """The stage's fingerprint, empty before it started."""
        return self.state.fingerprint or str(self.manifest.get("fingerprint") or "")

    @property
    def links(self) -> Mapping[str, str]:
        """Its pages in W&B and MLflow, by tracker."""
        return links(self.folder)

    @property
    def versions(self) -> Mapping[str, str]:
        """Packages that it ran with."""
        return mapping(self.manifest.get("versions")) or self.state.versions


@dataclass(frozen=True)
class RunView:
    """A run: its pipeline and its stages, in the pipeline's order."""

    name: str
    folder: Path
    seed: int | None
    stages: tuple[StageView, ...]
    problems: tuple[str, ...] = ()

    @property
    def status(self) -> str:
        """The status of its stages that most needs a look."""
        found = {stage.state.status for stage in self.stages}
        return next(s for s in WORST_FIRST if s in found)

    @property
    def started(self) -> datetime | None:
        """The first attempt's start."""
        times = [
            t for s in self.stages for a in s.state.attempts if (t := moment(a.get("started")))
        ]
        return min(times, default=None)

    @property
    def ended(self) -> datetime | None:
        """The last attempt's end."""
        times = [t for s in self.stages for a in s.state.attempts if (t := moment(a.get("ended")))]
        return max(times, default=None)

    @property
    def seconds(self) -> float:
        """The stages' times, summed."""
        return sum(stage.state.seconds for stage in self.stages)


def read_run(folder: Path) -> RunView:
    """Read a run folder.

    Raises:
        ToolkitError: there is no such folder, or it is not one of a run.
    """
    if not folder.is_dir():
        raise ToolkitError("no such run folder", where=str(folder))
    pipeline, problem = _read(folder / PIPELINE_FILE)
    planned = mapping(pipeline.get("stages"))
    found = {p.parent.name for p in folder.glob(f"*/{STAGE_FILE}")}
    if not planned and not found:
        raise ToolkitError(
            "not a run folder: no stages in pipeline.yaml, and no STAGE/stage.yaml",
            where=str(folder),
            hint="`toolkit run FILE` makes one under runs/NAME",
        )
    names = [*planned, *sorted(found - set(planned))]
    stages = tuple(_read_stage(folder / name, mapping(planned.get(name)), names) for name in names)
    seed = pipeline.get("seed")
    return RunView(
        name=str(pipeline.get("name") or folder.resolve().name),
        folder=folder,
        seed=seed if isinstance(seed, int) else None,
        stages=stages,
        problems=(problem,) if problem else (),
    )


def mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def moment(value: Any) -> datetime | None:
    """A time as it was recorded: ISO 8601, or seconds since 1970."""
    if isinstance(value, (int, float)):
        return datetime.fromtimestamp(value, UTC)
    try:
        found = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _read_stage(folder: Path, planned: Mapping[str, Any], names: list[str]) -> StageView:
    stage, problem = _read(folder / STAGE_FILE)
    manifest, manifest_problem = _read(folder / "artifact" / MANIFEST)
    state, state_problem = _read_state(folder)
    kind = str(stage.get("kind") or planned.get("kind") or "?")
    config = mapping(stage.get("config")) or planned
    inputs = {k: mapping(v) for k, v in mapping(stage.get("inputs")).items()}
    needed = tuple(dict.fromkeys([*inputs, *_references(kind, config)]))
    return StageView(
        name=folder.name,
        kind=kind,
        folder=folder,
        config=config,
        inputs=inputs,
        state=state,
        manifest=manifest,
        metrics=tuple(read_metrics(folder)),
        parents=tuple(n for n in needed if n in names and n != folder.name),
        references=needed,
        log_tail=_tail(folder) if state.status in (FAILED, INTERRUPTED) else "",
        problems=tuple(p for p in (problem, state_problem, manifest_problem) if p),
    )


def _read_state(folder: Path) -> tuple[StageState, str]:
    try:
        return read_state(folder), ""
    except ToolkitError as error:
        return StageState(), str(error)


def _references(kind: str, config: Mapping[str, Any]) -> list[str]:
    """What a stage's settings name, in their order."""
    known = stage_kinds().get(kind)
    if known is None:
        return []
    try:
        settings = known.config.model_validate(dict(config))
    except ValidationError:
        return []
    return [value for _, value, _ in references(settings)]


def _read(path: Path) -> tuple[Mapping[str, Any], str]:
    """A YAML or JSON file's mapping, and what is wrong with it, if it is there."""
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except FileNotFoundError:
        return {}, ""
    except (OSError, ValueError, yaml.YAMLError) as error:
        return {}, f"{path.name} can't be read: {error}"
    return mapping(found), ""


def _tail(folder: Path) -> str:
    """The last lines of the failed rank's log, or of the newest one; no progress bars."""
    logs = {path.stem: path for path in (folder / "logs").glob("*") if path.is_file()}
    failed = [logs[path.stem] for path in folder.glob("errors/*.json") if path.stem in logs]
    if not logs:
        return ""
    newest = min(failed or logs.values(), key=lambda path: -path.stat().st_mtime)
    with newest.open("rb") as stream:
        stream.seek(max(0, newest.stat().st_size - TAIL_BYTES))
        text = stream.read().decode("utf-8", errors="replace")
    lines = [line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n")]
    return "\n".join([line for line in lines if line.strip()][-TAIL_LINES:])
