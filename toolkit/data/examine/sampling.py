"""Some documents at random: of files of any format, or of an indexed dataset, decoded.

Every document has the same chance. Files of lines are read through, but only the lines that are
taken are parsed; of parquet files only the row groups are read that have a row that is taken.
"""

from __future__ import annotations

import json
import random
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, cast, get_args

import orjson

from toolkit.artifacts import read_artifact
from toolkit.data.config import SampleBy
from toolkit.data.examine.decoding import decoder
from toolkit.data.examine.findings import Advance
from toolkit.data.examine.inspection import decode
from toolkit.data.examine.locate import SUFFIXES, Dataset, artifact_folder, locate
from toolkit.data.examine.reservoir import Reservoir
from toolkit.data.examine.structure import open_sound
from toolkit.data.files import open_file
from toolkit.data.indexed import idx_path
from toolkit.data.inputs import documents_of
from toolkit.data.keys import getter
from toolkit.data.readers import BadRecord, RecordReader
from toolkit.data.shards import Part
from toolkit.data.sources import Source, expand, is_named
from toolkit.data.streams import open_stream
from toolkit.errors import DataError


@dataclass(frozen=True)
class Sampled:
    """One document that was drawn."""

    where: str
    """``corpus.jsonl:17``, or ``text_document, document 17``."""
    text: str
    """Its text; the whole record as JSON where the key isn't there."""
    size: str
    """``133 tokens``, or ``1,204 characters``."""
    problem: str = ""
    """Why it is no record."""


@dataclass(frozen=True)
class Sample:
    """What was drawn, and of how much."""

    documents: tuple[Sampled, ...]
    population: int
    bad: int = 0
    """Records that can't be read and were passed over."""

    def lines(self) -> Iterator[str]:
        """The documents as JSON, one on a line."""
        for document in self.documents:
            known = {k: v for k, v in asdict(document).items() if v}
            yield json.dumps(known, ensure_ascii=False)


@dataclass(frozen=True)
class _Line:
    where: str
    raw: bytes


@dataclass(frozen=True)
class _Row:
    """A row of a parquet file, not yet read."""

    source: Source
    group: int
    row: int
    number: int


@dataclass(frozen=True)
class _Value:
    where: str
    value: dict[str, Any]


Pick = tuple[int, int, _Line | _Row | _Value]
"""Number of the source, place in it, and what is there: in the order of the sources."""


def datasets_of(given: Sequence[str]) -> list[Dataset]:
    """The datasets that the arguments name; none where they name files.

    Raises:
        DataError: some name a dataset, and others do not.
    """
    named = [not is_named(name) and _is_dataset(Path(name)) for name in given]
    if any(named) and not all(named):
        other = given[named.index(False)]
        raise DataError("datasets and files can't be sampled together", where=other)
    return [dataset for name in given for dataset in locate(Path(name))] if any(named) else []


def checked_sample_by(given: str) -> SampleBy:
    """What a document of a ``.txt`` file is.

    Raises:
        DataError: it is none of the known words.
    """
    for known in get_args(get_args(SampleBy)[0]):
        if given == known:
            return cast("SampleBy", given)
    raise DataError(f"--sample-by {given}: it is document, paragraph or line")


def _is_dataset(path: Path) -> bool:
    if path.is_dir():
        folder = artifact_folder(path)
        return folder is not None and read_artifact(folder).type == "dataset"
    return path.name.endswith(SUFFIXES) or idx_path(path).is_file()


def sources_of(given: Sequence[str]) -> list[Source]:
    """The files that the arguments name; a documents artifact stands for its documents.

    Raises:
        DataError: see ``expand``.
    """
    return expand([name if is_named(name) else _documents(Path(name)) for name in given])


def _documents(path: Path) -> Path:
    return documents_of(artifact_folder(path) or path)


def sample_datasets(
    datasets: Sequence[Dataset], count: int, seed: int, *, tokenizer: Path | None = None
) -> Sample:
    """Draw documents of indexed datasets, and decode them.

    Raises:
        DataError: a dataset is not whole, or there is no such tokenizer.
    """
    readers = [open_sound(dataset) for dataset in datasets]
    ends = list(accumulate(reader.header.documents for reader in readers))
    drawn = sorted(random.Random(seed).sample(range(ends[-1]), min(count, ends[-1])))
    folder = datasets[0].tokenizer(tokenizer)
    text = decoder(folder) if folder else None
    found = []
    for number in drawn:
        at = bisect_right(ends, number)
        inside = number - (ends[at - 1] if at else 0)
        one = decode(datasets[at], readers[at], inside, text)
        shown = one.text if one.text is not None else " ".join(map(str, one.ids))
        where = f"{one.dataset}, document {inside:,}"
        found.append(Sampled(where, shown, f"{one.tokens:,} tokens"))
    return Sample(tuple(found), ends[-1])


