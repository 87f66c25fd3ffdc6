"""Objects behind URLs (s3, gs, http, ...) through fsspec, read as files that notice a short read.

A connection that breaks is opened again where it broke, a few times; the object's version (its
ETag) must then be the same. What ends before its size is an error, never a short file.
"""

from __future__ import annotations

import io
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from toolkit.errors import DataError

logger = logging.getLogger(__name__)

SCHEMES = (
    *("s3", "s3a", "gs", "gcs", "http", "https", "az", "abfs", "abfss", "adl", "hdfs", "webhdfs"),
    *("oci", "oss", "tos", "ftp", "sftp", "ssh", "smb", "webdav", "memory", "file", "local"),
)
"""What may stand before ``://``."""
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
VERSION_KEYS = ("ETag", "etag", "md5Hash", "LastModified", "Last-Modified", "updated", "mtime")
"""Where the file systems of fsspec say which version an object has, the strongest first."""
ATTEMPTS = 5
"""Of one read, each after a longer pause than the one before."""
PAUSE = 0.5
"""Seconds before the second attempt."""
PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError)
"""Errors that another attempt would meet again."""
BLOCK = 8 << 20
"""Bytes of a request, where the server takes ranges."""


@dataclass(frozen=True)
class RemoteObject:
    """An object that a URL names."""

    url: str
    size: int
    """0 where the server doesn't say."""
    etag: str
    seekable: bool = True
    """Whether it can be read from its middle."""


def scheme_of(name: str) -> str | None:
    """The scheme of a URL, in small letters, or None where the name is no URL."""
    found = _URL.match(name)
    return found[1].lower() if found else None


def find_objects(url: str) -> list[RemoteObject]:
    """The objects that a URL names: itself, those below it, or those that match its pattern.

    A URL of a web server names one object, whatever characters it has.

    Raises:
        DataError: nothing is there, the server can't be reached, or a package is missing.
    """
    system, path = _system(url)
    with _errors(url):
        if scheme_of(url) in ("http", "https"):
            page = _described(url, system.info(path))
            return [replace(page, seekable=_takes_ranges(system, path, page.size))]
        if any(c in path for c in "*?[") and not system.exists(path):
            found = system.glob(path, detail=True)
        else:
            info = system.info(path)
            found = {path: info} if info["type"] == "file" else system.find(path, detail=True)
    entries = sorted((name, info) for name, info in found.items() if info["type"] == "file")
    return [_described(system.unstrip_protocol(name), info) for name, info in entries]


