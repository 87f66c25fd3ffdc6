"""The graph that references between stages make: typed, without cycles, in an order to work in."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.artifacts import MANIFEST, read_artifact
from toolkit.data.samples import HELD_OUT, SAMPLES
from toolkit.data.sources import absolute_name, is_named, name_problem, path_problem
from toolkit.errors import Problem, ToolkitError
from toolkit.pipeline.problems import nearest
from toolkit.pipeline.registry import stage_kinds
from toolkit.pipeline.source import COMMAND_LINE, Key, Source, plain
from toolkit.stage import (
    SAMPLE_PREFIX,
    Found,
    Reference,
    StageConfig,
    raw_references,
    references,
)


@dataclass
class Graph:
    """Which stage needs which, and what comes from outside."""

    order: list[str] = field(default_factory=list)
    """Every stage after the ones it needs; otherwise as in the file."""
    needs: dict[str, list[str]] = field(default_factory=dict)
    """For each stage, the stages whose artifacts it takes."""
    outside: dict[str, dict[str, Path]] = field(default_factory=dict)
    """For each stage, the references that are paths, and where those lie (globs as they are)."""
    names: dict[str, dict[str, str]] = field(default_factory=dict)
    """For each stage, the references that are names of data (``hf:``, URLs), with the path of a
    folder on disk made absolute."""
    problems: list[Problem] = field(default_factory=list)
    absent: list[Problem] = field(default_factory=list)
    """The references that are paths of nothing that is here."""

    def below(self, names: list[str]) -> set[str]:
        """These stages and all that they need, through any number of steps."""
        found: set[str] = set()
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting += self.needs.get(name, [])
        return found


def build_graph(stages: Mapping[str, StageConfig], source: Source) -> Graph:
    """Resolve every reference, of stages with other mistakes too.

    Args:
        stages: the stages whose settings are valid.
        source: the decoded file: all its stages, and the places of references.
    """
    graph = Graph()
    raw = source.data.get("stages")
    names = list(raw) if isinstance(raw, dict) else []
    for name in names:
        graph.needs[name], graph.outside[name], graph.names[name] = [], {}, {}
        for path, value, mark in _references(name, stages, raw[name]):
            key: Key = ("stages", name, *path)
            _resolve(graph, key, value, mark, stages, names, source)
    graph.order, cycle = _sort(graph.needs)
    if cycle:
        text = " -> ".join(cycle)
        graph.problems.append(
            source.problem(("stages", cycle[0]), f"stages need each other in a circle: {text}")
        )
    return graph


def _references(name: str, stages: Mapping[str, StageConfig], raw: Any) -> Iterator[Found]:
    if name in stages:
        yield from references(stages[name])
    elif isinstance(raw, dict) and str(raw.get("kind")) in stage_kinds():
        yield from raw_references(stage_kinds()[str(raw["kind"])].config, raw)


def _resolve(
    graph: Graph,
    key: Key,
    value: str,
    mark: Reference,
    stages: Mapping[str, StageConfig],
    names: list[str],
    source: Source,
) -> None:
    """Note what one reference points to, or why it can't."""
    stage = str(key[1])
    message: str | None = None
    if value.startswith(SAMPLE_PREFIX):
        message = _sample_problem(value, mark)
    elif value in names:
        if value in stages:
            kind = source.data["stages"][stage]["kind"]
            message = _type_problem(f"{stage!r} ({kind})", value, mark, stages)
        if message is None and value not in graph.needs[stage]:
            graph.needs[stage].append(value)
    elif is_named(value):
        name, message = _named(value, mark, _base(source, key))
        if name is not None:
            graph.names[stage][value] = name
    else:
        found, message = _outside(value, mark, _base(source, key), names)
        if found is not None:
            graph.outside[stage][value] = found
        elif message is not None and "/" in value:
            graph.absent.append(source.problem(key, message))
            return
    if message is not None:
        graph.problems.append(source.problem(key, message))


def _base(source: Source, key: Key) -> Path:
    """The folder that a setting's relative paths begin in."""
    place = source.place(key)
    if place is None or place.file == COMMAND_LINE:
        return Path.cwd()
    return plain(place.file.parent)


