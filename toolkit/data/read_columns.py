"""Records of parquet and arrow files: a row is a record. Imports pyarrow, which takes a while.

Files are read through their own handles rather than mapped into memory: a mapped file that is cut
off while it is read ends the process without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow
import pyarrow.parquet

from toolkit.data.arrow_stream import ArrowFile
from toolkit.data.files import Part, Source, check_unchanged, open_file
from toolkit.data.records import BadRecord, OnBad, Place, Record, key_problem, utf8_problem
from toolkit.data.remote import unreadable
from toolkit.errors import DataError

ROWS_PER_BATCH = 1024
BATCH_BYTES = 16 << 20
"""Of a batch, about: fewer rows at a time where they are long."""
BUFFER = 4 << 20


@dataclass(frozen=True)
class Columns:
    """Which columns to read.

    ``names`` may be dotted paths into structs; a column of that very name wins. With ``strings``
    they must hold strings.
    """

    names: tuple[str, ...]
    strings: bool = False

    def check(self, schema: Any, source: Source) -> None:
        """Compare with a file's schema.

        Raises:
            DataError: a column is missing or, with ``strings``, of another type.
        """
        for name in self.names:
            field = _field(schema, name)
            if field is None:
                raise DataError(key_problem(name, _paths(schema)), where=source.name)
            if self.strings and not _is_string(field.type):
                message = f"the column {name!r} holds {field.type}, not strings"
                raise DataError(message, where=source.name)

    def top_level(self, schema: Any) -> list[str]:
        """The columns of the file itself that hold them."""
        names = (n if n in schema.names else n.partition(".")[0] for n in self.names)
        return list(dict.fromkeys(names))


def units(source: Source) -> int:
    """How many row groups (parquet) or record batches (arrow) can be read by themselves.

    Raises:
        DataError: the file can't be read.
    """
    if source.format == "parquet":
        with _open_parquet(source) as file:
            return int(file.metadata.num_row_groups)
    with _open_arrow(source) as arrow:
        return int(arrow.parts)


def read_parquet(
    part: Part, on_bad: OnBad, columns: Columns | None, progress: Callable[[float], None]
) -> Iterator[Record]:
    """The rows of a part's row groups.

    Args:
        part: its ``start`` and ``stop`` are row groups.
        on_bad: takes rows that hold invalid UTF-8.
        columns: read these alone.
        progress: told the share of the part that is read.
    """
    with _open_parquet(part.source) as file:
        if columns is not None:
            columns.check(file.schema_arrow, part.source)
        groups = [file.metadata.row_group(n) for n in range(file.metadata.num_row_groups)]
        place = Place(part.source.name, sum(group.num_rows for group in groups[: part.start]))
        total, number = sum(group.num_rows for group in groups[part.start : part.stop]), 0
        for index in range(len(groups))[part.start : part.stop]:
            batches = file.iter_batches(
                batch_size=_rows_per_batch(groups[index]),
                row_groups=[index],
                columns=None if columns is None else list(columns.names),
                use_threads=False,
            )
            for batch in batches:
                yield from _rows(batch, place, number, on_bad)
                number += batch.num_rows
                progress(number / total)


def read_arrow(
    part: Part, on_bad: OnBad, columns: Columns | None, progress: Callable[[float], None]
) -> Iterator[Record]:
    """The rows of a part's record batches; otherwise as ``read_parquet``."""
    with _open_arrow(part.source) as arrow:
        if columns is not None:
            columns.check(arrow.schema, part.source)
        chosen = range(arrow.parts)[part.start : part.stop]
        place = Place(part.source.name, lambda: _rows_before(part))
        number = 0
        for done, index in enumerate(chosen, start=1):
            for batch in arrow.batches(index):
                if columns is not None:
                    batch = batch.select(columns.top_level(arrow.schema))
                _check_offsets(batch)
                for begin in range(0, batch.num_rows, ROWS_PER_BATCH):
                    yield from _rows(batch.slice(begin, ROWS_PER_BATCH), place, number, on_bad)
                    number += min(ROWS_PER_BATCH, batch.num_rows - begin)
            progress(done / len(chosen))


def _check_offsets(batch: Any) -> None:
    """Refuse a damaged batch, whose offsets would lead pyarrow out of its memory.

    Strings that are no UTF-8 are found last, and are no damage of the whole batch: see ``_rows``.
    """
    for column in batch.columns:
        try:
            column.validate(full=True)
        except pyarrow.ArrowInvalid as error:
            if "Invalid UTF8" not in str(error):
                raise


def _rows_before(part: Part) -> int:
    if part.start == 0:
        return 0
    with _open_arrow(part.source) as arrow:
        return sum(b.num_rows for index in range(part.start) for b in arrow.batches(index))


def _rows(batch: Any, place: Place, before: int, on_bad: OnBad) -> Iterator[Record]:
    """The rows of a record batch; ``before`` rows of the part are in front of it."""
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            where = place.where(before + 1)
            on_bad(BadRecord(where, utf8_problem(error.object, error), error.object))
        else:
            for index in range(batch.num_rows):
                yield from _rows(batch.slice(index, 1), place, before + index, on_bad)
        return
    for number, value in enumerate(rows, start=before + 1):
        yield Record(value, place, number)


@contextmanager
def _open_parquet(source: Source) -> Iterator[Any]:
    with (
        _opened(source) as raw,
        pyarrow.parquet.ParquetFile(
            raw, buffer_size=BUFFER, pre_buffer=False, page_checksum_verification=True
        ) as file,
    ):
        yield file


@contextmanager
def _open_arrow(source: Source) -> Iterator[ArrowFile]:
    with _opened(source) as raw:
        yield ArrowFile(raw)


@contextmanager
def _opened(source: Source) -> Iterator[Any]:
    if not source.seekable:
        raise DataError(
            f"a {source.format} file can't be read from its middle on this server (no ranges)",
            where=source.name,
            hint="download it first, and name the file",
        )
    with open_file(source) as raw:
        try:
            yield raw
        except (pyarrow.ArrowException, EOFError, UnicodeDecodeError) as error:
            message = f"not a readable {source.format} file: {error}"
            raise DataError(message, where=source.name) from error
        except OSError as error:
            raise unreadable(source.name, error) from error
        check_unchanged(source, raw)


def _rows_per_batch(group: Any) -> int:
    row_bytes = group.total_byte_size // max(1, group.num_rows)
    return int(max(1, min(ROWS_PER_BATCH, BATCH_BYTES // max(1, row_bytes))))


def _field(schema: Any, name: str) -> Any:
    """The field of a name, or of a dotted path into structs, or None."""
    if name in schema.names:
        return schema.field(name)
    first, _, rest = name.partition(".")
    inner = schema.field(first) if rest and first in schema.names else None
    while inner is not None and rest:
        first, _, rest = rest.partition(".")
        there = pyarrow.types.is_struct(inner.type) and inner.type.get_field_index(first) >= 0
        inner = inner.type.field(first) if there else None
    return inner


def _paths(fields: Any, above: str = "") -> Iterator[str]:
    for field in fields:
        if pyarrow.types.is_struct(field.type):
            yield from _paths(field.type.fields, f"{above}{field.name}.")
        else:
            yield f"{above}{field.name}"


def _is_string(kind: Any) -> bool:
    types = pyarrow.types
    if types.is_dictionary(kind):
        return _is_string(kind.value_type)
    return bool(
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_string_view(kind)
        or types.is_null(kind)
    )
