"""Token rows on disk: written once by rank 0, memory-mapped by every rank and every attempt.

Tokenizing happens before any process group exists, so that a large data set can't run into the
timeout of a collective.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset

from toolkit.artifacts import write_json
from toolkit.context import StageContext

logger = logging.getLogger(__name__)

Row = Mapping[str, list[int]]
Account = dict[str, Any]
"""What became of the rows, as plain values: counts, what was dropped and why, an example."""
BATCH = 1000
POLL = 0.2
"""Seconds between looks of the other ranks at rank 0's work."""
REPORT_EVERY = 200
"""Rows between two reports of progress."""


@dataclass(frozen=True)
class Rows:
    """Rows of token ids, and the account of how they came about."""

    dataset: Dataset
    account: Account


def stored_rows(
    context: StageContext,
    name: str,
    columns: Sequence[str],
    make: Callable[[Account], Iterator[Row]],
) -> Rows:
    """The rows that ``make`` yields, from ``work/rows`` where an earlier attempt stored them.

    Args:
        context: rank 0 makes the rows; the others wait for it.
        name: of the files, ``{name}.arrow`` and ``{name}.json``.
        columns: the keys of a row; each holds a list of ids.
        make: yields the rows, and has filled in the account when it ends.
    """
    folder = context.work / "rows"
    folder.mkdir(exist_ok=True)
    arrow, account = folder / f"{name}.arrow", folder / f"{name}.json"
    if context.rank == 0 and not account.exists():
        made: Account = {}
        _write(arrow, columns, _reported(make(made), context))
        write_json(account, made)
    while not account.exists():
        time.sleep(POLL)
    return Rows(Dataset.from_file(str(arrow)), json.loads(account.read_text(encoding="utf-8")))


def _reported(rows: Iterator[Row], context: StageContext) -> Iterator[Row]:
    for number, row in enumerate(rows, start=1):
        if number % REPORT_EVERY == 0:
            context.progress(number, unit="rows tokenized")
        yield row


def _write(path: Path, columns: Sequence[str], rows: Iterator[Row]) -> None:
    schema = pa.schema([(column, pa.list_(pa.int32())) for column in columns])
    temporary = path.with_suffix(".part")
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        while batch := list(islice(rows, BATCH)):
            table = {column: [row[column] for row in batch] for column in columns}
            writer.write_table(pa.table(table, schema=schema))
    temporary.replace(path)


def split_off(dataset: Dataset, count: int, seed: int) -> tuple[Dataset, Dataset]:
    """The rows but ``count`` of them, and those, chosen by the seed; both keep their order."""
    chosen = sorted(random.Random(seed).sample(range(len(dataset)), count))
    taken = set(chosen)
    return dataset.select([i for i in range(len(dataset)) if i not in taken]), dataset.select(
        chosen
    )


def held_out_count(rows: int, fraction: float, most: int) -> int:
    """How many of ``rows`` to hold out: at least one, unless that would leave none to train on."""
    if fraction == 0 or rows < 2:
        return 0
    return min(max(1, round(rows * fraction)), most, rows - 1)
