"""A run: one execution of a pipeline in a folder, and what is to be done in it, stage by stage."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import yaml

from toolkit.artifacts import MANIFEST, read_artifact, stat_fingerprint, write_text
from toolkit.data.sources import local_path
from toolkit.errors import ConfigError, Problem, ToolkitError
from toolkit.pipeline.graph import matches
from toolkit.pipeline.loading import Loaded
from toolkit.pipeline.problems import unknown
from toolkit.pipeline.source import COMMAND_LINE
from toolkit.pipeline.state import (
    REMOTE,
    SAMPLE,
    StageFile,
    StageState,
    changed_keys,
    fingerprint,
    input_digests,
    locked,
    made_again,
    operational,
    read_stage_file,
    read_state,
)
from toolkit.stage import SAMPLE_PREFIX, StageConfig, references

PIPELINE_FILE = "pipeline.yaml"
ASIDE = ".old"
SAMPLES_OF = f"python-{platform.python_version()}"
"""Sample data is made from the interpreter's own library: another version has other data."""
Action = Literal["skip", "start", "resume"]


@dataclass(frozen=True)
class Task:
    """One stage of a run, and what is to be done with it."""

    name: str
    folder: Path
    config: StageConfig
    file: StageFile
    action: Action


@dataclass(frozen=True)
class Run:
    """A run's folder and its stages in order of work."""

    folder: Path
    tasks: tuple[Task, ...]


def plan_run(loaded: Loaded, folder: Path, *, only: Sequence[str] = (), fresh: bool = False) -> Run:
    """Decide what each stage needs: to be skipped, started, or resumed. Nothing is changed on
    disk, but for folders that ``fresh`` moves aside.

    Args:
        loaded: the pipeline.
        folder: the run's folder; need not exist.
        only: the stages to work on; all by default. What they need must be complete.
        fresh: move aside the folders of stages whose settings changed; with ``only``, of these.

    Raises:
        ConfigError: ``only`` names something else than a stage.
        ToolkitError: a stage's folder holds other work, or something needed is not complete.
    """
    _check_only(loaded, only)
    chosen = [name for name in loaded.graph.order if not only or name in only]
    files = _resolve(loaded)
    refusals: dict[str, list[str]] = {}
    tasks, moved = [], []
    stale: set[str] = set()
    for name in chosen:
        config = loaded.pipeline.stages[name]
        action, changes = _decide(folder / name, files[name], config)
        if action != "start":
            changes = [f"inputs.{n}: is stale" for n in loaded.graph.needs[name] if n in stale]
        if changes:
            stale.add(name)
        if fresh and (changes or only) and (folder / name).exists():
            moved.append(folder / name)
            action, changes = "start", []
        if changes:
            refusals[name] = changes
        tasks.append(Task(name, folder / name, config, files[name], action))
    if refusals:
        raise _refusal(folder, refusals)
    _check_needs(loaded, folder, chosen, files)
    for path in moved:
        move_aside(path)
    return Run(folder, tuple(tasks))


def fresh_tasks(loaded: Loaded, folder: Path) -> list[Task]:
    """Every stage as it would be started in an empty folder, whatever ``folder`` holds."""
    files = _resolve(loaded)
    stages = loaded.pipeline.stages
    return [Task(n, folder / n, stages[n], files[n], "start") for n in loaded.graph.order]


def _check_only(loaded: Loaded, only: Sequence[str]) -> None:
    names = list(loaded.pipeline.stages)
    wrong = [name for name in only if name not in names]
    if wrong:
        raise ConfigError(
            [Problem("--only", unknown("stage", w, names), COMMAND_LINE) for w in wrong]
        )


def _resolve(loaded: Loaded) -> dict[str, StageFile]:
    """Each stage with its paths absolute, its inputs found, and its fingerprint."""
    files: dict[str, StageFile] = {}
    tracking = loaded.pipeline.tracking.named(loaded.pipeline.name).model_dump(mode="json")
    for name in loaded.graph.order:
        config = loaded.pipeline.stages[name]
        outside = loaded.graph.outside[name]
        inputs: dict[str, dict[str, str]] = {}
        for need in loaded.graph.needs[name]:
            inputs[need] = {
                "folder": os.path.join("..", need, "artifact"),  # noqa: PTH118 - stays relative
                "type": loaded.pipeline.stages[need].artifact_type(),
                "fingerprint": files[need].fingerprint,
            }
        marks = {value: mark for _, value, mark in references(config)}
        for reference, path in outside.items():
            inputs[str(path)] = _outside_input(path, marks[reference].files)
        for reference in marks:
            if reference.startswith(SAMPLE_PREFIX):
                inputs[reference] = {"folder": "", "type": SAMPLE, "fingerprint": SAMPLES_OF}
        named = loaded.graph.names[name]
        for reference in named.values():
            inputs[reference] = _named_input(reference)
        resolved = _with_paths(config, {**outside, **named})
        seed = loaded.pipeline.seed
        prints = {reference: i["fingerprint"] for reference, i in inputs.items()}
        files[name] = StageFile(
            stage=name,
            kind=config.kind,
            fingerprint=fingerprint(resolved, seed, prints),
            seed=seed,
            config=resolved.model_dump(mode="json"),
            inputs=inputs,
            tracking=tracking,
        )
    return files


