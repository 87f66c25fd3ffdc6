"""The ``split`` stage: training, validation and test data, document by document.

Never the tail of a corpus, which is another source or another year than its beginning. Each part is
an ordinary pair of files of its own, so that every tool reads, checks and moves it alone.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from toolkit.artifacts import Artifact, link_tree
from toolkit.context import StageContext
from toolkit.data.dataset_info import document_lengths
from toolkit.data.indexed import IndexedReader, IndexedWriter, bin_path
from toolkit.data.pack.config import PARTS, Shares, SplitConfig, shares
from toolkit.data.pack.dataset import TOKENIZER, Dataset, open_dataset
from toolkit.data.pack.examples import Integers, document_bounds
from toolkit.data.pack.rows import MASK_VALUES
from toolkit.errors import DataError

logger = logging.getLogger(__name__)

BLOCK = 1 << 22
"""Tokens in memory at a time; a longer document is one block."""
CARRIED = ("dtype", "vocab_size", "eod_id", "tokenizer_sha256", "packing", "bytes_per_token")
"""What stays true of a dataset that is split."""
Parts = npt.NDArray[np.int8]
"""For each document: 0 train, 1 valid, 2 test."""


def run(config: SplitConfig, context: StageContext) -> Artifact:
    """Write the parts, and publish a ``dataset`` artifact whose ``info.splits`` names them.

    Raises:
        DataError: it is split or blended already, or a part gets no document.
    """
    found = open_dataset(context.artifact(config.data))
    _refuse_split_or_blended(found)
    wanted = shares(config.split)
    parts = choose(found.prefixes, wanted, config.by, context.seed)
    _refuse_empty(parts, wanted, config, found.folder)
    built = context.building()
    try:
        link_tree(found.tokenizer, built / TOKENIZER)
        info = _write(found, parts, wanted, built, context)
        return context.publish(built, "dataset", info=info)
    except BaseException:
        shutil.rmtree(built, ignore_errors=True)
        raise


def _refuse_split_or_blended(found: Dataset) -> None:
    if found.splits is not None or found.weights is not None:
        what = "split" if found.splits is not None else "a blend"
        raise DataError(
            f"the dataset is {what} already",
            where=str(found.folder),
            hint="split each dataset first, then blend what comes out; of one tokenize stage, "
            "leave out weights",
        )


def choose(prefixes: Sequence[Path], wanted: Shares, by: str, seed: int) -> dict[Path, Parts]:
    """The part of every document of every pair.

    ``content`` compares a hash of the document's tokens (xxh3-64 of them as u32) with the shares:
    copies go to one part, whatever else is in the corpus. ``shuffle`` gives exact shares of all
    documents together.
    """
    edges = np.cumsum(wanted)[:-1]
    if by == "content":
        return {p: np.searchsorted(edges, _hashes(p), side="right").astype(np.int8)
                for p in prefixes}  # fmt: skip
    counts = [IndexedReader(prefix).header.documents for prefix in prefixes]
    total = sum(counts)
    drawn = np.random.default_rng(seed).permutation(total)
    whole = np.searchsorted(np.rint(edges * total), drawn, side="right").astype(np.int8)
    return dict(zip(prefixes, np.split(whole, np.cumsum(counts)[:-1]), strict=True))


def _hashes(prefix: Path) -> npt.NDArray[np.float64]:
    """Of each document, from 0 to 1."""
    bounds = document_bounds(prefix)
    reader = IndexedReader(prefix)
    found = np.empty(len(bounds) - 1)
    for first, last in blocks(bounds, BLOCK):
        tokens = _tokens(prefix, reader, bounds[first], bounds[last]).astype("<u4")
        data = tokens.data.cast("B")
        places = ((bounds[first : last + 1] - bounds[first]) * 4).tolist()
        digest = xxhash.xxh3_64_intdigest
        found[first:last] = [digest(data[a:b]) for a, b in pairwise(places)]
    return found / 2.0**64


def blocks(bounds: Integers, size: int) -> list[tuple[int, int]]:
    """Runs of documents of about ``size`` tokens: (first, last + 1)."""
    found, first = [], 0
    while first < len(bounds) - 1:
        last = int(np.searchsorted(bounds, bounds[first] + size, side="right")) - 1
        last = max(first + 1, last)
        found.append((first, last))
        first = last
    return found


def _tokens(prefix: Path, reader: IndexedReader, first: int, last: int) -> npt.NDArray[Any]:
    dtype = np.dtype(reader.header.dtype)
    with bin_path(prefix).open("rb") as stream:
        return np.fromfile(stream, dtype, int(last - first), offset=int(first) * dtype.itemsize)


def _refuse_empty(
    parts: dict[Path, Parts], wanted: Shares, config: SplitConfig, folder: Path
) -> None:
    counts = np.sum([np.bincount(chosen, minlength=3) for chosen in parts.values()], axis=0)
    for name, count, share in zip(PARTS, counts, wanted, strict=True):
        if share > 0 and count == 0:
            other = " or by: shuffle" if config.by == "content" else ""
            raise DataError(
                f"the {name} part ({share:.2%}) gets none of the {int(counts.sum()):,} documents",
                where=str(folder),
                hint=f"set a larger share{other}, or leave the part out, as in split: 97,3",
            )


def _write(
    found: Dataset, parts: dict[Path, Parts], wanted: Shares, built: Path, context: StageContext
) -> dict[str, Any]:
    used = [part for part, share in zip(PARTS, wanted, strict=True) if share > 0]
    names = [str(prefix.relative_to(found.folder)) for prefix in found.prefixes]
    masks = [str(mask.relative_to(found.folder)) for mask in found.masks or ()]
    counts = {part: {"documents": 0, "tokens": 0} for part in used}
    for number, prefix in enumerate(found.prefixes):
        writers = cut(prefix, parts[prefix], used, built, names[number],
                      int(found.info["vocab_size"]))  # fmt: skip
        for part, writer in writers.items():
            counts[part]["documents"] += writer.documents
            counts[part]["tokens"] += writer.tokens
        if masks:
            mask = found.masks[number] if found.masks else prefix
            cut(mask, parts[prefix], used, built, masks[number], MASK_VALUES)
        context.progress(number + 1, len(names), unit="pairs")
    for part, count in counts.items():
        logger.info("%s: %s documents, %s tokens", part,
                    f"{count['documents']:,}", f"{count['tokens']:,}")  # fmt: skip
    prefixes = [f"{part}/{name}" for part in used for name in names]
    return {
        **{key: found.info[key] for key in CARRIED if key in found.info},
        "document_lengths": document_lengths([built / name for name in prefixes]),
        "prefixes": prefixes,
        **({"masks": [f"{part}/{name}" for part in used for name in masks]} if masks else {}),
        "splits": {part: [f"{part}/{name}" for name in names] for part in used},
        "parts": counts,
        "counts": _sums(counts),
    }


def _sums(counts: dict[str, dict[str, int]]) -> dict[str, int]:
    documents = sum(count["documents"] for count in counts.values())
    tokens = sum(count["tokens"] for count in counts.values())
    return {"read": documents, "written": documents, "tokens": tokens}


def cut(
    prefix: Path, chosen: Parts, used: Sequence[str], folder: Path, name: str, vocab_size: int
) -> dict[str, IndexedWriter]:
    """Write each part of a pair to ``folder/PART/name``, in the order of the documents."""
    reader, bounds = IndexedReader(prefix), document_bounds(prefix)
    sequences = np.diff(reader.document_indices)
    with ExitStack() as stack:
        writers = {}
        for part in used:
            target = folder / part / name
            target.parent.mkdir(parents=True, exist_ok=True)
            writer = IndexedWriter(target, vocab_size, reader.header.dtype)
            writers[part] = stack.enter_context(writer)
        for first, last in blocks(bounds, BLOCK):
            tokens = _tokens(prefix, reader, bounds[first], bounds[last])
            own, counts = chosen[first:last], sequences[first:last]
            lengths = reader.lengths[
                reader.document_indices[first] : reader.document_indices[last]
            ].astype(np.int64)
            of_token = np.repeat(own, np.diff(bounds[first : last + 1]))
            of_sequence = np.repeat(own, counts)
            for part, writer in writers.items():
                code = PARTS.index(part)
                writer.write(tokens[of_token == code], lengths[of_sequence == code],
                             sequences=counts[own == code])  # fmt: skip
    return writers
