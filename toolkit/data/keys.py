"""Where in a record a text is: a key, or a dotted path to a key within objects.

Light: settings are checked with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

MISSING = object()
"""What a getter gives where a record hasn't the key."""

Getter = Callable[[Mapping[str, Any]], Any]


def getter(key: str) -> Getter:
    """A function that finds a key in a record, or gives ``MISSING``.

    ``meta.text`` is the key of that very name where a record has it, and otherwise ``text`` of the
    object ``meta``.
    """
    if "." not in key:
        return lambda value: value.get(key, MISSING)
    path = key.split(".")

    def find(value: Mapping[str, Any]) -> Any:
        return value[key] if key in value else _follow(value, path)

    return find


def key_paths(value: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """Every key of a record, those of objects within it by their dotted path."""
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            yield from key_paths(inner, f"{above}{key}.")
        else:
            yield f"{above}{key}"


def file_name(key: str) -> str:
    """A key as a part of a file's name."""
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in key)


def _follow(value: Any, path: list[str]) -> Any:
    for key in path:
        if not isinstance(value, Mapping) or key not in value:
            return MISSING
        value = value[key]
    return value
