"""The ``blend`` stage: several datasets under one name, each with its share of the samples.

The files are linked, not copied; the mixing happens while training, by Megatron's
``BlendedDataset``, in our ``pretrain`` and, through the file that is written beside the data, in
Megatron-LM itself.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.artifacts import Artifact, link_or_copy, link_tree, write_json, write_text
from toolkit.context import StageContext
from toolkit.data.indexed import IndexedReader, bin_path, idx_path
from toolkit.data.pack.config import BlendConfig
from toolkit.data.pack.dataset import TOKENIZER, Dataset, open_dataset
from toolkit.errors import DataError

logger = logging.getLogger(__name__)

ALIKE = ("dtype", "eod_id")
DATA_PATH = "data_path.txt"
"""For Megatron-LM's ``--data-args-path``: ``0.3 PREFIX 0.7 PREFIX``."""
PER_SPLIT = "per_split_data_args.json"
"""For its ``--per-split-data-args-path``: the same for train, valid and test."""


def run(config: BlendConfig, context: StageContext) -> Artifact:
    """Link the datasets, and publish a ``dataset`` artifact with their weights.

    Raises:
        DataError: they are of several tokenizers, or packed or split in different ways.
    """
    found = {name: open_dataset(context.artifact(name)) for name in config.data}
    refuse_unlike(found)
    weights = dataset_weights(found, config)
    for name, weight in weights.items():
        logger.info("%s: %.2f %% of the samples", name, 100 * weight)
    built = context.building()
    try:
        first = next(iter(found.values()))
        link_tree(first.tokenizer, built / TOKENIZER)
        links = _Links(built)
        for number, (name, dataset) in enumerate(found.items()):
            folder = f"{number:02}-" + re.sub(r"[^\w.-]", "_", Path(name).name)
            links.add(dataset, folder, weights[name])
        info = {
            **common(list(found.values())),
            **links.info(),
            "per_source": _account(found, weights),
        }
        write_data_args(built, context.folder / "artifact", info)
        return context.publish(built, "dataset", info=info, checksums=links.checksums)
    except BaseException:
        shutil.rmtree(built, ignore_errors=True)
        raise


def refuse_unlike(found: Mapping[str, Dataset]) -> None:
    """Refuse datasets that can't be mixed.

    Raises:
        DataError: naming the first two that differ, and in what.
    """
    (name, first), *others = found.items()
    for other, dataset in others:
        both = f"{name} ({first.folder}) and {other} ({dataset.folder})"
        if dataset.tokenizer_sha256 != first.tokenizer_sha256:
            prints = [d.tokenizer_sha256[:12] for d in (first, dataset)]
            raise DataError(
                f"{both} were made with different tokenizers: {prints[0]} and {prints[1]}",
                hint="tokenize both with one tokenizer",
            )
        if dataset.packed_length != first.packed_length:
            lengths = [d.packed_length or "not packed" for d in (first, dataset)]
            raise DataError(
                f"{both} differ in packing: {lengths[0]} and {lengths[1]}",
                hint="pack all of them with one seq_length, or none",
            )
        if (dataset.splits is None) != (first.splits is None):
            split, whole = (first, dataset) if first.splits is not None else (dataset, first)
            raise DataError(
                f"{split.folder} is split, {whole.folder} is not",
                hint="split all of them, or none",
            )


def dataset_weights(found: Mapping[str, Dataset], config: BlendConfig) -> dict[str, float]:
    """Each dataset's share of the samples; they add up to 1.

    Where the datasets are split, their training parts are what counts.
    """
    if config.weights is not None:
        raw = dict(zip(found, config.weights, strict=True))
    else:
        power = 1 / (config.temperature or 1)
        count = _documents if config.by == "documents" else _tokens
        raw = {name: sum(count(p) for p in _training(d)) ** power for name, d in found.items()}
    empty = [name for name, weight in raw.items() if not weight]
    if empty:
        raise DataError(f"{empty[0]} has no documents", where=str(found[empty[0]].folder))
    total = sum(raw.values())
    return {name: weight / total for name, weight in raw.items()}


def _training(dataset: Dataset) -> Sequence[Path]:
    return dataset.splits["train"] if dataset.splits is not None else dataset.prefixes


def _tokens(prefix: Path) -> float:
    return float(IndexedReader(prefix).lengths.sum(dtype=np.int64))


def _documents(prefix: Path) -> float:
    return float(IndexedReader(prefix).header.documents)


