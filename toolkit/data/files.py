"""One source of data, or a part of one: a file, an object behind a URL, a named data set."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from toolkit.data.remote import RemoteFile, unreadable
from toolkit.errors import DataError

Format = Literal["txt", "jsonl", "json", "parquet", "arrow", "warc", "html", "sample", "hub"]
Compression = Literal["", "gz", "zst", "bz2", "xz"]

SUFFIXES: dict[str, Format] = {
    ".txt": "txt",
    ".jsonl": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".warc": "warc",
    ".wet": "warc",
    ".html": "html",
    ".htm": "html",
}
COMPRESSIONS: tuple[Compression, ...] = ("gz", "zst", "bz2", "xz")
UNCOMPRESSED = ("parquet", "arrow")
"""Formats that compress within; a compressed file of them can't be read from its middle."""


@dataclass(frozen=True, slots=True)
class Source:
    """One file, one object behind a URL, one embedded sample, or one data set of a hub."""

    name: str
    """As messages name it: the path as given, the URL, ``sample:python-docs``, ``hf:...``."""
    format: Format
    compression: Compression = ""
    path: Path | None = None
    """None for what is no file."""
    size: int = 0
    """Bytes on disk; 0 for samples and hubs, and where a server doesn't say."""
    mtime_ns: int = 0
    """When the file was last written, in nanoseconds; 0 where there is no file."""
    etag: str = ""
    """What a server says of an object's version, or the hub's commit; empty for files."""
    seekable: bool = True
    """Whether it can be read from its middle; some web servers can't."""

    @property
    def is_remote(self) -> bool:
        """Whether it is an object behind a URL."""
        return self.path is None and self.format not in ("sample", "hub")


@dataclass(frozen=True, slots=True)
class Part:
    """A source, or a piece of one that can be read by itself.

    ``start`` and ``stop`` are bytes in files of lines: a part owns the records that *begin* in
    ``[start, stop)``, wherever they end. They are row groups in parquet files and record batches
    in arrow files.
    """

    source: Source
    start: int = 0
    stop: int | None = None
    """None: to the end."""
    size: int = 0
    """Bytes on disk, for progress."""

    @classmethod
    def of(cls, source: Source) -> Part:
        """All of a source."""
        return cls(source, size=source.size)

    @property
    def is_whole(self) -> bool:
        """Whether it is all of its source."""
        return self.start == 0 and self.stop is None


def format_of(name: str) -> tuple[Format, Compression] | None:
    """What the end of a file's name says, in any case of letters; None if nothing known."""
    name = name.lower()
    compression: Compression = ""
    for known in COMPRESSIONS:
        if name.endswith(f".{known}"):
            compression, name = known, name.removesuffix(f".{known}")
    suffix = next((s for s in SUFFIXES if name.endswith(s) and name != s), None)
    if suffix is None or (compression and SUFFIXES[suffix] in UNCOMPRESSED):
        return None
    return SUFFIXES[suffix], compression


def known_formats() -> str:
    """For hints: every suffix that can be read."""
    plain = [s for s, form in SUFFIXES.items() if form not in UNCOMPRESSED]
    packed = [s for s, form in SUFFIXES.items() if form in UNCOMPRESSED]
    compressions = ", ".join(f".{c}" for c in COMPRESSIONS)
    return f"known are: {', '.join(plain)} (each also with {compressions}), {', '.join(packed)}"


@contextmanager
def open_file(source: Source) -> Iterator[BinaryIO | RemoteFile]:
    """Open a file or an object behind a URL, unbuffered.

    Raises:
        DataError: it can't be opened, or was changed since ``expand`` saw it.
    """
    if source.path is None:
        with RemoteFile(source.name, source.size, source.etag, source.seekable) as remote:
            yield remote
        return
    try:
        file = source.path.open("rb", buffering=0)
    except OSError as error:
        raise unreadable(source.name, error) from error
    with file:
        check_unchanged(source, file)
        yield file


def check_unchanged(source: Source, file: BinaryIO | RemoteFile) -> None:
    """Compare an open file with what ``expand`` saw.

    Raises:
        DataError: its size or modification time, or an object's version, is another now.
    """
    if isinstance(file, RemoteFile):
        file.check_unchanged()
        return
    stat = os.fstat(file.fileno())
    if (stat.st_size, stat.st_mtime_ns) != (source.size, source.mtime_ns):
        raise DataError(
            f"the file was changed since the work was planned: it had {source.size:,} bytes and "
            f"has {stat.st_size:,}, or was written again",
            where=source.name,
            hint="let nothing write to the sources; then run again with --fresh",
        )
