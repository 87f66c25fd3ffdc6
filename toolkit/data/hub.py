"""``hf:`` names: datasets folders on disk, and data sets of the Hugging Face hub as streams.

``hf:folder`` is what ``Dataset.save_to_disk`` wrote, or a folder of arrow or parquet files (a copy
of a repository of the hub); ``hf:folder#train`` a split of what ``DatasetDict.save_to_disk`` wrote,
or the files of such a folder whose name begins with the split's.
``hf:owner/name[:config]#split`` is streamed from the hub, by ``datasets``: see ``hub_stream.py``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.errors import DataError

HUB_PREFIX = "hf:"
DICTIONARY, STATE, INFO = "dataset_dict.json", "state.json", "dataset_info.json"
"""What ``save_to_disk`` writes beside its data."""
FORMS = "hf:owner/name#split, hf:owner/name:config#split, hf:folder or hf:folder#split"


@dataclass(frozen=True)
class HubName:
    """The parts of an ``hf:`` name."""

    path: str
    """A folder, or ``owner/name``."""
    config: str | None
    split: str | None

    @classmethod
    def parse(cls, name: str) -> HubName:
        """Take a name apart; a colon belongs to a folder's name where that folder exists."""
        path, _, split = name.removeprefix(HUB_PREFIX).partition("#")
        config = None
        if ":" in path and not Path(path).expanduser().exists():
            path, _, config = path.partition(":")
        return cls(path, config or None, split or None)

    @property
    def folder(self) -> Path | None:
        """The folder on disk that it names, if there is one."""
        path = Path(self.path).expanduser()
        return path if self.path and path.is_dir() else None

    def problem(self) -> str | None:
        """Why it can't be a data set of the hub, or None."""
        parts = self.path.split("/")
        if len(parts) > 2 or not all(part and part not in (".", "..", "~") for part in parts):
            return f"no such folder, nor a name of the hub; the forms are {FORMS}"
        if self.split is None:
            return f"which split? Name it as in {HUB_PREFIX}{self.path}#train"
        return None


def dataset_files(name: str) -> list[Path]:
    """The data files of a datasets folder, in the order of its rows.

    Raises:
        DataError: the folder is no datasets folder, or a split must be named, or isn't there.
    """
    parsed = HubName.parse(name)
    folder = parsed.folder
    assert folder is not None
    split = parsed.split
    if (folder / DICTIONARY).is_file():
        folder, split = _split(folder, split, name), None
    if (folder / STATE).is_file():
        files = saved_files(folder)
    else:
        files = sorted(f for f in folder.rglob("*") if f.suffix in (".arrow", ".parquet"))
    chosen = [f for f in files if split is None or _of_split(f.relative_to(folder), split)]
    if chosen:
        return chosen
    if files:
        raise DataError(f"none of its files is of a split {split!r}", where=name)
    hint = f"it lacks a {STATE} with files, and .arrow and .parquet files; see save_to_disk"
    raise DataError("not a datasets folder, or one without rows", where=name, hint=hint)


def saved_files(folder: Path) -> list[Path]:
    """The files that ``Dataset.save_to_disk`` wrote; caches of ``map`` may lie beside them.

    Raises:
        DataError: its ``state.json`` is not readable.
    """
    return [folder / entry["filename"] for entry in _json(folder / STATE, "_data_files")]


def _of_split(file: Path, split: str) -> bool:
    """Whether the hub would take a file for one of a split: ``train-00000-of-00002.parquet``."""
    return split in file.parts[:-1] or file.stem == split or file.name.startswith(f"{split}-")


def _split(folder: Path, split: str | None, name: str) -> Path:
    splits = _json(folder / DICTIONARY, "splits")
    if split in splits:
        return folder / str(split)
    asked = "a split must be named" if split is None else f"there is no split {split!r}"
    names = ", ".join(f"{name.partition('#')[0]}#{s}" for s in splits)
    raise DataError(asked, where=name, hint=f"there are: {names}")


def _json(path: Path, key: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"not readable as datasets writes it: {error!r}", where=str(path)
        ) from error
