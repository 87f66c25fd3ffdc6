"""``hf:`` names: datasets folders on disk, and data sets of the Hugging Face hub as streams.

``hf:folder`` is what ``Dataset.save_to_disk`` wrote, or a folder of arrow or parquet files;
``hf:folder#train`` a split of what ``DatasetDict.save_to_disk`` wrote.
``hf:owner/name[:config]#split`` is streamed from the hub, by ``datasets``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.data.remote import network_errors
from toolkit.errors import DataError

HUB_PREFIX = "hf:"
DICTIONARY, STATE = "dataset_dict.json", "state.json"
METADATA = (DICTIONARY, STATE, "dataset_info.json")
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
    if (folder / DICTIONARY).is_file():
        folder = _split(folder, parsed.split, name)
    elif parsed.split is not None:
        raise DataError(f"the folder has no splits (no {DICTIONARY})", where=name)
    if (folder / STATE).is_file():
        files = [folder / entry["filename"] for entry in _json(folder / STATE, "_data_files")]
    else:
        files = sorted(f for f in folder.iterdir() if f.suffix in (".arrow", ".parquet"))
    if not files:
        hint = f"it lacks a {STATE} with files, and .arrow and .parquet files; see save_to_disk"
        raise DataError("not a datasets folder, or one without rows", where=name, hint=hint)
    return files


def stream_hub(name: str) -> Iterator[dict[str, Any]]:
    """The rows of a data set of the hub, as they come.

    Raises:
        DataError: there is no such data set, configuration or split, or it can't be reached.
    """
    import datasets  # takes seconds to import

    parsed = HubName.parse(name)
    try:
        rows = datasets.load_dataset(parsed.path, parsed.config, split=parsed.split, streaming=True)
        yield from rows
    except datasets.exceptions.DatasetNotFoundError as error:
        raise DataError(
            f"the hub has no such data set, or wants a token: {error}", where=name
        ) from error
    except (ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(str(error), where=name) from error
    except network_errors() as error:
        raise DataError(
            f"the hub can't be reached: {error or type(error).__name__}",
            where=name,
            hint=_offline_hint(),
        ) from error


def _offline_hint() -> str:
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
        return "HF_HUB_OFFLINE is set: unset it, or save the data set to disk and name its folder"
    return "where there is no network, save the data set to disk elsewhere and name its folder"


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
