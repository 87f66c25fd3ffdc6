"""A dataset artifact as the stages behind ``tokenize`` see it: its ``info``, read once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.artifacts import Artifact
from toolkit.data.tokenizer_folder import find_tokenizer
from toolkit.errors import DataError

TOKENIZER = "tokenizer"


@dataclass(frozen=True)
class Dataset:
    """Pairs of files, and what is known of them."""

    folder: Path
    prefixes: tuple[Path, ...]
    """Of all pairs, whatever part they belong to."""
    info: Mapping[str, Any]
    weights: tuple[float, ...] | None = None
    """Of a blend, parallel to ``prefixes``; those of a part add up to 1."""
    masks: tuple[Path, ...] | None = None
    """Loss masks, parallel to ``prefixes``."""
    splits: Mapping[str, tuple[Path, ...]] | None = None
    """By ``train``, ``valid`` and ``test``: the prefixes of each."""
    checksums: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of its files, by path in the folder."""

    @property
    def tokenizer(self) -> Path:
        """The folder of the tokenizer that made the tokens."""
        return self.folder / TOKENIZER

    @property
    def tokenizer_sha256(self) -> str:
        """Of the tokenizer that made the tokens, as recorded, or else of the one in the folder.

        Raises:
            ToolkitError: neither is there.
        """
        recorded = self.info.get("tokenizer_sha256")
        return find_tokenizer(self.tokenizer).sha256 if recorded is None else str(recorded)

    @property
    def packed_length(self) -> int | None:
        """Tokens of a packed row; None where the dataset is not packed."""
        packing = self.info.get("packing")
        return None if packing is None else int(packing["seq_length"])

    def mask_of(self, prefix: Path) -> Path | None:
        """The loss mask of a pair."""
        return self.masks[self.prefixes.index(prefix)] if self.masks else None

    def weight_of(self, prefix: Path) -> float | None:
        """The weight of a pair in a blend."""
        return self.weights[self.prefixes.index(prefix)] if self.weights else None


def open_dataset(artifact: Artifact) -> Dataset:
    """Read what an artifact says of itself; the files are not touched.

    Raises:
        DataError: it is no dataset, or its description contradicts itself.
    """
    if artifact.type != "dataset":
        where = str(artifact.folder)
        raise DataError(f"a {artifact.type}, where a dataset was expected", where=where)
    info = artifact.info
    prefixes = tuple(artifact.path(name) for name in info["prefixes"])
    splits = info.get("splits")
    masks, weights = info.get("masks"), info.get("weights")
    found = Dataset(
        folder=artifact.folder,
        prefixes=prefixes,
        info=info,
        weights=None if weights is None else tuple(float(weight) for weight in weights),
        masks=None if masks is None else tuple(artifact.path(name) for name in masks),
        splits=None
        if splits is None
        else {part: tuple(artifact.path(n) for n in names) for part, names in splits.items()},
        checksums={entry.path: entry.sha256 for entry in artifact.files},
    )
    _check(found)
    return found


def _check(found: Dataset) -> None:
    for name, values in (("weights", found.weights), ("masks", found.masks)):
        if values is not None and len(values) != len(found.prefixes):
            raise DataError(
                f"info.{name} has {len(values)} entries for {len(found.prefixes)} prefixes",
                where=str(found.folder),
            )
    for part, prefixes in (found.splits or {}).items():
        foreign = [p.name for p in prefixes if p not in found.prefixes]
        if foreign:
            raise DataError(
                f"info.splits.{part} names {foreign[0]}, which info.prefixes doesn't",
                where=str(found.folder),
            )
