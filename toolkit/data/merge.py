"""Several indexed datasets made one: bytes moved by the kernel, the index computed by numpy.

Megatron's ``merge_datasets.py`` keeps Python lists of every pointer and reads all tokens through
memory; here memory is 12 bytes a sequence, and where the file system can share blocks
(XFS, Btrfs) the tokens are not even copied.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from toolkit.data.indexed import (
    IndexedReader,
    bin_path,
    check_indexed,
    temporary,
    write_index,
)
from toolkit.errors import DataError

NOT_HERE = (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)
"""What ``copy_file_range`` says where the file systems can't do it."""


def merge_indexed(prefixes: Sequence[Path], target: Path) -> None:
    """Write the sequences and documents of all prefixes, in their order, under ``target``.

    Raises:
        DataError: a part is not whole, has another dtype than the first, or is ``target`` itself;
            or there is none.
    """
    if not prefixes:
        raise DataError("there is nothing to merge", where=str(target))
    _refuse_itself(prefixes, target)
    headers = [check_indexed(prefix) for prefix in prefixes]
    for prefix, header in zip(prefixes, headers, strict=True):
        if header.dtype is not headers[0].dtype:
            raise DataError(
                f"the tokens are {np.dtype(header.dtype).name}, those of {prefixes[0]} are "
                f"{np.dtype(headers[0].dtype).name}",
                where=str(prefix),
                hint="they come from vocabularies of different sizes: tokenize both with one",
            )
    readers = [IndexedReader(prefix) for prefix in prefixes]
    lengths = np.concatenate([reader.lengths for reader in readers])
    ends, begun = [np.zeros(1, np.int64)], 0
    for reader in readers:
        ends.append(reader.document_indices[1:] + begun)
        begun += len(reader)
    joined = temporary(bin_path(target))
    try:
        _join([bin_path(prefix) for prefix in prefixes], joined)
        write_index(target, headers[0].dtype, lengths, np.concatenate(ends))
    finally:
        joined.unlink(missing_ok=True)


def _refuse_itself(prefixes: Sequence[Path], target: Path) -> None:
    there = bin_path(target)
    for prefix in prefixes:
        part = bin_path(prefix)
        if there.exists() and part.exists() and there.samefile(part):
            raise DataError("the result would overwrite a part of it", where=str(prefix))


def _join(parts: Sequence[Path], target: Path) -> None:
    """Write the files one after another."""
    with target.open("wb", buffering=0) as stream:
        for part in parts:
            with part.open("rb", buffering=0) as source:
                _append(source.fileno(), stream.fileno(), part.stat().st_size)
        os.fsync(stream.fileno())


def _append(source: int, target: int, size: int) -> None:
    """Copy ``size`` bytes from one descriptor to another, within the kernel where it can."""
    copy: Callable[[int, int, int], int] = os.copy_file_range
    while size:
        try:
            copied = copy(source, target, min(size, 1 << 30))
        except OSError as error:
            if error.errno not in NOT_HERE or copy is _through_memory:
                raise
            copy = _through_memory
            continue
        if not copied:
            raise DataError("a part of the dataset became shorter while it was merged")
        size -= copied


def _through_memory(source: int, target: int, size: int, /) -> int:
    """As ``os.copy_file_range``, where the file systems have no such thing."""
    left = memoryview(os.read(source, min(size, 1 << 22)))
    copied = len(left)
    while left:  # a write may take less than all: what was read must not be lost
        left = left[os.write(target, left) :]
    return copied
