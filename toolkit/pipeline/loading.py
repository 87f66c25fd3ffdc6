"""From a pipeline file, and overrides, to a typed pipeline; every mistake at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from toolkit.errors import ConfigError, Problem
from toolkit.pipeline.graph import Graph, build_graph
from toolkit.pipeline.problems import nearest, problems_of, unknown
from toolkit.pipeline.registry import stage_kinds
from toolkit.pipeline.schema import STAGE_NAME, Header, Pipeline, model_presets
from toolkit.pipeline.source import Key, Source, apply_override, fill_in, overlay, read_yaml
from toolkit.stage import StageConfig


@dataclass(frozen=True)
class Loaded:
    """A valid pipeline, its graph, and the source for later messages about it."""

    pipeline: Pipeline
    graph: Graph
    source: Source


Check = Callable[[str, StageConfig, Source], Iterable[Problem]]


def load_pipeline(
    file: Path,
    overrides: Sequence[str] = (),
    check: Check = lambda *_: (),
    resources: Mapping[str, Source] = MappingProxyType({}),
    *,
    inputs: bool = True,
) -> Loaded:
    """Read, extend, override and validate a pipeline file.

    Args:
        file: the YAML file.
        overrides: ``key=value`` texts, applied last, typed by the same schema.
        check: says what else is wrong with a stage whose settings are valid; its problems are
            reported together with the others.
        resources: by kind of stage, what is asked for where a stage's own ``resources`` is silent.
        inputs: whether the paths that it names must be here; without them nothing can run.

    Raises:
        ConfigError: with every mistake that can be found without running anything.
    """
    source = read_extended(file)
    if not isinstance(source.data, dict) or not source.data:
        raise ConfigError([Problem("(file)", "must be a mapping with name and stages", file)])
    for text in overrides:
        apply_override(source, text)
    header, problems = _header(source)
    problems += _with_presets(source)
    _with_resources(source, resources)
    stages, stage_problems = _stages(source)
    problems += stage_problems
    graph = build_graph(stages, source)
    problems += graph.problems + (graph.absent if inputs else [])
    for name, config in stages.items():
        problems += check(name, config, source)
    if problems or header is None:
        problems = _without_echoes(problems)
        raise ConfigError(sorted(problems, key=lambda p: (str(p.file), p.line or 0)))
    pipeline = Pipeline(header.name, header.seed, stages, file, header.tracking)
    return Loaded(pipeline, graph, source)


def _without_echoes(problems: list[Problem]) -> list[Problem]:
    """Without the settings that are missing only because their preset is unknown."""
    broken = [p.key.removesuffix("preset") for p in problems if p.key.endswith(".model.preset")]
    return [p for p in problems if p.key.endswith("preset") or not p.key.startswith(tuple(broken))]


def read_extended(file: Path, above: tuple[Path, ...] = ()) -> Source:
    """Read a file and what it extends, through any number of steps.

    Raises:
        ConfigError: a file is missing, or is not valid YAML, or extends itself.
    """
    source = read_yaml(file)
    base = source.data.pop("extends", None) if isinstance(source.data, dict) else None
    if base is None:
        return source
    if not isinstance(base, str):
        raise ConfigError([source.problem(("extends",), "must be the path of a YAML file")])
    target = file.parent / base
    seen = (*above, file.resolve())
    if target.resolve() in seen:
        raise ConfigError([source.problem(("extends",), f"{base} extends this file in turn")])
    if not target.is_file():
        raise ConfigError([source.problem(("extends",), f"no such file: {target}")])
    return overlay(read_extended(target, seen), source)


def _header(source: Source) -> tuple[Header | None, list[Problem]]:
    try:
        return Header.model_validate(source.data), []
    except ValidationError as error:
        return None, problems_of(error, Header, source, ())


def _with_presets(source: Source) -> list[Problem]:
    """Fill in each stage's ``model: {preset: NAME, ...}`` from the preset, in place."""
    problems: list[Problem] = []
    raw = source.data.get("stages")
    for name, stage in raw.items() if isinstance(raw, dict) else ():
        model = stage.get("model") if isinstance(stage, dict) else None
        if not isinstance(model, dict) or "preset" not in model:
            continue
        key: Key = ("stages", name, "model")
        preset, problem = _preset(source, (*key, "preset"), model.pop("preset"))
        if problem is not None:
            problems.append(problem)
        if preset is not None:
            fill_in(source, key, preset)
    return problems


def _with_resources(source: Source, resources: Mapping[str, Source]) -> None:
    """Fill in what stages ask of a cluster from its own word for their kind, in place."""
    raw = source.data.get("stages")
    for name, stage in raw.items() if isinstance(raw, dict) else ():
        defaults = resources.get(str(stage.get("kind"))) if isinstance(stage, dict) else None
        if defaults is not None and isinstance(stage.setdefault("resources", {}), dict):
            fill_in(source, ("stages", name, "resources"), defaults)


def _preset(source: Source, key: Key, name: Any) -> tuple[Source | None, Problem | None]:
    presets = model_presets()
    if isinstance(name, str) and name in presets:
        found = presets[name]
    elif isinstance(name, str) and name.endswith((".yaml", ".yml")):
        where = source.place(key)
        found = (where.file.parent if where and where.line else Path.cwd()) / name
    else:
        message = unknown("preset", str(name), presets) + "; or the path of a .yaml file"
        return None, source.problem(key, message)
    preset = read_yaml(found)
    if not isinstance(preset.data, dict):
        return None, source.problem(key, f"{found} must be a mapping of model settings")
    return preset, None


def _stages(source: Source) -> tuple[dict[str, StageConfig], list[Problem]]:
    stages: dict[str, StageConfig] = {}
    problems: list[Problem] = []
    raw = source.data.get("stages")
    for name, settings in raw.items() if isinstance(raw, dict) else ():
        key: Key = ("stages", name)
        if not isinstance(settings, dict):
            continue  # the header's check has said so
        if not re.match(STAGE_NAME, name):
            message = "a stage's name is lower-case letters, digits, '-' and '_' (it is a folder)"
            problems.append(source.problem(key, message))
        kind = settings.get("kind")
        if kind is None:
            near = nearest(name, [other for other in raw if other != name])
            meant = f"; {near}" if near and len(settings) < 2 else ""
            valid = ", ".join(stage_kinds())
            problems.append(source.problem(key, f"has no kind{meant} (valid: {valid})"))
        elif not isinstance(kind, str) or kind not in stage_kinds():
            message = unknown("kind", str(kind), stage_kinds())
            problems.append(source.problem((*key, "kind"), message))
        else:
            config, found = _stage(source, key, settings, stage_kinds()[kind].config)
            problems += found
            if config is not None:
                stages[name] = config
    return stages, problems


def _stage(
    source: Source, key: Key, settings: dict[str, Any], model: type[StageConfig]
) -> tuple[StageConfig | None, list[Problem]]:
    try:
        return model.model_validate(settings), []
    except ValidationError as error:
        return None, problems_of(error, model, source, key)
