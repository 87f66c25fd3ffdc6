"""What a verb's argument names: a prefix, a ``.bin`` or ``.idx``, an artifact, a stage's folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.artifacts import MANIFEST, Artifact, FileEntry, read_artifact
from toolkit.data.indexed import bin_path, idx_path
from toolkit.data.pack.rows import mask_prefix
from toolkit.data.tokenizer_folder import TokenizerFolder, open_tokenizer
from toolkit.errors import DataError

SUFFIXES = (".bin", ".idx")
TOKENIZER = "tokenizer"
"""The folder in a dataset artifact that has its tokenizer."""
LEVELS = 3
"""Folders above a prefix in which its ``artifact.json`` is looked for."""
STAGE_FILE = "stage.yaml"
UNFINISHED = "its stage has not finished: there is no artifact yet"
NAMED = 12
"""Prefixes that an error lists."""


@dataclass(frozen=True)
class Dataset:
    """An indexed dataset, and what is recorded of it."""

    prefix: Path
    """Without ``.bin`` and ``.idx``."""
    artifact: Artifact | None = None
    """The artifact that it is a file of; None for one that another program made."""
    mask: Path | None = None
    """Prefix of its loss mask."""

    @property
    def name(self) -> str:
        """As an artifact calls it (``train/text_document``), or the last part of the prefix."""
        return self.prefix.name if self.artifact is None else named(self.artifact, self.prefix)

    def recorded(self, key: str) -> Any:
        """What the artifact's ``info`` says under a key; None where nothing does."""
        return self.artifact.info.get(key) if self.artifact else None

    def entry(self, path: Path) -> FileEntry | None:
        """The manifest's line on one of its files."""
        if self.artifact is None:
            return None
        name = path.relative_to(self.artifact.folder).as_posix()
        return next((file for file in self.artifact.files if file.path == name), None)

    def tokenizer(self, given: Path | None = None) -> TokenizerFolder | None:
        """The tokenizer in a folder that is given, else the artifact's; None without either.

        Raises:
            DataError: the folder given has no tokenizer that can be read.
        """
        if given is not None:
            if not given.exists():
                raise DataError("no such tokenizer", where=str(given))
            folder = artifact_folder(given) or given
            return open_tokenizer(folder)
        own = self.artifact.path(TOKENIZER) if self.artifact else None
        return open_tokenizer(own) if own and own.is_dir() else None


def named(artifact: Artifact, prefix: Path) -> str:
    """A prefix as ``info`` names it: within the artifact."""
    return prefix.relative_to(artifact.folder).as_posix()


def artifact_folder(given: Path) -> Path | None:
    """The artifact that a folder is, or that the stage of this folder made; None where none."""
    for folder in (given, given / "artifact"):
        if (folder / MANIFEST).is_file():
            return folder
    return None


def read_recorded(given: Path) -> Artifact:
    """The artifact that a folder is, or that its stage made.

    Raises:
        ToolkitError: there is no manifest, or it can't be read.
    """
    folder = artifact_folder(given)
    if folder is not None:
        return read_artifact(folder)
    if not given.is_dir():
        prefix = given.is_file() or idx_path(given).is_file()
        hint = "`toolkit data inspect` and `doctor` take a prefix" if prefix else None
        raise DataError("not the folder of an artifact", where=str(given), hint=hint)
    stages = sorted(p.parent.parent.name for p in given.glob(f"*/artifact/{MANIFEST}"))
    hint = "a stage's folder, or the artifact/ in it, has one"
    if (given / STAGE_FILE).is_file():
        hint = UNFINISHED
    elif stages:
        hint = f"this is a run; name one of its stages: {', '.join(stages)}"
    raise DataError(f"no {MANIFEST} in this folder", where=str(given), hint=hint)


def locate(given: Path) -> list[Dataset]:
    """The datasets that a path names: one, or all of an artifact.

    Raises:
        DataError: there is none; or the path is a folder of several that is no artifact.
    """
    if given.is_dir():
        return _in_folder(given)
    prefix = _prefix(given)
    return [_with_artifact(prefix)]


