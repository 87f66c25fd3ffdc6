"""What ``sources:`` may name: files, folders, globs, ``sample:`` names; made into a sorted list."""

from __future__ import annotations

import glob
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from toolkit.data.samples import check_sample
from toolkit.errors import DataError
from toolkit.stage import SAMPLE_PREFIX

logger = logging.getLogger(__name__)

Format = Literal["txt", "jsonl", "json", "parquet", "sample"]
Compression = Literal["", "gz", "zst"]

FORMATS: dict[str, tuple[Format, Compression]] = {
    ".txt": ("txt", ""),
    ".txt.gz": ("txt", "gz"),
    ".txt.zst": ("txt", "zst"),
    ".jsonl": ("jsonl", ""),
    ".jsonl.gz": ("jsonl", "gz"),
    ".jsonl.zst": ("jsonl", "zst"),
    ".json": ("json", ""),
    ".json.gz": ("json", "gz"),
    ".json.zst": ("json", "zst"),
    ".parquet": ("parquet", ""),
}
"""What the end of a file's name says, in any case of letters."""


@dataclass(frozen=True, slots=True)
class Source:
    """One file, or one embedded sample."""

    name: str
    """As messages name it: the path as given, or ``sample:python-docs``."""
    format: Format
    compression: Compression = ""
    path: Path | None = None
    """None for a sample."""
    size: int = 0
    """Bytes on disk; 0 for a sample."""
    mtime_ns: int = 0
    """When the file was last written, in nanoseconds; 0 where nothing is known."""


def expand(sources: str | Path | Sequence[str | Path]) -> list[Source]:
    """The files and samples that sources name, each source's files sorted by path.

    A folder stands for all files of a known format in it, however deep; hidden files and names
    that begin with ``_`` (``_SUCCESS``) are passed over, others are passed over with a warning.
    Links are followed. A path that exists is never taken for a glob.

    Raises:
        DataError: a source that is missing, matches nothing, is empty, has an unknown suffix, or
            a file that two sources name.
    """
    if isinstance(sources, (str, Path)):
        sources = [sources]
    if not sources:
        raise DataError("no sources are given")
    found = [(str(given), source) for given in sources for source in _expand_one(str(given))]
    _refuse_twice(found)
    return [source for _, source in found]


def _expand_one(given: str) -> list[Source]:
    if given.startswith(SAMPLE_PREFIX):
        check_sample(given)
        return [Source(given, "sample")]
    path = Path(given).expanduser()
    if path.is_dir():
        return _known([path], f"folder {given}")
    if path.exists() or path.is_symlink():
        return [_file(path)]
    if glob.has_magic(given):
        matches = sorted(Path(p) for p in glob.glob(str(path), recursive=True))  # noqa: PTH207 - absolute patterns too
        if not matches:
            raise DataError("no file matches this pattern", where=given)
        return _known(matches, f"pattern {given}")
    raise DataError("no such file or folder", where=given, hint=_nearest_folder(path))


def _nearest_folder(path: Path) -> str:
    there = next(parent for parent in path.absolute().parents if parent.is_dir())
    return (
        f"the folder {there} exists; nothing called {path.absolute().relative_to(there)} is there"
    )


def _known(paths: Sequence[Path], what: str) -> list[Source]:
    """The files of a known format among these and in these folders."""
    files = [f for p in paths for f in (_walk(p, ()) if p.is_dir() else [p])]
    known = [f for f in dict.fromkeys(files) if _suffix(f)]
    others = Counter(f.suffix or "no suffix" for f in files if not _suffix(f))
    if not known:
        seen = f"it has: {_counts(others)}" if others else "it is empty"
        raise DataError(f"no file that can be read in the {what}; {seen}", hint=_formats())
    if others:
        logger.warning("%s: passed over files of unknown formats: %s", what, _counts(others))
    return [_file(f) for f in known]


def _walk(folder: Path, above: tuple[str, ...]) -> Iterator[Path]:
    """Files under a folder, sorted, links followed, a link to a folder above passed over."""
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"the folder can't be read: {error.strerror}", where=str(folder)) from error
    for entry in entries:
        if entry.name.startswith((".", "_")):
            continue
        if entry.is_dir():
            yield from _walk(entry, (*above, real))
        else:
            yield entry


def _suffix(path: Path) -> str | None:
    """The key of ``FORMATS`` that a file's name ends with."""
    name = path.name.lower()
    return next((s for s in FORMATS if name.endswith(s) and name != s), None)


def _file(path: Path) -> Source:
    suffix = _suffix(path)
    if suffix is None:
        raise DataError("the file's suffix names no known format", where=str(path), hint=_formats())
    try:
        stat = path.stat()
    except OSError as error:
        raise unreadable(str(path), error) from error
    if not path.is_file():
        raise DataError("not a regular file", where=str(path))
    if stat.st_size == 0:
        raise DataError("the file is empty (0 bytes)", where=str(path), hint="leave it out")
    form, compression = FORMATS[suffix]
    return Source(str(path), form, compression, path, stat.st_size, stat.st_mtime_ns)


@contextmanager
def open_file(source: Source) -> Iterator[BinaryIO]:
    """Open a source that has a path, unbuffered.

    Raises:
        DataError: the file can't be opened, or was changed since ``expand`` saw it.
    """
    assert source.path is not None
    try:
        file = source.path.open("rb", buffering=0)
    except OSError as error:
        raise unreadable(source.name, error) from error
    with file:
        check_unchanged(source, file)
        yield file


def check_unchanged(source: Source, file: BinaryIO) -> None:
    """Compare an open file with what ``expand`` saw.

    Raises:
        DataError: its size or modification time is another now.
    """
    stat = os.fstat(file.fileno())
    if (stat.st_size, stat.st_mtime_ns) != (source.size, source.mtime_ns):
        raise DataError(
            f"the file was changed since the work was planned: it had {source.size:,} bytes and "
            f"has {stat.st_size:,}, or was written again",
            where=source.name,
            hint="let nothing write to the sources; then run again with --fresh",
        )


def unreadable(name: str, error: OSError) -> DataError:
    """The error for a file that the system refuses to open or read."""
    return DataError(f"can't be read: {error.strerror or error}", where=name)


def _refuse_twice(found: Sequence[tuple[str, Source]]) -> None:
    first: dict[str, str] = {}
    for given, source in found:
        key = os.path.realpath(source.path) if source.path else source.name
        if key in first:
            raise DataError(
                f"would be read twice: {first[key]} and {given} both name it",
                where=source.name,
                hint="name it once (a link counts as the file that it points to)",
            )
        first[key] = given


def _counts(names: Counter[str]) -> str:
    return ", ".join(f"{count} x {name}" for name, count in sorted(names.items()))


def _formats() -> str:
    return f"known are: {', '.join(FORMATS)}"
