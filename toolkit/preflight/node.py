"""What one rank sees of its own node without a GPU: /dev/shm, the run's folder, versions."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from toolkit.context import versions
from toolkit.preflight.config import Preflight
from toolkit.preflight.report import Finding
from toolkit.quantities import megabytes

SHARED_MEMORY = Path("/dev/shm")
MEBI = 1 << 20
CHUNK = 4 * MEBI
WRITTEN = 64 * MEBI
"""Of each node, in one file: enough that a file system's cache on the node does not hide it, since
``fsync`` waits for the servers."""
WRITE_SECONDS = 3.0
"""No more is written after this time: a file system that is so slow has shown it."""
COMPARED = ("megatron-toolkit", "torch", "megatron-core", "transformer-engine", "python")


def same_everywhere() -> dict[str, str]:
    """Installed versions that must be equal on all nodes; nothing is imported."""
    found = versions()
    return {name: found[name] for name in COMPARED if name in found}


def look_at_node(folder: Path, settings: Preflight) -> Iterator[Finding]:
    """/dev/shm, and the run's folder; for one rank of each node.

    Args:
        folder: where a file may be written: of the run, on the file system that all nodes share.
        settings: the floors.
    """
    yield _room("/dev/shm", SHARED_MEMORY, settings.min_shm, total=True)
    yield _room("disk", folder, settings.min_free_disk)
    yield write_speed(folder, settings.min_write_speed)


def _room(check: str, folder: Path, least: str | None, total: bool = False) -> Finding:
    """How large a file system is, or how much of it is free, against a floor."""
    try:
        size = shutil.disk_usage(folder)
    except OSError as error:
        return Finding(check, f"{folder}: {error.strerror}", failed=least is not None)
    have = (size.total if total else size.free) // MEBI
    detail = f"{have:,} MiB {'in all' if total else 'free'}"
    if least is None or have >= megabytes(least):
        return Finding(check, detail)
    return Finding(check, f"{detail}, where {megabytes(least):,} are wanted", failed=True)


def write_speed(folder: Path, least: float | None) -> Finding:
    """MB/s (10**6 bytes) at which this node writes and syncs a file of its own."""
    path = folder / f"written-by-{os.getpid()}-{os.uname().nodename}"
    block = os.urandom(CHUNK)  # zeros would be compressed away by some file systems
    started = time.monotonic()
    written = 0
    try:
        with path.open("wb", buffering=0) as stream:
            while written < WRITTEN and time.monotonic() - started < WRITE_SECONDS:
                written += stream.write(block)
            os.fsync(stream.fileno())
    except OSError as error:
        return Finding("write speed", f"{folder}: {error.strerror}", failed=True)
    finally:
        path.unlink(missing_ok=True)
    speed = written / 1e6 / max(time.monotonic() - started, 1e-6)
    detail = f"{speed:,.0f} MB/s"
    if least is None or speed >= least:
        return Finding("write speed", detail)
    return Finding("write speed", f"{detail}, where {least:,.0f} are wanted", failed=True)
