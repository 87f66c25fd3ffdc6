"""YAML with the line of every key: what a message needs to say where a mistake is.

Scalars follow YAML 1.2's core schema, so ``1e-5`` is a float and ``no`` is a string.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml

from toolkit.errors import ConfigError, Problem

Key = tuple[str | int, ...]
COMMAND_LINE = Path("command line")


def plain(path: Path) -> Path:
    """A path made absolute, without ``..``: the same one wherever it was named from.

    Links in it stay, for a container may have a folder by that name alone.
    """
    full = path.absolute()
    ups = [number for number, part in enumerate(full.parts) if part == ".."]
    if not ups:
        return full
    ahead = Path(*full.parts[: ups[-1] + 1])
    short = Path(os.path.normpath(ahead))
    same = ahead.exists() and short.exists() and ahead.samefile(short)  # not so behind a link
    return short.joinpath(*full.parts[ups[-1] + 1 :]) if same else full


@dataclass(frozen=True)
class Place:
    """A line of a file; a setting given on the command line has no line."""

    file: Path
    line: int | None


@dataclass
class Source:
    """Decoded YAML: plain data, and the place of every key in it."""

    data: Any
    places: dict[Key, Place] = field(default_factory=dict)

    def place(self, key: Key) -> Place | None:
        """Where a key stands, or the nearest key above it."""
        while key not in self.places and key:
            key = key[:-1]
        return self.places.get(key)

    def at(self, key: Key) -> Source:
        """What lies under ``key``, as a source of its own; with the same places."""
        data = self.data
        for part in key:
            data = data[part]
        size = len(key)
        return Source(data, {k[size:]: p for k, p in self.places.items() if k[:size] == key})

    def problem(self, key: Key, message: str, hint: str | None = None) -> Problem:
        """A problem with the setting at ``key``."""
        place = self.place(key)
        return Problem(
            key=dotted(key) or "(file)",
            message=message,
            file=place.file if place else None,
            line=place.line if place else None,
            hint=hint,
        )


def dotted(key: Key) -> str:
    """``("stages", "base", "lr")`` as ``stages.base.lr``, the way an override names it."""
    return ".".join(str(part) for part in key)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Resolves scalars as YAML 1.2's core schema does."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first)
    )


def parse_yaml(text: str, file: Path) -> Source:
    """Decode one YAML document.

    Raises:
        ConfigError: on bad syntax, or on a key that stands twice in one mapping.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
    except yaml.YAMLError as error:
        raise ConfigError([_syntax_problem(error, file)]) from error
    finally:
        loader.dispose()
    source = Source(data={})
    if node is None:
        return source
    problems: list[Problem] = []
    source.data = _construct(node, (), file, source.places, problems, ())
    if problems:
        raise ConfigError(problems)
    return source


