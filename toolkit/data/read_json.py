"""Records of JSON: lines, and the one array of a ``.json`` file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from toolkit.data.records import BadRecord, OnBad, Place, Record, not_an_object, utf8_problem
from toolkit.data.streams import Stream
from toolkit.errors import DataError


def read_json_lines(lists: Iterable[list[bytes]], place: Place, on_bad: OnBad) -> Iterator[Record]:
    """The objects of lines; blank lines are no records, and a bad line loses only itself."""
    first = 1
    for lines in lists:
        for number, line in enumerate(lines, first):
            try:
                value = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                if line.strip():
                    on_bad(BadRecord(place.where(number), json_problem(line, error), line))
                continue
            if type(value) is dict:
                yield Record(value, place, number)
            else:
                on_bad(BadRecord(place.where(number), not_an_object(value), line))
        first += len(lines)


def read_json(stream: Stream, on_bad: OnBad) -> Iterator[Record]:
    """The objects of one array, or of lines where the file does not begin with ``[``."""
    content = stream.read()
    if content.lstrip()[:1] != b"[":
        return read_json_lines([content.split(b"\n")], stream.place, on_bad)
    try:
        values = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        line = content.count(b"\n", 0, _byte_offset(content, error)) + 1
        reason = json_problem(content, error)
        raise DataError(reason, where=stream.place.where(line)) from error
    return numbered(values, stream.place, on_bad)


def numbered(values: Iterable[Any], place: Place, on_bad: OnBad) -> Iterator[Record]:
    """Records of decoded values."""
    for number, value in enumerate(values, start=1):
        if type(value) is dict:
            yield Record(value, place, number)
        else:
            on_bad(BadRecord(place.where(number), not_an_object(value), orjson.dumps(value)))


def json_problem(raw: bytes, error: orjson.JSONDecodeError) -> str:
    """What to say of bytes that are no JSON."""
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as invalid:
        return utf8_problem(raw, invalid)
    return f"invalid JSON: {error.msg} (column {error.colno})"


def _byte_offset(raw: bytes, error: orjson.JSONDecodeError) -> int:
    """Where an error is, in bytes; orjson counts characters, and gives 0 for invalid UTF-8."""
    try:
        return len(raw.decode("utf-8")[: error.pos].encode("utf-8"))
    except UnicodeDecodeError as invalid:
        return invalid.start
