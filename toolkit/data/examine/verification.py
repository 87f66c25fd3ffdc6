"""Whether the files of an artifact are the ones that were written: sizes, then SHA-256."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from toolkit.artifacts import MANIFEST, Artifact, FileEntry, walk
from toolkit.data.examine.findings import Advance

BLOCK = 1 << 22
THREADS = 4
"""Files at a time; hashing leaves Python's lock alone."""


@dataclass(frozen=True)
class Checked:
    """One file, and what is wrong with it; nothing where nothing is."""

    path: str
    size: int
    problem: str = ""


def verify(artifact: Artifact, advance: Advance) -> list[Checked]:
    """Compare every recorded file, and name every file that is not recorded.

    Args:
        artifact: of any type; one without a manifest has no recorded files.
        advance: told the bytes as they are read, from several threads.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        checked = list(pool.map(partial(_check, artifact.folder, advance), artifact.files))
    return [*checked, *_unrecorded(artifact.folder, artifact.files)]


def _check(folder: Path, advance: Advance, entry: FileEntry) -> Checked:
    path = folder / entry.path
    if not path.is_file():
        advance(entry.size)
        return Checked(entry.path, entry.size, "is missing")
    size = path.stat().st_size
    if size != entry.size:
        advance(entry.size)
        return Checked(entry.path, entry.size, f"has {size:,} bytes, {entry.size:,} were written")
    try:
        found = _digest(path, advance)
    except OSError as error:
        return Checked(entry.path, entry.size, f"can't be read: {error.strerror}")
    if found != entry.sha256:
        problem = f"has another content: sha256 {found[:16]}..., recorded {entry.sha256[:16]}..."
        return Checked(entry.path, entry.size, problem)
    return Checked(entry.path, entry.size)


def _digest(path: Path, advance: Advance) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
            advance(len(block))
    return digest.hexdigest()


def _unrecorded(folder: Path, files: Sequence[FileEntry]) -> list[Checked]:
    known = {entry.path for entry in files} | {MANIFEST}
    found = ((path.relative_to(folder).as_posix(), path) for path in walk(folder))
    return [
        Checked(name, path.stat().st_size, "is not in the manifest")
        for name, path in found
        if name not in known
    ]
