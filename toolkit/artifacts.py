"""Artifacts: what stages hand to each other, whole or not at all.

An artifact is a folder with an ``artifact.json``. It is built under another name and appears by
one rename, so whatever carries the name ``artifact`` is complete.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal, get_args

from toolkit.errors import ToolkitError

ArtifactType = Literal[
    "tokenizer", "documents", "dataset", "checkpoint", "model", "adapter", "scores"
]
ARTIFACT_TYPES: tuple[str, ...] = get_args(ArtifactType)
MANIFEST = "artifact.json"
CHUNK = 1 << 20


@dataclass(frozen=True)
class FileEntry:
    """One file of an artifact: its path within, size in bytes, and SHA-256."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Parent:
    """What an artifact was made from: the reference as written, and what it pointed to."""

    reference: str
    type: str
    fingerprint: str
    folder: str
    """Relative to the artifact's folder where both lie in one run, absolute elsewhere."""


@dataclass(frozen=True)
class Artifact:
    """A finished artifact on disk."""

    folder: Path
    type: str
    fingerprint: str
    stage: str = ""
    kind: str = ""
    created: str = ""
    parents: tuple[Parent, ...] = ()
    files: tuple[FileEntry, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)
    """What the stage says of it: counts, dimensions, figures. Plain JSON values."""

    def path(self, *names: str) -> Path:
        """A path inside the artifact."""
        return self.folder.joinpath(*names)

    def parent_folder(self, parent: Parent) -> Path:
        """Where a parent lies now."""
        return (self.folder / parent.folder).resolve()

    def verify(self, *, checksums: bool = True) -> None:
        """Compare every file with its recorded size and, if asked, checksum.

        Raises:
            ToolkitError: naming the first file that is missing or differs.
        """
        for entry in self.files:
            path = self.folder / entry.path
            if not path.is_file():
                raise ToolkitError("file of the artifact is missing", where=str(path))
            size = path.stat().st_size
            if size != entry.size:
                raise ToolkitError(
                    f"file has {size:,} bytes, {entry.size:,} were written", where=str(path)
                )
            if checksums and sha256(path) != entry.sha256:
                raise ToolkitError("file's checksum differs from the one recorded", where=str(path))


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_artifact(folder: Path) -> Artifact:
    """Open a finished artifact, or adopt a folder made elsewhere (see ``adopt``).

    Raises:
        ToolkitError: the folder is missing, or nothing that a stage can use.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return adopt(folder)
    try:
        raw = json.loads(manifest.read_text(encoding="utf-8"))
        return Artifact(
            folder=folder,
            type=raw["type"],
            fingerprint=raw["fingerprint"],
            stage=raw["stage"],
            kind=raw["kind"],
            created=raw["created"],
            parents=tuple(Parent(**p) for p in raw["parents"]),
            files=tuple(FileEntry(**f) for f in raw["files"]),
            versions=raw["versions"],
            info=raw["info"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ToolkitError(
            f"not a readable artifact manifest ({error!r})",
            where=str(manifest),
            hint="restore the file, or run the stage that made it again with --fresh",
        ) from error


ADOPTED_BY: tuple[tuple[str, ArtifactType], ...] = (
    ("adapter_config.json", "adapter"),
    ("config.json", "model"),
    ("latest_checkpointed_iteration.txt", "checkpoint"),
    ("tokenizer.json", "tokenizer"),
    ("tokenizer_config.json", "tokenizer"),
    ("tekken.json", "tokenizer"),
    ("tokenizer.model", "tokenizer"),
    ("*.tiktoken", "tokenizer"),
    ("spiece.model", "tokenizer"),
    ("vocab.txt", "tokenizer"),
)
"""The file that tells the type of a folder that no stage of ours made, in order of precedence."""
TOKENIZER_FILES = (
    "*.model",
    "*.model.v*",
    "*.tiktoken",
    "tekken*.json",
    "*tokenizer.json",
    "*vocab.txt",
)
"""Names of a file that is a tokenizer by itself, as mistral-common names its files, too."""


def adopt(folder: Path) -> Artifact:
    """Take what another program made (a Hugging Face model, say, or a tekken.json) for an artifact.

    Its fingerprint is a hash of the names, sizes and modification times of its files.

    Raises:
        ToolkitError: the folder is missing, or of no known type.
    """
    if folder.is_file():
        if not any(fnmatch(folder.name, pattern) for pattern in TOKENIZER_FILES):
            known = ", ".join(TOKENIZER_FILES)
            raise ToolkitError(
                f"a file that is no tokenizer (those are {known})", where=str(folder)
            )
        return Artifact(folder=folder, type="tokenizer", fingerprint=stat_fingerprint([folder]))
    if not folder.is_dir():
        raise ToolkitError("no such folder", where=str(folder))
    for name, kind in ADOPTED_BY:
        if any(folder.glob(name)):
            return Artifact(folder=folder, type=kind, fingerprint=stat_fingerprint([folder]))
    known = ", ".join(f"{name} ({kind})" for name, kind in ADOPTED_BY)
    raise ToolkitError(
        "not an artifact: no artifact.json, and none of the files that tell a type",
        where=str(folder),
        hint=f"looked for {known}",
    )


def stat_fingerprint(paths: Sequence[Path]) -> str:
    """A hash of files' names, sizes and modification times, folders walked; no content is read."""
    digest = hashlib.sha256()
    for root in paths:
        for path in walk(root):
            stat = path.stat()
            name = path.relative_to(root).as_posix() if path != root else path.name
            digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def walk(root: Path) -> Iterator[Path]:
    """The files under a folder (or the file itself), sorted by path."""
    if root.is_file():
        yield root
    else:
        yield from sorted(p for p in root.rglob("*") if p.is_file())


