"""Records and where they are: what every reader gives, and what it gives of what is no record."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from toolkit.errors import DataError


class Place:
    """A part of a file whose records are numbered from 1 within the part.

    Args:
        name: of the file.
        before: lines, rows or items in front of the part; a function is called once, when a
            message needs it, because counting them means reading them.
    """

    def __init__(self, name: str, before: int | Callable[[], int] = 0) -> None:
        self.name, self._before = name, before

    @functools.cached_property
    def before(self) -> int:
        """Lines, rows or items in front of the part."""
        return self._before if isinstance(self._before, int) else self._before()

    def where(self, number: int) -> str:
        """``corpus.jsonl:17``: as messages name a place, counted from the file's beginning."""
        return f"{self.name}:{self.before + number}"


class Record(NamedTuple):
    """One object, row or document, and where it was read."""

    value: dict[str, Any]
    place: Place
    number: int
    """Within the part, from 1; ``where`` has the number within the file."""

    @property
    def where(self) -> str:
        """``corpus.jsonl:17``."""
        return self.place.where(self.number)


@dataclass(frozen=True, slots=True)
class BadRecord:
    """Something that is no record: a line of bad JSON, say."""

    where: str
    reason: str
    raw: bytes
    """The line as it is in the file, or the value as JSON."""


MOST_KEYS = 20
"""Keys that a message names."""
OnBad = Callable[[BadRecord], None]


def refuse(bad: BadRecord) -> None:
    """Raise a DataError for it: what ``on_bad`` is where none is given."""
    raise DataError(bad.reason, where=bad.where)


def key_problem(key: str, there: Iterable[str]) -> str:
    """What to say of a record without a key: the keys there are, and the nearest one."""
    names = list(there)
    near = difflib.get_close_matches(key, names, n=1)
    shown = ", ".join(repr(name) for name in names[:MOST_KEYS]) or "none"
    shown += f" and {len(names) - MOST_KEYS} more" if len(names) > MOST_KEYS else ""
    advice = f"; did you mean {near[0]!r}?" if near else ""
    return f"there is no key {key!r}; the keys are: {shown}{advice}"


def utf8_problem(raw: bytes | bytearray, error: UnicodeDecodeError) -> str:
    """What to say of bytes that are no UTF-8: which byte, and where it is in its line."""
    utf16 = raw[:2] in (b"\xff\xfe", b"\xfe\xff")
    column = error.start - raw.rfind(b"\n", 0, error.start)
    advice = "; this looks like UTF-16: convert the file to UTF-8" if utf16 else ""
    return f"invalid UTF-8: {error.reason}, byte 0x{raw[error.start]:02x} (byte {column}){advice}"


def raw_json(value: Any) -> bytes:
    """A decoded value as JSON, for ``BadRecord.raw``: what is no JSON in it becomes its text."""
    try:
        return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS)
    except orjson.JSONEncodeError as error:  # it reads deeper nesting than it writes
        return orjson.dumps(f"can't be written as JSON again: {error}")


def not_an_object(value: Any) -> str:
    """What to say of a JSON value that is no object."""
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return f"{names.get(type(value), 'a number')} where a JSON object was expected"