def sample_files(
    sources: Sequence[Source],
    count: int,
    seed: int,
    advance: Advance,
    *,
    text_key: str = "text",
    sample_by: SampleBy = "document",
) -> Sample:
    """Draw records of files.

    Raises:
        DataError: a file can't be read.
    """
    reservoir: Reservoir[Pick] = Reservoir(count, random.Random(seed))
    bad: list[BadRecord] = []
    for number, source in enumerate(sources):
        if source.format == "jsonl":
            _offer_lines(number, source, reservoir, advance)
        elif source.format == "parquet" and source.seekable:
            _offer_rows(number, source, reservoir)
            advance(source.size)
        else:
            _offer_records(number, source, reservoir, bad, sample_by)
            advance(source.size)
    picked = [item for _, _, item in sorted(reservoir.items, key=lambda pick: pick[:2])]
    find = getter(text_key)
    documents = tuple(_shown(item, find) for item in _fetch(picked))
    return Sample(documents, reservoir.seen, len(bad))


def _offer_lines(number: int, source: Source, reservoir: Reservoir[Pick], advance: Advance) -> None:
    with open_stream(Part.of(source)) as stream:
        first, before = 1, 0
        for lines in stream.line_lists():
            kept: Sequence[int] = range(len(lines))
            if b"" in lines or b"\r" in lines:
                kept = [i for i in kept if lines[i].strip()]
            take = partial(_take_line, number, source.name, first, lines, kept)
            reservoir.offer(len(kept), take)
            first += len(lines)
            advance(stream.position - before)
            before = stream.position


def _take_line(
    number: int, name: str, first: int, lines: list[bytes], kept: Sequence[int], index: int
) -> Pick:
    line = first + kept[index]
    return number, line, _Line(f"{name}:{line}", lines[kept[index]])


def _offer_rows(number: int, source: Source, reservoir: Reservoir[Pick]) -> None:
    with _parquet(source) as file:
        groups = [file.metadata.row_group(n).num_rows for n in range(file.metadata.num_row_groups)]
    before = 0
    for group, rows in enumerate(groups):
        reservoir.offer(rows, partial(_take_row, number, source, group, before))
        before += rows


def _take_row(number: int, source: Source, group: int, before: int, index: int) -> Pick:
    return number, before + index, _Row(source, group, index, before + index + 1)


def _offer_records(
    number: int,
    source: Source,
    reservoir: Reservoir[Pick],
    bad: list[BadRecord],
    sample_by: SampleBy,
) -> None:
    for place, record in enumerate(RecordReader([source], bad.append, sample_by=sample_by)):
        pick = (number, place, _Value(record.where, record.value))
        reservoir.offer(1, partial(_same, pick))


def _same(pick: Pick, index: int) -> Pick:
    """The one item that is offered."""
    assert index == 0
    return pick


def _fetch(picked: Sequence[_Line | _Row | _Value]) -> Iterator[_Line | _Value]:
    """The same, with the rows of parquet files read: each row group once."""
    table: Any = None
    at: tuple[str, int] | None = None
    for item in picked:
        if not isinstance(item, _Row):
            yield item
            continue
        if at != (item.source.name, item.group):
            at = (item.source.name, item.group)
            with _parquet(item.source) as file:
                table = file.read_row_group(item.group, use_threads=False)
        yield _Value(f"{item.source.name}:{item.number}", _row(table, item))


def _row(table: Any, item: _Row) -> dict[str, Any]:
    try:
        found: dict[str, Any] = table.slice(item.row, 1).to_pylist()[0]
    except UnicodeDecodeError as error:
        where = f"{item.source.name}:{item.number}"
        raise DataError(f"invalid UTF-8: {error.reason}", where=where) from error
    return found


@contextmanager
def _parquet(source: Source) -> Iterator[Any]:
    """An open parquet file, wherever it lies."""
    import pyarrow
    import pyarrow.parquet

    with open_file(source) as raw:
        try:
            yield pyarrow.parquet.ParquetFile(raw, pre_buffer=False)
        except (pyarrow.ArrowException, UnicodeDecodeError) as error:
            raise DataError(f"not a readable parquet file: {error}", where=source.name) from error


def _shown(item: _Line | _Value, find: Callable[[dict[str, Any]], Any]) -> Sampled:
    """A record's text; where it has none, all of it."""
    value: Any
    if isinstance(item, _Value):
        value = item.value
    else:
        try:
            value = orjson.loads(item.raw)
        except orjson.JSONDecodeError as error:
            text = item.raw.decode("utf-8", errors="replace")
            return Sampled(item.where, text, f"{len(item.raw):,} bytes", f"invalid JSON: {error}")
    found = find(value) if isinstance(value, dict) else None
    whole = json.dumps(value, ensure_ascii=False, indent=2, default=str)
    text = found if isinstance(found, str) else whole
    letters = "character" if len(text) == 1 else "characters"
    return Sampled(item.where, text, f"{len(text):,} {letters}")
