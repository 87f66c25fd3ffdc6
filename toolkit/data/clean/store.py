"""Documents on disk: parquet or jsonl.zst, with their ids and what else their records had.

Columns, or keys: ``text``, ``id``, ``metadata`` (in parquet JSON), ``language`` and
``language_score`` where a filter found them; of removed documents also ``reason`` and ``detail``.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from toolkit.data.clean.batch import LANGUAGE, Stored
from toolkit.data.records import raw_json

OutputFormat = Literal["parquet", "jsonl.zst"]
LEVEL = 3
"""Of zstandard."""
GROUP = 32 << 20
"""Characters in a row group."""
REMOVED = ("reason", "detail")
_TYPES = {"language_score": pa.float32()}


class Writer(Protocol):
    """Takes documents one after another."""

    def write(self, document: Stored) -> None:
        """Append one."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


def open_writer(path: Path, form: OutputFormat, extra: Sequence[str] = ()) -> Writer:
    """A writer of a file; ``extra``: columns beside text, id and metadata."""
    return ParquetWriter(path, extra) if form == "parquet" else JsonlWriter(path, extra)


class ParquetWriter:
    """Writes row groups of about 32 MB of text."""

    def __init__(self, path: Path, extra: Sequence[str] = ()) -> None:
        self._extra = tuple(extra)
        columns = ("text", "id", "metadata", *self._extra)
        self._schema = pa.schema([(name, _TYPES.get(name, pa.string())) for name in columns])
        self._writer = pq.ParquetWriter(
            path, self._schema, compression="zstd", compression_level=LEVEL
        )
        self._rows: list[dict[str, Any]] = []
        self._size = 0

    def write(self, document: Stored) -> None:
        """Append one."""
        row = _row(document, self._extra)
        row["metadata"] = _json(row["metadata"]).decode()
        self._rows.append(row)
        self._size += len(document.text)
        if self._size >= GROUP:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._rows, self._schema))
        self._rows, self._size = [], 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None and self._rows:
            self._flush()
        self._writer.close()


class JsonlWriter:
    """Writes a JSON object a line, compressed."""

    def __init__(self, path: Path, extra: Sequence[str] = ()) -> None:
        self._extra = tuple(extra)
        self._file = path.open("wb")
        self._stream = zstandard.ZstdCompressor(level=LEVEL).stream_writer(self._file)

    def write(self, document: Stored) -> None:
        """Append one."""
        self._stream.write(_json(_row(document, self._extra)) + b"\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stream.close()  # type: ignore[no-untyped-call]


def read_stored(path: Path | str) -> Iterator[Stored]:
    """The documents of a file that a writer wrote."""
    for row in _rows(Path(path)):
        metadata = {"id": row.pop("id"), **row.pop("metadata")}
        text, reason, detail = row.pop("text"), row.pop("reason", ""), row.pop("detail", "")
        found = {name: value for name, value in row.items() if value is not None}
        yield Stored(text, {**metadata, **found}, reason, detail)


def read_texts(path: str) -> Iterator[str]:
    """The texts of such a file: what deduplication reads again."""
    return (row["text"] for row in _rows(Path(path)))


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix == ".parquet":
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    yield {**row, "metadata": orjson.loads(row["metadata"])}
    else:
        with zstandard.open(path, "rb") as stream:
            yield from map(orjson.loads, io.BufferedReader(stream))


def _row(document: Stored, extra: Sequence[str]) -> dict[str, Any]:
    """The columns' values; metadata as an object."""
    metadata = document.metadata
    rest = {key: value for key, value in metadata.items() if key != "id" and key not in extra}
    row = {"text": document.text, "id": metadata["id"], "metadata": rest}
    row |= {name: metadata.get(name) for name in extra if name in LANGUAGE}
    return row | {name: getattr(document, name) for name in extra if name in REMOVED}


def _json(value: Any) -> bytes:
    return raw_json(value)
