"""Records of parquet files: a row is a record. Imports pyarrow, which takes a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow
import pyarrow.parquet

from toolkit.data.records import BadRecord, OnBad, Place, Record, key_problem, utf8_problem
from toolkit.data.shards import Part
from toolkit.data.sources import Source, check_unchanged, open_file, unreadable
from toolkit.errors import DataError

ROWS_PER_BATCH = 1024


def row_groups(source: Source) -> int:
    """How many row groups a parquet file has.

    Raises:
        DataError: it can't be read.
    """
    with _open_parquet(source) as file:
        return int(file.metadata.num_row_groups)


def read_parquet(
    part: Part, on_bad: OnBad, columns: Sequence[str] | None, progress: Callable[[float], None]
) -> Iterator[Record]:
    """The rows of a part's row groups.

    Args:
        part: its ``start`` and ``stop`` are row groups.
        on_bad: takes rows that hold invalid UTF-8.
        columns: read these alone; the file must have them.
        progress: told the share of the part that is read.
    """
    with _open_parquet(part.source) as file:
        names = _present(columns, file.schema_arrow.names, part.source)
        groups = range(file.metadata.num_row_groups)[part.start : part.stop]
        sizes = [file.metadata.row_group(group).num_rows for group in range(groups.stop)]
        place = Place(part.source.name, sum(sizes[: part.start]))
        total, number = sum(sizes[part.start :]), 0
        batches = file.iter_batches(
            batch_size=ROWS_PER_BATCH, row_groups=list(groups), columns=names
        )
        for batch in batches:
            yield from read_rows(batch, place, number, on_bad)
            number += batch.num_rows
            progress(number / total)


def read_rows(batch: Any, place: Place, before: int, on_bad: OnBad) -> Iterator[Record]:
    """The rows of a record batch; ``before`` rows of the part are in front of it."""
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            where = place.where(before + 1)
            on_bad(BadRecord(where, utf8_problem(error.object, error), error.object))
        else:
            for index in range(batch.num_rows):
                yield from read_rows(batch.slice(index, 1), place, before + index, on_bad)
        return
    for number, value in enumerate(rows, start=before + 1):
        yield Record(value, place, number)


@contextmanager
def _open_parquet(source: Source) -> Iterator[Any]:
    with open_file(source) as raw:
        try:
            with pyarrow.parquet.ParquetFile(raw) as file:
                yield file
        except pyarrow.ArrowException as error:
            raise DataError(f"not a readable parquet file: {error}", where=source.name) from error
        except OSError as error:
            raise unreadable(source.name, error) from error
        check_unchanged(source, raw)


def _present(
    columns: Sequence[str] | None, there: Sequence[str], source: Source
) -> list[str] | None:
    if columns is None:
        return None
    for column in columns:
        if column not in there:
            raise DataError(key_problem(column, there), where=source.name)
    return list(columns)