class _Links:
    """The pairs of a blend, linked to ``NN-NAME/...``, and what is to be said of them."""

    def __init__(self, built: Path) -> None:
        self._built = built
        self.checksums: dict[str, str] = {}
        """Of the linked files, as their own artifacts have them."""
        self._weights: dict[str, float] = {}
        self._masks: list[str] = []
        self._splits: dict[str, list[str]] = {}

    def add(self, dataset: Dataset, folder: str, weight: float) -> None:
        """Link a dataset's pairs, and divide its weight among those of each part."""
        for part, own in (dataset.splits or {"": dataset.prefixes}).items():
            inner = {p: dataset.weight_of(p) or _tokens(p) for p in own}
            total = sum(inner.values()) or 1
            for prefix in own:
                name = self._link(prefix, dataset, folder)
                self._weights[name] = weight * inner[prefix] / total
                self._splits.setdefault(part, []).append(name)
                if (mask := dataset.mask_of(prefix)) is not None:
                    self._masks.append(self._link(mask, dataset, folder))

    def info(self) -> dict[str, Any]:
        """Prefixes, weights, masks and splits."""
        return {
            "prefixes": list(self._weights),
            "weights": list(self._weights.values()),
            **({"masks": self._masks} if self._masks else {}),
            **({} if "" in self._splits else {"splits": self._splits}),
        }

    def _link(self, prefix: Path, dataset: Dataset, folder: str) -> str:
        inner = prefix.relative_to(dataset.folder).as_posix()
        (self._built / folder / inner).parent.mkdir(parents=True, exist_ok=True)
        for path in (bin_path(prefix), idx_path(prefix)):
            own = path.relative_to(dataset.folder).as_posix()
            link_or_copy(path, self._built / folder / own)
            if own in dataset.checksums:
                self.checksums[f"{folder}/{own}"] = dataset.checksums[own]
        return f"{folder}/{inner}"


def common(found: Sequence[Dataset]) -> dict[str, Any]:
    """What is true of all the datasets: what they agree on, and the sums of what they count."""
    first, *others = (dataset.info for dataset in found)
    shared = {
        key: first[key]
        for key in ALIKE
        if key in first and all(first[key] == o.get(key) for o in others)
    }
    info = {**shared, "vocab_size": max(int(dataset.info["vocab_size"]) for dataset in found)}
    info["tokenizer_sha256"] = found[0].tokenizer_sha256
    info["counts"] = _summed([dataset.info.get("counts", {}) for dataset in found])
    if found[0].packed_length is not None:
        packing = _summed([dataset.info["packing"] for dataset in found])
        room = packing.get("rows", 0) * found[0].packed_length
        efficiency = round(packing.get("tokens", 0) / room, 6) if room else None
        settings = {"seq_length": found[0].packed_length, "efficiency": efficiency}
        info["packing"] = {**first["packing"], **packing, **settings}
    return info


def _summed(counts: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Whole numbers, added up."""
    names = [n for n, value in counts[0].items() if isinstance(value, int) and n != "pad_id"]
    return {name: sum(int(count.get(name, 0)) for count in counts) for name in names}


def _account(found: Mapping[str, Dataset], weights: Mapping[str, float]) -> list[dict[str, Any]]:
    """What each dataset is, and what it weighs."""
    return [
        {
            "name": name,
            "weight": weights[name],
            "documents": int(sum(_documents(prefix) for prefix in dataset.prefixes)),
            "tokens": int(sum(_tokens(prefix) for prefix in dataset.prefixes)),
            "folder": str(dataset.folder),
        }
        for name, dataset in found.items()
    ]


def write_data_args(built: Path, final: Path, info: Mapping[str, Any]) -> None:
    """Write what Megatron-LM takes to train on a weighted dataset.

    Args:
        built: where the artifact is built.
        final: where it will be: Megatron needs absolute paths. In a copy of the artifact the files
            are to be written anew.
        info: with ``prefixes`` and ``weights``, and perhaps ``splits``.
    """
    weights = dict(zip(info["prefixes"], info["weights"], strict=True))
    splits = info.get("splits")

    def listed(names: Sequence[str]) -> list[str]:
        total = sum(weights[name] for name in names)
        pairs = [(f"{weights[n] / total:.6g}", str(final.absolute() / n)) for n in names]
        return [text for pair in pairs for text in pair]

    if splits is None and any(part.isspace() for part in str(final.absolute())):
        logger.warning("no %s: Megatron-LM splits it at blanks, and the path has some", DATA_PATH)
    elif splits is None:
        write_text(built / DATA_PATH, " ".join(listed(info["prefixes"])) + "\n")
    else:
        write_json(built / PER_SPLIT, {part: listed(names) for part, names in splits.items()})
