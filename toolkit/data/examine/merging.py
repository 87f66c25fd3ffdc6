"""Datasets made one, refused where they don't belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toolkit.data.examine.findings import Damage
from toolkit.data.examine.index_checks import check_header, check_lengths, check_offsets
from toolkit.data.examine.locate import Dataset
from toolkit.data.indexed import bin_path, check_indexed, idx_path
from toolkit.data.merge import merge_indexed
from toolkit.data.pack.rows import mask_prefix
from toolkit.errors import DataError


@dataclass(frozen=True)
class Merged:
    """What was written."""

    prefix: str
    datasets: int
    sequences: int
    documents: int
    size: int
    """Bytes of the ``.bin``."""
    mask: str | None = None


def merge(datasets: Sequence[Dataset], output: Path) -> Merged:
    """Write the documents of all datasets, in order, under the prefix ``output``.

    Loss masks are merged too, under ``OUTPUT_loss_mask``, and first: tokens of packed rows never
    stand without theirs, which would make them ordinary documents to whoever trains on them.

    Raises:
        DataError: fewer than two datasets; the output is there; the datasets have different
            dtypes or tokenizers, or one of them twice; some have a loss mask and others not; or
            one is not whole, or names parts of its ``.bin`` alone.
    """
    _refuse(datasets, output)
    masks = [dataset.mask for dataset in datasets if dataset.mask is not None]
    mask = mask_prefix(output) if masks else None
    if mask is not None:
        merge_indexed(masks, mask)
    merge_indexed([dataset.prefix for dataset in datasets], output)
    header = check_indexed(output)
    size = bin_path(output).stat().st_size
    written = str(mask) if mask else None
    return Merged(str(output), len(datasets), header.sequences, header.documents, size, written)


def _refuse(datasets: Sequence[Dataset], output: Path) -> None:
    if len(datasets) < 2:
        raise DataError("one dataset alone: there is nothing to merge", where=str(output))
    for path in (bin_path(output), idx_path(output)):
        if path.exists():
            raise DataError("the output is there already", where=str(path))
    if not output.parent.is_dir():
        raise DataError("no such folder", where=str(output.parent))
    _refuse_twice(datasets)
    _refuse_differences(datasets)
    for dataset in datasets:
        _refuse_parts(dataset.prefix)


def _refuse_twice(datasets: Sequence[Dataset]) -> None:
    seen: dict[Path, Dataset] = {}
    for dataset in datasets:
        where = idx_path(dataset.prefix).resolve()
        if where in seen:
            raise DataError("named twice: its documents would be there twice", where=str(where))
        seen[where] = dataset


def _refuse_differences(datasets: Sequence[Dataset]) -> None:
    first = datasets[0]
    for other in datasets[1:]:
        one, two = (check_indexed(d.prefix).dtype for d in (first, other))
        if one is not two:
            names = np.dtype(one).name, np.dtype(two).name
            raise _differ(first, other, f"dtypes: {names[0]} and {names[1]}")
        for key, what in (("tokenizer_sha256", "tokenizers"), ("vocab_size", "vocabularies")):
            found = first.recorded(key), other.recorded(key)
            if None not in found and found[0] != found[1]:
                shown = [str(value)[:16] for value in found]
                raise _differ(first, other, f"{what}: {shown[0]} and {shown[1]}")
        if (first.mask is None) != (other.mask is None):
            raise _differ(first, other, "kinds: one has a loss mask, the other has none")


def _differ(first: Dataset, other: Dataset, what: str) -> DataError:
    return DataError(
        f"{first.prefix} and {other.prefix} have different {what}",
        hint="tokenize both with one tokenizer",
    )


def _refuse_parts(prefix: Path) -> None:
    """An index with gaps would take the tokens between its sequences along."""
    check_indexed(prefix)
    try:
        index, _ = check_header(prefix)
        check_lengths(index)
        check_offsets(index)
    except Damage as damage:
        raise DataError(
            damage.finding.detail,
            where=str(damage.finding.place),
            hint="`toolkit data doctor` tells more; an index that names parts of its .bin can't "
            "be merged",
        ) from damage