def _named(value: str, mark: Reference, base: Path) -> tuple[str | None, str | None]:
    """A name of data with its folder made absolute, if it has one, or why it is none."""
    if not mark.samples:
        return None, f"{value!r} is a name of data; needed is {_wanted(mark)}"
    for folder in (base, Path.cwd()):
        name = absolute_name(value, folder)
        if name != value:
            return name, None
    problem = name_problem(value)
    return (None, f"{value!r}: {problem}") if problem else (value, None)


def _sample_problem(value: str, mark: Reference) -> str | None:
    if not mark.samples:
        return f"{value!r} is sample data; needed is {_wanted(mark)}"
    name = value.removeprefix(SAMPLE_PREFIX)
    if name.removesuffix(HELD_OUT) in SAMPLES:
        return None
    near = nearest(name, SAMPLES)
    valid = ", ".join(f"{SAMPLE_PREFIX}{s}[{HELD_OUT}]" for s in SAMPLES)
    return f"no such sample {value!r}" + (f"; {near}" if near else "") + f" (valid: {valid})"


def _type_problem(
    stage: str, value: str, mark: Reference, stages: Mapping[str, StageConfig]
) -> str | None:
    made = stages[value].artifact_type()
    if made in mark.types:
        return None
    return (
        f"stage {stage} needs {_wanted(mark)}, "
        f"but stage {value!r} ({stages[value].kind}) makes {with_article(made)}"
    )


def with_article(noun: str) -> str:
    """``a model``, ``an adapter``."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _wanted(mark: Reference) -> str:
    parts = []
    if mark.types:
        parts.append(" or ".join(with_article(t) for t in mark.types))
    if mark.files:
        parts.append("files")
    return " or ".join(parts)


def _outside(
    value: str, mark: Reference, base: Path, names: list[str]
) -> tuple[Path | None, str | None]:
    """Look for a path beside the file that names it, then in the current folder."""
    candidates = [Path(value).expanduser()]
    if not candidates[0].is_absolute():
        candidates = [base / value, Path.cwd() / value]
    for path in candidates:
        if path.exists() or (mark.files and matches(path)):
            return path.absolute(), _artifact_problem(path, mark)
    near = nearest(value, names)
    known = f"stages: {', '.join(names)}"
    looked = ", ".join(dict.fromkeys(str(c.absolute()) for c in candidates))
    hint = f"{near} ({known})" if near else f"{known}; looked for {looked}"
    return None, f"neither a stage nor a path that exists: {value!r}; {hint}"


def matches(path: Path) -> list[Path]:
    """The files that a path, a glob, or a dataset's prefix stands for."""
    if path.exists():
        return [path]
    found = sorted(Path(p) for p in glob.glob(str(path), recursive=True))  # noqa: PTH207 - as readers do
    return found or sorted(path.parent.glob(f"{path.name}.*"))


def _artifact_problem(path: Path, mark: Reference) -> str | None:
    """Why an existing path is not what the reference takes."""
    if mark.samples and not (path / MANIFEST).is_file():
        problem = path_problem(matches(path))
        return f"{path}: {problem}" if problem else None
    if mark.files and not mark.samples:
        return None
    try:
        made = read_artifact(path).type
    except ToolkitError as error:
        return f"{error.message} ({path}); needed is {_wanted(mark)}"
    if made in mark.types:
        return None
    return f"{path} holds {with_article(made)}; needed is {_wanted(mark)}"


def _sort(needs: Mapping[str, list[str]]) -> tuple[list[str], list[str]]:
    """Depth-first order, and a cycle if there is one: ``["a", "b", "a"]``."""
    order: list[str] = []
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> Iterator[list[str]]:
        if name in above:
            yield [*above[above.index(name) :], name]
        elif name not in done:
            for need in needs.get(name, []):
                yield from visit(need, (*above, name))
            if name not in done:
                done.add(name)
                order.append(name)

    for name in needs:
        for cycle in visit(name, ()):
            return order, cycle
    return order, []