def locate_one(given: Path) -> Dataset:
    """As ``locate``, where one alone will do.

    Raises:
        DataError: there is none, or there are several, which it lists.
    """
    found = locate(given)
    if len(found) > 1:
        raise _several(given, [dataset.prefix for dataset in found])
    return found[0]


def _prefix(given: Path) -> Path:
    prefix = given.with_name(given.name[:-4]) if given.name.endswith(SUFFIXES) else given
    if bin_path(prefix).is_file() or idx_path(prefix).is_file():
        return prefix
    beside = sorted(p.name[:-4] for p in prefix.parent.glob("*.idx")) if prefix.parent else []
    listed = f"datasets in this folder: {', '.join(beside[:NAMED])}" if beside else None
    message = f"there is no {prefix.name}.bin and no {prefix.name}.idx"
    if given.is_file():
        message = "neither a .bin nor an .idx"
    raise DataError(message, where=str(given), hint=listed)


def _in_folder(given: Path) -> list[Dataset]:
    folder = artifact_folder(given)
    if folder is not None:
        return datasets_in(read_artifact(folder))
    pairs = sorted(path.with_name(path.name[:-4]) for path in given.rglob("*.idx"))
    masks = {mask_prefix(prefix) for prefix in pairs}
    prefixes = [prefix for prefix in pairs if prefix not in masks]
    if len(prefixes) > 1:
        raise _several(given, prefixes)
    if prefixes:
        return [_with_artifact(prefixes[0])]
    hint = UNFINISHED if (given / STAGE_FILE).is_file() else None
    raise DataError("no .idx file in this folder", where=str(given), hint=hint)


def datasets_in(artifact: Artifact) -> list[Dataset]:
    """The datasets of an artifact, each with its loss mask.

    Raises:
        DataError: it is of another type, or names none.
    """
    if artifact.type != "dataset":
        raise DataError(
            f"a {artifact.type} artifact, where a dataset was expected",
            where=str(artifact.folder),
            hint="`toolkit data stats` and `sample` take it"
            if artifact.type == "documents"
            else None,
        )
    masks = artifact.info.get("masks") or []
    parallel = dict(zip(artifact.info.get("prefixes", []), masks, strict=False))
    found = []
    for name in prefixes_of(artifact.info):
        mask = artifact.path(parallel[name]) if parallel.get(name) else None
        found.append(Dataset(artifact.path(name), artifact, mask))
    if not found:
        raise DataError("the artifact names no prefixes", where=str(artifact.folder))
    return found


def prefixes_of(info: Any) -> list[str]:
    """All prefixes of a dataset, those of its splits included, each once."""
    splits = info.get("splits") or {}
    parts = [name for names in splits.values() for name in names]
    return list(dict.fromkeys([*info.get("prefixes", []), *parts]))


def _with_artifact(prefix: Path) -> Dataset:
    """A prefix, with the artifact of the folder that it lies in."""
    for folder in _above(prefix):
        if (folder / MANIFEST).is_file():
            name = idx_path(prefix).relative_to(folder).as_posix()
            artifact = read_artifact(folder)
            if artifact.type != "dataset" or name not in {f.path for f in artifact.files}:
                continue
            known = {dataset.prefix: dataset for dataset in datasets_in(artifact)}
            return known.get(prefix, Dataset(prefix, artifact))
    return _bare(prefix)


def _bare(prefix: Path) -> Dataset:
    """A pair that is part of no artifact, with the loss mask that stands beside it."""
    mask = mask_prefix(prefix)
    return Dataset(prefix, mask=mask if idx_path(mask).is_file() else None)


def _above(prefix: Path) -> Iterator[Path]:
    yield from list(prefix.parents)[:LEVELS]


def _several(given: Path, prefixes: Sequence[Path]) -> DataError:
    names = [str(prefix.relative_to(given)) for prefix in prefixes if prefix.is_relative_to(given)]
    names = names or [prefix.name for prefix in prefixes]
    more = ", ..." if len(names) > NAMED else ""
    return DataError(
        f"{len(names)} datasets, where one was expected",
        where=str(given),
        hint=f"name one of: {', '.join(names[:NAMED])}{more}",
    )
