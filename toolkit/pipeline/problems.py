"""From pydantic's errors to sentences: what was wrong, what is valid, and the nearest name."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from toolkit.errors import Problem
from toolkit.pipeline.source import Key, Source

MOST_LISTED = 24
"""Valid keys that a message lists; with more, the one that was meant is lost among them."""


class HiddenValueError(ValueError):
    """What is wrong with a value that no message may show: a secret's, perhaps."""


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """``did you mean 'x'?`` for a name that is nearly one of the valid ones."""
    close = get_close_matches(name, list(valid), n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else None


def unknown(what: str, name: str, valid: Iterable[str], listing: str = "toolkit schema") -> str:
    """A sentence for a name that is none of the valid ones, with the nearest, and all if few.

    ``listing`` is the command that prints all keys.
    """
    names = list(valid)
    near = nearest(name, names)
    listed = ", ".join(names) if names else "none"
    if what == "key":
        near = near or _spelt_out(name, names)
        listed = listed if len(names) <= MOST_LISTED else f"{len(names)}; `{listing}` has them"
    return f"unknown {what} {name!r}" + (f"; {near}" if near else "") + f" (valid: {listed})"


def _spelt_out(name: str, valid: Iterable[str]) -> str | None:
    """``did you mean 'tensor_model_parallel_size'?`` for ``tp``: initials of a size or degree."""
    in_order = re.compile(".*".join(map(re.escape, name)))
    sizes = [n for n in valid if n.endswith(("_size", "_parallel")) and n[0] == name[:1]]
    meant = [n for n in sizes if in_order.match("".join(word[0] for word in n.split("_")))]
    return f"did you mean {min(meant, key=len)!r}?" if meant and len(name) > 1 else None


def problems_of(
    error: ValidationError, model: type[BaseModel], source: Source, prefix: Key
) -> list[Problem]:
    """One problem for each setting that pydantic refused.

    Args:
        error: what validating ``source``'s data at ``prefix`` raised.
        model: the class it was validated with.
        source: the decoded file, for places and for the values as written.
        prefix: where the validated mapping stands: ``("stages", "base")``.
    """
    found: dict[Key, list[str]] = {}
    hidden = set()
    data = at(source.data, prefix)
    located = [(_real_key(i["loc"], i["type"], data), i) for i in error.errors()]
    for key, item in located:
        if _other_branch(key, item, model, [k for k, _ in located]):
            continue
        message = _sentence(item, model, key, data)
        if item["type"] == "union_tag_invalid":
            key = (*key, item["ctx"]["discriminator"].strip("'"))
        if isinstance(item.get("ctx", {}).get("error"), HiddenValueError):
            hidden.add((*prefix, *key))
        messages = found.setdefault((*prefix, *key), [])
        if message not in messages:
            messages.append(message)
    return [
        source.problem(key, " or ".join(m) if key in hidden else _joined(m, source, key))
        for key, m in found.items()
    ]


def at(data: Any, key: Key) -> Any:
    """The value at ``key``."""
    for part in key:
        data = data[part]
    return data


def _joined(messages: list[str], source: Source, key: Key) -> str:
    """The branches of a union as one sentence, then the value as it was written."""
    text = " or ".join(messages)
    if text.startswith("unknown ") or "is missing" in text:
        return text
    try:
        value = at(source.data, key)
    except (KeyError, IndexError, TypeError):
        return text
    if isinstance(value, (dict, list)):
        return text
    return f"{text}; got {value!r}" + (" (a string)" if isinstance(value, str) else "")


def _real_key(location: tuple[str | int, ...], kind: str, data: Any) -> Key:
    """``location`` without the names of union branches that pydantic mixes into it."""
    key: list[str | int] = []
    for index, part in enumerate(location):
        last = index == len(location) - 1
        if isinstance(data, dict):
            if part in data:
                data = data[part]
            elif not (last and kind == "missing"):
                continue
            key.append(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
            key.append(part)
    return tuple(key)


def _other_branch(key: Key, item: Any, model: type[BaseModel], keys: list[Key]) -> bool:
    """Whether a mapping was only refused where a list of names could stand in its place."""
    return (
        item["type"] == "string_type"
        and isinstance(item["input"], dict)
        and bool(models_at(model, key))
        and any(k != key and k[: len(key) - 1] == key[:-1] for k in keys)
    )


def _sentence(item: Any, model: type[BaseModel], key: Key, data: Any) -> str:
    if item["type"] == "extra_forbidden":
        holders = _chosen(models_at(model, key[:-1]), at(data, key[:-1]))
        names = [n for m in holders for n in m.model_fields]
        return unknown("key", str(key[-1]), names, getattr(model, "listing", "toolkit schema"))
    if item["type"] == "missing":
        return "is missing, and has no default" + _described(model, key)
    if item["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return _tag_sentence(item, models_at(model, key))
    if item["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return "must be a mapping (key: value)"
    if item["type"] == "too_short":
        least = item["ctx"]["min_length"]
        return f"must have at least {least}, but has {item['ctx']['actual_length']}"
    message: str = item["msg"]
    message = message.removeprefix("Value error, ").replace("Input should be", "must be")
    return message[0].lower() + message[1:]


def _tag_sentence(item: Any, models: list[type[BaseModel]]) -> str:
    """A mapping whose tag (``filter: length``) names no class of its union, or is missing."""
    tag = item["ctx"]["discriminator"].strip("'")
    valid = [str(m.model_fields[tag].default) for m in models if tag in m.model_fields]
    if item["type"] == "union_tag_invalid":
        return unknown(tag, str(item["ctx"]["tag"]), valid)
    return f"has no key {tag!r}, which says what it is (valid: {', '.join(valid)})"


def _chosen(models: list[type[BaseModel]], data: Any) -> list[type[BaseModel]]:
    """Of a tagged union's classes the one that the data names; all, where it names none."""

    def named(model: type[BaseModel]) -> bool:
        return any(
            typing.get_origin(info.annotation) is Literal and data.get(name) == info.default
            for name, info in model.model_fields.items()
        )

    return [m for m in models if isinstance(data, dict) and named(m)] or models


def _described(model: type[BaseModel], key: Key) -> str:
    for holder in models_at(model, key[:-1]):
        info = holder.model_fields.get(str(key[-1]))
        if info is not None and info.description:
            return f": {info.description}"
    return ""


def models_at(model: type[BaseModel], key: Key) -> list[type[BaseModel]]:
    """The settings classes that may stand at ``key`` below ``model``."""
    found, named = [model], False
    for part in key:
        if named:  # a mapping's key is a name of the user's own
            named = False
            continue
        inner = []
        for holder in found:
            info = holder.model_fields.get(str(part))
            inner += list(_models_in(info.annotation)) if info is not None else []
            named = named or (info is not None and typing.get_origin(info.annotation) is dict)
        if inner or not isinstance(part, int):
            found = inner
    return found


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is not None:
        for argument in typing.get_args(annotation):
            yield from _models_in(argument)
