"""Conversations and preference pairs from files, strictly, with an account of every row.

``read_conversations`` and ``read_preferences`` take what ``read_records`` takes (files, folders,
globs, ``sample:`` names), recognise each row's format, and yield typed values. Rows are never
lost silently: a malformed row stops the reading (or is dropped, if so asked), a row that nothing
can be learnt from is dropped, and a ``Tally`` counts and names them all.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from toolkit.data.chat_formats import (
    CONVERSATION_FIELDS,
    LAYOUTS,
    Conversation,
    ConversationFormat,
    Row,
    convert,
    recognise,
    rename,
)
from toolkit.data.chat_preferences import (
    PREFERENCE_FIELDS,
    READERS,
    Preference,
    PreferenceFormat,
    convert_preference,
    recognise_preference,
)
from toolkit.data.chat_turns import Message, Messages, Role, UnusableError
from toolkit.data.readers import BadRecord, Record, read_records
from toolkit.errors import DataError

__all__ = [
    "Conversation",
    "ConversationFormat",
    "Message",
    "Messages",
    "Preference",
    "PreferenceFormat",
    "Role",
    "Tally",
    "conversations_of",
    "preferences_of",
    "read_conversations",
    "read_preferences",
]

logger = logging.getLogger(__name__)

OnError = Literal["stop", "drop"]
MALFORMED = "malformed"
NAMED = 3
"""Rows named for each reason of dropping."""
Item = TypeVar("Item")


@dataclass
class Tally:
    """What became of the rows: ``read`` = rows of ``formats`` + ``dropped``."""

    read: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    """For each reason, the first rows dropped for it: ``train.jsonl:17``."""

    def drop(self, reason: str, where: str) -> None:
        """Count a row that is left out."""
        self.dropped[reason] += 1
        named = self.examples.setdefault(reason, [])
        if len(named) < NAMED:
            named.append(where)

    def drop_bad(self, bad: BadRecord) -> None:
        """Count what is no record at all: a reader's ``on_bad``."""
        self.read += 1
        self.drop(MALFORMED, f"{bad.where}: {bad.reason}")

    def __add__(self, other: Tally) -> Tally:
        """The rows of both; of each reason the first few stay named."""
        examples = {k: list(v) for k, v in self.examples.items()}
        for reason, named in other.examples.items():
            examples[reason] = (examples.get(reason, []) + named)[:NAMED]
        return Tally(
            self.read + other.read,
            self.formats + other.formats,
            self.dropped + other.dropped,
            examples,
        )

    def warn(self) -> None:
        """Log every reason for which rows were dropped, with the first of them."""
        for reason, count in self.dropped.items():
            rows = ", ".join(self.examples[reason])
            more = ", ..." if count > NAMED else ""
            logger.warning("%d of %d rows dropped: %s (%s%s)", count, self.read, reason, rows, more)

    def as_info(self) -> dict[str, Any]:
        """Plain values for an artifact's ``info``."""
        return {
            "read": self.read,
            "formats": dict(self.formats),
            "dropped": dict(self.dropped),
            "dropped_first": dict(self.examples),
        }


def read_conversations(
    sources: str | Path | Sequence[str | Path],
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    *,
    on_error: OnError = "stop",
    tally: Tally | None = None,
) -> Iterator[Conversation]:
    """The conversations of all sources, in order.

    Args:
        sources: files, folders, globs or ``sample:`` names.
        format: a ``ConversationFormat``; ``auto`` recognises each row by its keys.
        columns: for files with other keys, ours to theirs: ``{"prompt": "question"}``.
        on_error: whether a malformed row stops the reading, or is dropped and counted.
        tally: counts the rows; without it, dropped rows are logged as warnings at the end.

    Raises:
        DataError: with ``file:line``, the keys found and what is expected.
    """
    counts = Tally() if tally is None else tally
    records = _records(sources, on_error, counts)
    found = conversations_of(records, format, columns, on_error=on_error, tally=counts)
    return found if tally is not None else _warned(found, counts)


def conversations_of(
    records: Iterable[Record],
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    *,
    on_error: OnError = "stop",
    tally: Tally,
) -> Iterator[Conversation]:
    """The conversations of records that are read elsewhere; as ``read_conversations``."""
    _require(format, LAYOUTS, columns, CONVERSATION_FIELDS)

    def read(row: Row, where: str) -> tuple[str, list[Conversation]]:
        name = recognise(row, where) if format == "auto" else format
        return name, list(convert(row, name, where))

    return _read(records, read, columns, on_error, tally)


def read_preferences(
    sources: str | Path | Sequence[str | Path],
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    *,
    on_error: OnError = "stop",
    tally: Tally | None = None,
) -> Iterator[Preference]:
    """The preference pairs of all sources, in order; the arguments are ``read_conversations``'s.

    Raises:
        DataError: with ``file:line``, the keys found and what is expected.
    """
    counts = Tally() if tally is None else tally
    records = _records(sources, on_error, counts)
    found = preferences_of(records, format, columns, on_error=on_error, tally=counts)
    return found if tally is not None else _warned(found, counts)


def preferences_of(
    records: Iterable[Record],
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    *,
    on_error: OnError = "stop",
    tally: Tally,
) -> Iterator[Preference]:
    """The pairs of records that are read elsewhere; as ``read_preferences``."""
    _require(format, READERS, columns, PREFERENCE_FIELDS)

    def read(row: Row, where: str) -> tuple[str, list[Preference]]:
        name = recognise_preference(row, where) if format == "auto" else format
        return name, [convert_preference(row, name, where)]

    return _read(records, read, columns, on_error, tally)


def _require(
    format: str,
    formats: Mapping[str, Any],
    columns: Mapping[str, str] | None,
    fields: Sequence[str],
) -> None:
    if format != "auto" and format not in formats:
        raise DataError(f"unknown format {format!r}", hint=f"formats: auto, {', '.join(formats)}")
    unknown = [name for name in columns or () if name not in fields]
    if unknown:
        raise DataError(
            f"columns has the unknown field {unknown[0]!r}", hint=f"fields: {', '.join(fields)}"
        )


def _read(
    records: Iterable[Record],
    read: Callable[[Row, str], tuple[str, list[Item]]],
    columns: Mapping[str, str] | None,
    on_error: OnError,
    counts: Tally,
) -> Iterator[Item]:
    for record in records:
        counts.read += 1
        try:
            name, items = read(rename(record.value, columns, record.where), record.where)
        except UnusableError as reason:
            counts.drop(str(reason), record.where)
        except DataError as error:
            if on_error == "stop":
                raise
            counts.drop(MALFORMED, f"{record.where}: {error.message}")
        else:
            counts.formats[name] += 1
            yield from items


def _warned(items: Iterator[Item], counts: Tally) -> Iterator[Item]:
    yield from items
    counts.warn()


def _records(
    sources: str | Path | Sequence[str | Path], on_error: OnError, counts: Tally
) -> Iterator[Record]:
    yield from read_records(sources, counts.drop_bad if on_error == "drop" else None)
