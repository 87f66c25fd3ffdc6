"""Records of JSON: lines, and the one array of a ``.json`` file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from toolkit.data.json_items import UNREAD, BrokenArrayError, array_items
from toolkit.data.records import (
    BadRecord,
    OnBad,
    Place,
    Record,
    not_an_object,
    raw_json,
    utf8_problem,
)
from toolkit.data.streams import Stream
from toolkit.errors import DataError


def read_json_lines(lists: Iterable[list[bytes]], place: Place, on_bad: OnBad) -> Iterator[Record]:
    """The objects of lines; blank lines are no records, and a bad line loses only itself."""
    new = tuple.__new__  # faster than Record(...), which short lines feel
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
                yield new(Record, (value, place, number))
            else:
                on_bad(BadRecord(place.where(number), not_an_object(value), line))
        first += len(lines)


def read_json(stream: Stream, on_bad: OnBad) -> Iterator[Record]:
    """The objects of one array, or of lines where the file does not begin with ``[``.

    An item of the array is numbered, and read, by itself: a bad one loses only itself.

    Raises:
        DataError: the array is not whole.
    """
    if stream.first_byte() != b"[":
        yield from read_json_lines(stream.line_lists(), stream.place, on_bad)
        return
    place, number = stream.place, 0
    try:
        for number, (item, value) in enumerate(array_items(stream.blocks()), start=1):
            if value is not UNREAD:
                yield Record(value, place, number)
            elif (record := _item(item, place, number, on_bad)) is not None:
                yield record
    except BrokenArrayError as error:
        message = f"invalid JSON behind item {number} of the array: {error}"
        raise DataError(message, where=place.name) from error


def _item(item: bytes, place: Place, number: int, on_bad: OnBad) -> Record | None:
    try:
        value = orjson.loads(item)
    except orjson.JSONDecodeError as error:
        on_bad(BadRecord(place.where(number), json_problem(item, error), item))
        return None
    if type(value) is dict:
        return Record(value, place, number)
    on_bad(BadRecord(place.where(number), not_an_object(value), item))
    return None


def numbered(values: Iterable[Any], place: Place, on_bad: OnBad) -> Iterator[Record]:
    """Records of decoded values."""
    for number, value in enumerate(values, start=1):
        if type(value) is dict:
            yield Record(value, place, number)
        else:
            on_bad(BadRecord(place.where(number), not_an_object(value), raw_json(value)))


def json_problem(raw: bytes, error: orjson.JSONDecodeError) -> str:
    """What to say of bytes that are no JSON."""
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as invalid:
        return utf8_problem(raw, invalid)
    return f"invalid JSON: {error.msg} (column {error.colno})"
