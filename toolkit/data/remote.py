"""Objects behind URLs (s3, gs, http, ...) through fsspec, read as files that notice a short read.

A connection that breaks is opened again where it broke, a few times; the object's version (its
ETag) must then be the same. What ends before its size is an error, never a short file.
"""

from __future__ import annotations

import asyncio
import io
import logging
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
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
BLOCK = 8 << 20
"""Bytes of a request, where the server takes ranges."""


@dataclass(frozen=True)
class RemoteObject:
    """An object that a URL names."""

    url: str
    size: int
    """0 where the server doesn't say."""
    etag: str
    seekable: bool


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
            return [_described(url, system.info(path))]
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

    Raises:
        DataError: it can't be read, has another size or version, or ends too early.
    """

    def __init__(self, url: str, size: int = 0, etag: str = "") -> None:
        super().__init__()
        self._url, self._size, self._etag = url, size, etag
        self._position = 0
        self._open()

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Whether the server takes ranges."""
        return bool(self._file.seekable())

    def tell(self) -> int:
        """Bytes from the beginning."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move; the next read opens what it needs."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        with _errors(self._url):
            self._file.seek(start + offset)
        self._position = start + offset
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
        for attempt in range(1, ATTEMPTS + 1):
            try:
                content: bytes = self._file.read(size)
                if not content and size and self._position < self._size:
                    raise EOFError(f"it ended after {self._position:,} of {self._size:,} bytes")
            except network_errors() as error:
                if attempt == ATTEMPTS:
                    raise self._broken(error) from error
                self._again(error, attempt)
            else:
                self._position += len(content)
                return content
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Close the connection."""
        if not self.closed:
            self._file.close()
        super().close()

    def _open(self) -> None:
        system, path = _system(self._url)
        with _errors(self._url):
            system.invalidate_cache()
            found = _described(self._url, system.info(path))
            self._check(found)
            options = {"size": found.size} if found.size else {}
            self._file = system.open(path, "rb", block_size=BLOCK, **options)

    def _check(self, found: RemoteObject) -> None:
        before, now = (self._size, self._etag), (found.size, found.etag)
        if (self._size or self._etag) and before != now:
            raise DataError(
                f"the object was changed since the work was planned: it had {self._size:,} bytes "
                f"({self._etag or 'no ETag'}) and has {found.size:,} ({found.etag or 'no ETag'})",
                where=self._url,
                hint="let nothing write to the sources; then run again with --fresh",
            )

    def _again(self, error: Exception, attempt: int) -> None:
        """Open anew where the reading stopped: by a range, or by reading up to there."""
        pause = PAUSE * 2 ** (attempt - 1)
        logger.warning(
            "%s: the connection broke at byte %s (%s); going on there in %.1f s",
            *(self._url, f"{self._position:,}", error or type(error).__name__, pause),
        )
        time.sleep(pause)
        try:
            self._file.close()
            self._open()
            if self._file.seekable():
                self._file.seek(self._position)
                return
            left = self._position
            while left and (skipped := self._file.read(min(left, 1 << 20))):
                left -= len(skipped)
        except network_errors() as again:
            logger.warning("%s: still broken (%s)", self._url, again or type(again).__name__)

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
        "botocore.exceptions": ("BotoCoreError", "ClientError"),
        "gcsfs.retry": ("HttpError",),
        "azure.core.exceptions": ("AzureError",),
    }
    found: list[type[Exception]] = [OSError, EOFError, asyncio.TimeoutError, TimeoutError]
    for module, classes in names.items():
        if module in sys.modules:
            found += [getattr(sys.modules[module], name) for name in classes]
    return tuple(found)


def unreadable(name: str, error: Exception) -> DataError:
    """The error for a file or object that can't be opened or read."""
    reason = error.strerror if isinstance(error, OSError) else None
    return DataError(f"can't be read: {reason or error or type(error).__name__}", where=name)


def _described(url: str, info: Mapping[str, Any]) -> RemoteObject:
    etag = next((str(info[key]).strip('"') for key in VERSION_KEYS if info.get(key)), "")
    web = scheme_of(url) in ("http", "https")
    return RemoteObject(url, info.get("size") or 0, etag, not web or bool(info.get("partial")))


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
    except FileNotFoundError as error:
        raise DataError("there is no such object", where=url) from error
    except network_errors() as error:
        raise unreadable(url, error) from error