class RemoteFile(io.RawIOBase):
    """An object behind a URL as a file.

    Args:
        url: of the object.
        size: as it was when the work was planned; 0 if unknown.
        etag: the same; empty if unknown.
        seekable: whether the server takes ranges.

    Raises:
        DataError: it can't be read, has another size or version, or ends too early.
    """

    def __init__(self, url: str, size: int = 0, etag: str = "", seekable: bool = True) -> None:
        super().__init__()
        self._url, self._size, self._etag, self._seekable = url, size, etag, seekable
        self._position = 0
        self._file: Any = None
        self._attempt(lambda: b"")

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Whether the server takes ranges."""
        return self._seekable

    def tell(self) -> int:
        """Bytes from the beginning."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move; the next read opens what it needs."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = start + offset
        if self._file is not None:
            self._file.seek(self._position)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer, as ``read``."""
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def read(self, size: int = -1) -> bytes:
        """The next bytes; none at the end.

        Raises:
            DataError: see the class.
        """
        if size < 0:
            return self.readall()
        content = self._attempt(lambda: self._read(size))
        self._position += len(content)
        return content

    def close(self) -> None:
        """Close the connection."""
        self._drop()
        super().close()

    def check_unchanged(self) -> None:
        """Compare the object with the one that was planned.

        Raises:
            DataError: its size or version is another now.
        """
        self._attempt(self._compare)

    def _compare(self) -> bytes:
        system, path = _system(self._url)
        system.invalidate_cache()
        found = _described(self._url, system.info(path))
        before, now = (self._size, self._etag), (found.size, found.etag)
        if (self._size or self._etag) and before != now:
            raise DataError(
                f"the object was changed since the work was planned: it had {self._size:,} bytes "
                f"({self._etag or 'no ETag'}) and has {found.size:,} ({found.etag or 'no ETag'})",
                where=self._url,
                hint="let nothing write to the sources; then run again with --fresh",
            )
        return b""

    def _read(self, size: int) -> bytes:
        content: bytes = self._file.read(size)
        if not content and size and self._position < self._size:
            raise EOFError(f"it ended after {self._position:,} of {self._size:,} bytes")
        return content

    def _attempt(self, action: Callable[[], bytes]) -> bytes:
        """Do something with the open file, which is opened again where the connection breaks."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                if self._file is None:
                    self._open()
                return action()
            except PERMANENT as error:
                raise unreadable(self._url, error) from error
            except network_errors() as error:
                self._drop()
                if attempt == ATTEMPTS:
                    raise self._broken(error) from error
                self._pause(error, attempt)
        raise AssertionError("unreachable")

    def _open(self) -> None:
        """Open the object at the present position: by a range, or by reading up to there."""
        self._compare()
        system, path = _system(self._url)
        self._file = system.open(path, "rb", block_size=BLOCK if self._seekable else 0)
        if self._seekable:
            self._file.seek(self._position)
            return
        left = self._position
        while left and (skipped := self._file.read(min(left, 1 << 20))):
            left -= len(skipped)

    def _drop(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None

    def _pause(self, error: Exception, attempt: int) -> None:
        pause = PAUSE * 2 ** (attempt - 1)
        logger.warning(
            "%s: the connection broke at byte %s (%s); going on there in %.1f s",
            *(self._url, f"{self._position:,}", error or type(error).__name__, pause),
        )
        time.sleep(pause)

    def _broken(self, error: Exception) -> DataError:
        size = f"{self._size:,}" if self._size else "an unknown number of"
        return DataError(
            f"the connection broke at byte {self._position:,} of {size} bytes, {ATTEMPTS} times: "
            f"{error or type(error).__name__}",
            where=self._url,
            hint="run again: what is finished is kept",
        )


def network_errors() -> tuple[type[Exception], ...]:
    """What a network says, by the libraries that are loaded; few of these are OSErrors."""
    names = {
        "aiohttp": ("ClientError",),
        "httpx": ("HTTPError",),
        "httpx2": ("HTTPError",),
        "botocore.exceptions": ("BotoCoreError", "ClientError"),
        "gcsfs.retry": ("HttpError",),
        "azure.core.exceptions": ("AzureError",),
    }
    found: list[type[Exception]] = [OSError, EOFError, TimeoutError]
    for module, classes in names.items():
        if module in sys.modules:
            found += [getattr(sys.modules[module], name) for name in classes]
    return tuple(found)


def unreadable(name: str, error: Exception) -> DataError:
    """The error for a file or object that can't be opened or read."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and scheme_of(name):
        if getattr(cause, "status", 404) == 404 and not isinstance(cause, OSError):
            return DataError("there is no such object", where=name)
        error = cause if isinstance(cause, Exception) else error
    reason = error.strerror if isinstance(error, OSError) else None
    return DataError(f"can't be read: {reason or error or type(error).__name__}", where=name)


def _described(url: str, info: Mapping[str, Any]) -> RemoteObject:
    etag = next((str(info[key]).strip('"') for key in VERSION_KEYS if info.get(key)), "")
    return RemoteObject(url, info.get("size") or 0, etag)


def _takes_ranges(system: Any, path: str, size: int) -> bool:
    """Whether a web server sends the second byte alone; what it says of itself is not enough."""
    if size < 2:
        return False
    try:
        with system.open(path, "rb", block_size=1, size=size, cache_type="none") as file:
            file.seek(1)
            return len(file.read(1)) == 1
    except ValueError:  # "The HTTP server doesn't appear to support range requests."
        return False


def _system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path within it."""
    import fsspec
    from fsspec.registry import known_implementations

    scheme = str(scheme_of(url))
    try:
        with _errors(url):
            system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = known_implementations[scheme]["class"].partition(".")[0]
        package = str(error.name or package) if package == "fsspec" else package
        raise DataError(
            f"{scheme}:// needs the package {package}, which is not installed here",
            where=url,
            hint=f"pip install {package}",
        ) from error
    return system, path


@contextmanager
def _errors(url: str) -> Iterator[None]:
    """Turn what a network says into a DataError."""
    try:
        yield
    except network_errors() as error:
        raise unreadable(url, error) from error