def read_yaml(file: Path) -> Source:
    """Decode a YAML file; see ``parse_yaml``.

    Raises:
        ConfigError: the file is missing, unreadable, not UTF-8, or not valid YAML.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        problem = Problem("(file)", f"can't be read: {error.strerror}", file)
        raise ConfigError([problem]) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError([Problem("(file)", "is not valid UTF-8", file, line)]) from error
    return parse_yaml(text, file)


def _syntax_problem(error: yaml.YAMLError, file: Path) -> Problem:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or str(error)
    context = getattr(error, "context", None)
    message = f"not valid YAML: {what}" + (f" ({context})" if context else "")
    return Problem("(syntax)", message, file, mark.line + 1 if mark else None)


def _construct(
    node: yaml.Node,
    key: Key,
    file: Path,
    places: dict[Key, Place],
    problems: list[Problem],
    above: tuple[int, ...],
) -> Any:
    """Turn a node into data, noting places; ``above`` are the nodes it lies in."""
    places.setdefault(key, Place(file, node.start_mark.line + 1))
    if id(node) in above:
        problems.append(
            Problem(dotted(key), "an alias holds itself", file, node.start_mark.line + 1)
        )
        return None
    above = (*above, id(node))
    if isinstance(node, yaml.SequenceNode):
        return [
            _construct(item, (*key, index), file, places, problems, above)
            for index, item in enumerate(node.value)
        ]
    if isinstance(node, yaml.MappingNode):
        return _construct_mapping(node, key, file, places, problems, above)
    return _scalar(cast("yaml.ScalarNode", node), key, file, problems)


def _construct_mapping(
    node: yaml.MappingNode,
    key: Key,
    file: Path,
    places: dict[Key, Place],
    problems: list[Problem],
    above: tuple[int, ...],
) -> dict[str, Any]:
    result: dict[str, Any] = {}
    merged: dict[str, Any] = {}
    for name_node, value_node in node.value:
        line = name_node.start_mark.line + 1
        if name_node.tag.endswith(":merge"):
            for part in _merged_nodes(value_node):
                found = _construct(part, key, file, places, problems, above)
                if isinstance(found, dict):
                    merged |= found
                else:
                    message = "'<<' merges a mapping (<<: *anchor) into this one"
                    problems.append(Problem(dotted((*key, "<<")), message, file, line))
            continue
        name = str(name_node.value)
        inner = (*key, name)
        if name in result:
            first = places[inner].line
            problems.append(
                Problem(dotted(inner), f"stands twice; first on line {first}", file, line)
            )
            continue
        for old in [k for k in places if k[: len(inner)] == inner]:
            del places[old]
        places[inner] = Place(file, line)
        result[name] = _construct(value_node, inner, file, places, problems, above)
    return merged | result


def _merged_nodes(node: yaml.Node) -> Iterator[yaml.Node]:
    yield from node.value if isinstance(node, yaml.SequenceNode) else [node]


def _scalar(node: yaml.ScalarNode, key: Key, file: Path, problems: list[Problem]) -> Any:
    kind, text = node.tag.rpartition(":")[2], node.value
    if kind == "bool":
        return text.lower() == "true"
    if kind == "null":
        return None
    if kind == "int":
        return int(text, 0) if text.startswith(("0x", "0o")) else int(text)
    if kind == "float":
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    if kind != "str":
        line = node.start_mark.line + 1
        problems.append(Problem(dotted(key), f"has the tag {node.tag}; use none", file, line))
    return text


def overlay(base: Source, over: Source) -> Source:
    """``over`` on ``base``: mappings are merged, key by key; anything else is replaced."""
    places = dict(base.places)
    data = _overlay(base.data, over.data, (), places, over.places)
    return Source(data, places)


def _overlay(
    base: Any, over: Any, key: Key, places: dict[Key, Place], over_places: dict[Key, Place]
) -> Any:
    if isinstance(base, dict) and isinstance(over, dict):
        if key in over_places:
            places[key] = over_places[key]
        result = dict(base)
        for name, value in over.items():
            result[name] = _overlay(base.get(name), value, (*key, name), places, over_places)
        return result
    for old in [k for k in places if k[: len(key)] == key]:
        del places[old]
    places.update({k: p for k, p in over_places.items() if k[: len(key)] == key})
    return over


def fill_in(source: Source, key: Key, defaults: Source) -> None:
    """Add to the mapping at ``key`` the settings of ``defaults`` that it lacks, in place."""
    holder = source.data
    for part in key:
        holder = holder[part]
    for name, value in defaults.data.items():
        if name not in holder:
            holder[name] = value
            places = {k: p for k, p in defaults.places.items() if k[:1] == (name,)}
            source.places.update({(*key, *k): p for k, p in places.items()})


def parse_override(text: str) -> tuple[Key, Any]:
    """``stages.base.train_iters=50`` as a key and a value, typed as YAML types it.

    Raises:
        ConfigError: there is no ``=``, or the value is not valid YAML.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        hint = "write key=value, for example stages.base.train_iters=50"
        raise ConfigError([Problem(text, "is not an override", COMMAND_LINE, hint=hint)])
    source = parse_yaml(value, COMMAND_LINE)
    data = None if not value.strip() else source.data
    return tuple(name.strip().split(".")), data


def apply_override(source: Source, text: str) -> None:
    """Set one key of ``source`` from an override, in place; mappings are made on the way.

    Raises:
        ConfigError: a part of the key names something inside a value that has no keys.
    """
    key, value = parse_override(text)
    holder, path = source.data, list[str | int]()
    for depth, part in enumerate(key):
        index = _index(holder, part)
        if index is None:
            hint = f"{dotted(tuple(path)) or 'the file'} has no key {part!r}"
            raise ConfigError([Problem(dotted(key), "can't be set", COMMAND_LINE, hint=hint)])
        path.append(index)
        if depth == len(key) - 1:
            holder[index] = value
        elif isinstance(holder, dict):
            if index not in holder:
                source.places[tuple(path)] = Place(COMMAND_LINE, None)
            holder = holder.setdefault(index, {})
        else:
            holder = holder[index]
    for old in [k for k in source.places if k[: len(path)] == tuple(path)]:
        del source.places[old]
    source.places[tuple(path)] = Place(COMMAND_LINE, None)


def _index(holder: Any, part: str | int) -> str | int | None:
    if isinstance(holder, dict):
        return part
    if isinstance(holder, list) and str(part).isdigit() and int(part) < len(holder):
        return int(part)
    return None
