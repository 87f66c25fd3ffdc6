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
from toolkit.data.pack.split import CARRIED
from toolkit.errors import DataError

logger = logging.getLogger(__name__)

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
        info = _link(found, weights, built)
        write_data_args(built, context.folder / "artifact", info)
        return context.publish(built, "dataset", info=info)
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
            prints = [str(d.tokenizer_sha256)[:12] for d in (first, dataset)]
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


def _link(found: Mapping[str, Dataset], weights: dict[str, float], built: Path) -> dict[str, Any]:
    """Link every pair to ``NN-NAME/...``; returns the ``info``."""
    prefixes: list[str] = []
    masks: list[str] = []
    shares: list[float] = []
    splits: dict[str, list[str]] = {}
    for number, (name, dataset) in enumerate(found.items()):
        folder = f"{number:02}-" + re.sub(r"[^\w.-]", "_", Path(name).name)
        for part, own in (dataset.splits or {"": dataset.prefixes}).items():
            inner = _inner_weights(dataset, own)
            for prefix in own:
                linked = _link_pair(prefix, dataset, built, folder)
                prefixes.append(linked)
                shares.append(weights[name] * inner[prefix])
                splits.setdefault(part, []).append(linked)
                if (mask := dataset.mask_of(prefix)) is not None:
                    masks.append(_link_pair(mask, dataset, built, folder))
    first = next(iter(found.values()))
    counts = [dataset.info.get("counts", {}) for dataset in found.values()]
    return {
        **{key: first.info[key] for key in CARRIED if key in first.info},
        "prefixes": prefixes,
        "weights": shares,
        **({"masks": masks} if masks else {}),
        **({} if "" in splits else {"splits": splits}),
        "blend": [
            {"name": n, "weight": weights[n], "folder": str(d.folder)} for n, d in found.items()
        ],
        "counts": {
            key: sum(count.get(key, 0) for count in counts) for key in ("read", "written", "tokens")
        },
    }


def _inner_weights(dataset: Dataset, prefixes: Sequence[Path]) -> dict[Path, float]:
    """How a dataset's share is divided among its own pairs of one part."""
    raw = {p: dataset.weight_of(p) or _tokens(p) for p in prefixes}
    total = sum(raw.values())
    return {prefix: weight / total if total else 0.0 for prefix, weight in raw.items()}


def _link_pair(prefix: Path, dataset: Dataset, built: Path, folder: str) -> str:
    name = f"{folder}/{prefix.relative_to(dataset.folder).as_posix()}"
    target = built / name
    target.parent.mkdir(parents=True, exist_ok=True)
    link_or_copy(bin_path(prefix), bin_path(target))
    link_or_copy(idx_path(prefix), idx_path(target))
    return name


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