def _outside_input(path: Path, files: bool) -> dict[str, str]:
    """An input that no stage of this pipeline makes."""
    if not files or (path / MANIFEST).is_file():
        artifact = read_artifact(path)
        return {"folder": str(path), "type": artifact.type, "fingerprint": artifact.fingerprint}
    return {"folder": str(path), "type": "files", "fingerprint": stat_fingerprint(matches(path))}


def _named_input(name: str) -> dict[str, str]:
    """Data that an ``hf:`` name or a URL names: on this machine, or what a server has."""
    path = local_path(name)
    if path is None:
        return {"folder": "", "type": REMOTE, "fingerprint": name}
    return {"folder": str(path), "type": "files", "fingerprint": stat_fingerprint(matches(path))}


def _with_paths(config: StageConfig, outside: Mapping[str, Path | str]) -> StageConfig:
    """The settings with every outside reference as an absolute path."""
    if not outside:
        return config
    raw = config.model_dump()
    for key, value, _ in references(config):
        if value in outside:
            holder: Any = raw
            for part in key[:-1]:
                holder = holder[part]
            holder[key[-1]] = str(outside[value])
    return type(config).model_validate(raw)


def _decide(folder: Path, file: StageFile, config: StageConfig) -> tuple[Action, list[str]]:
    """What to do with a stage, or the changes for which it is refused."""
    try:
        old, state = read_stage_file(folder), read_state(folder)
    except ToolkitError as error:
        return "start", [str(error)]
    if old is None:
        return "start", []
    if old.fingerprint != file.fingerprint:
        changes = changed_keys(old, file, operational(config))
        return "start", changes or ["the fingerprint (made by another version of toolkit)"]
    again = made_again(state, input_digests(folder, file))
    if again:
        return "start", [f"inputs.{name}: was made again since" for name in again]
    return ("skip" if state.status == "complete" else "resume"), []


def _refusal(folder: Path, refusals: Mapping[str, list[str]]) -> ToolkitError:
    lines = []
    for name, changes in refusals.items():
        lines.append(f"  {name}:")
        own = [c for c in changes if c.partition(":")[0].removeprefix("inputs.") not in refusals]
        lines += [f"    {change}" for change in own or ["follows from the stages above"]]
    names = " ".join(refusals)
    return ToolkitError(
        "these stages were made, or begun, with other settings:\n" + "\n".join(lines),
        where=str(folder),
        hint=f"--fresh moves the old folders ({names}) to {folder / ASIDE} and makes them anew; "
        "--run-dir DIR starts another run beside this one",
    )


def _check_needs(
    loaded: Loaded, folder: Path, chosen: Sequence[str], files: Mapping[str, StageFile]
) -> None:
    """With ``--only``, what the chosen stages take must be there already, and be what it says."""
    for name in chosen:
        for need in loaded.graph.needs[name]:
            if need in chosen:
                continue
            old = read_stage_file(folder / need)
            status: str = read_state(folder / need).status
            if old is not None and old.fingerprint != files[need].fingerprint:
                status = "of other settings than the file's"
            if status != "complete":
                raise ToolkitError(
                    f"stage {name!r} needs {need!r}, which is {status}",
                    where=str(folder / need),
                    hint=f"add --only {need}, or leave --only away",
                )


def move_aside(folder: Path) -> Path:
    """Move a stage's folder to the run's ``.old``, under a name with the time.

    Raises:
        BusyError: a worker, of a launcher that was killed perhaps, still writes in it.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    target = folder.parent / ASIDE / f"{folder.name}-{stamp}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder, "stage"):
        shutil.move(folder, target)
    return target


def make_folder(folder: Path) -> Path:
    """Make a run's folder.

    Raises:
        ToolkitError: it can't be made, or can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"can't make the run's folder: {error.strerror}"
        raise ToolkitError(message, where=str(folder)) from error
    if not os.access(folder, os.W_OK):
        hint = "choose another one with --run-dir"
        raise ToolkitError("the run's folder is read-only", where=str(folder), hint=hint)
    return folder


def write_run(loaded: Loaded, run: Run) -> None:
    """Write the resolved pipeline into the run's folder, for status, report, and a later reader."""
    pipeline = loaded.pipeline
    stages = {n: c.model_dump(mode="json") for n, c in pipeline.stages.items()}
    tracking = pipeline.tracking.model_dump(mode="json")
    record = {"name": pipeline.name, "seed": pipeline.seed, "tracking": tracking, "stages": stages}
    text = yaml.safe_dump(record, sort_keys=False, allow_unicode=True)
    write_text(run.folder / PIPELINE_FILE, "# The resolved pipeline: written by toolkit.\n" + text)


def read_run(folder: Path) -> dict[str, StageState]:
    """The state of every stage of a run's folder, in the pipeline's order.

    Raises:
        ToolkitError: the folder is not a run's.
    """
    path = folder / PIPELINE_FILE
    if not path.is_file():
        hint = "give the folder that toolkit run wrote to, such as runs/mini"
        raise ToolkitError(
            "not a run's folder: it has no pipeline.yaml", where=str(folder), hint=hint
        )
    try:
        stages = yaml.safe_load(path.read_text(encoding="utf-8"))["stages"]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise ToolkitError(f"not a readable pipeline file: {error}", where=str(path)) from error
    return {name: read_state(folder / name) for name in stages}