def publish(
    built: Path,
    target: Path,
    *,
    artifact_type: ArtifactType,
    stage: str,
    kind: str,
    fingerprint: str,
    parents: Sequence[Parent] = (),
    versions: Mapping[str, str] | None = None,
    info: Mapping[str, Any] | None = None,
    checksums: Mapping[str, str] | None = None,
) -> Artifact:
    """Turn the finished folder ``built`` into the artifact ``target`` by one rename.

    Every file is flushed to disk and its checksum recorded first. ``built`` and ``target`` must
    be on one file system, and ``target`` must not exist.

    Args:
        checksums: SHA-256 by path, of files that another artifact's manifest has already: links to
            them are not read again.
    """
    known = checksums or {}
    names = {p.relative_to(built).as_posix(): p for p in walk(built) if p.name != MANIFEST}
    files = tuple(
        FileEntry(path=name, size=p.stat().st_size, sha256=known.get(name) or sha256(p))
        for name, p in names.items()
    )
    artifact = Artifact(
        folder=target,
        type=artifact_type,
        fingerprint=fingerprint,
        stage=stage,
        kind=kind,
        created=now(),
        parents=tuple(parents),
        files=files,
        versions=dict(versions or {}),
        info=dict(info or {}),
    )
    record = asdict(artifact)
    del record["folder"]
    write_json(built / MANIFEST, record)
    for path in walk(built):
        sync(path)
    for folder in sorted({p.parent for p in walk(built)}):
        sync(folder)
    built.rename(target)
    sync(target.parent)
    return artifact


def now() -> str:
    """The time in UTC, ISO 8601, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically: readers see the old content or the new, never a part."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"
    write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, flushed to disk."""
    temporary = own_temporary(path)
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def own_temporary(path: Path) -> Path:
    """Where this process alone writes a file before it has its name.

    Ranks on several machines write in one folder; in containers all of them may be process 1, and
    on the host's network those of one machine have its name.
    """
    who = f"{socket.gethostname()}.{os.environ.get('RANK', '0')}.{os.getpid()}"
    return path.with_name(f".{path.name}.{who}.tmp")


def sync(path: Path) -> None:
    """Flush a file or a folder's entries to disk; a file system that can't is left alone."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def link_tree(source: Path, target: Path) -> None:
    """Copy a folder by hard links, or by bytes where the file system has no links."""
    shutil.copytree(source, target, copy_function=link_or_copy)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Give a file a second name, or copy it where the file system has no links."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK):
            raise
        shutil.copy2(source, target)
