"""Training and held-out parts of a corpus: by documents as Megatron cuts, or by tokens.

Megatron gives each part a share of the documents. With few documents, or one, a part gets none;
then the corpus is cut at token boundaries: new small indexes that point into the same ``.bin``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from toolkit.data.indexed import (
    CODES,
    HEADER,
    MAGIC,
    VERSION,
    IndexedReader,
    bin_path,
    idx_path,
)

PARTS = ("train", "valid", "test")


@dataclass(frozen=True)
class Span:
    """A part's range of the whole, as fractions."""

    begin: float
    end: float


def spans(shares: Sequence[float]) -> dict[str, Span]:
    """Where each part with a share begins and ends."""
    ends = np.cumsum(shares)
    found = zip(PARTS, shares, ends, strict=True)
    return {part: Span(float(end - share), float(end)) for part, share, end in found if share > 0}


def tokens_by_documents(reader: IndexedReader, span: Span) -> int:
    """Tokens of the documents that Megatron's builder puts into a part.

    Megatron counts sequences: of a corpus of sentences it cuts those.
    """
    return int(reader.lengths[_shared(len(reader), span)].sum(dtype=np.int64))


def documents_in(count: int, span: Span) -> int:
    """How many of ``count`` documents Megatron's builder puts into a part."""
    part = _shared(count, span)
    return int(part.stop - part.start)


def _shared(count: int, span: Span) -> slice:
    """The rounding is that of ``BlendedMegatronDatasetBuilder._build_megatron_dataset_splits``."""
    return slice(round(span.begin * count), round(span.end * count))


def tokens_in(reader: IndexedReader, span: Span) -> int:
    """Tokens of a part where the corpus is cut by tokens."""
    first, last = _bounds(int(reader.lengths.sum(dtype=np.int64)), span)
    return last - first


def _bounds(total: int, span: Span) -> tuple[int, int]:
    return round(span.begin * total), round(span.end * total)


def cut_by_tokens(prefix: Path, parts: dict[str, Span], folder: Path) -> None:
    """Write an index for each part, as ``folder/PART.idx``, beside a link to the ``.bin``.

    A document that a boundary falls into is cut there.
    """
    reader = IndexedReader(prefix)
    ends = np.cumsum(reader.lengths, dtype=np.int64)
    for part, span in parts.items():
        first, last = _bounds(int(ends[-1]) if len(ends) else 0, span)
        _write_part(folder / part, prefix, reader, ends, first, last)


def _write_part(
    target: Path,
    source: Path,
    reader: IndexedReader,
    ends: npt.NDArray[np.int64],
    first: int,
    last: int,
) -> None:
    """Write the index of tokens ``first`` to ``last`` of the whole."""
    starts = ends - reader.lengths
    low, high = np.maximum(starts, first), np.minimum(ends, last)
    kept = high > low
    itemsize = np.dtype(reader.header.dtype).itemsize
    lengths = (high - low)[kept].astype(np.int32)
    offsets = (reader.offsets + (low - starts) * itemsize)[kept]
    boundaries = np.arange(len(lengths) + 1, dtype=np.int64)
    header = HEADER.pack(MAGIC, VERSION, CODES[reader.header.dtype], len(lengths), len(boundaries))
    target.parent.mkdir(parents=True, exist_ok=True)
    bin_path(target).unlink(missing_ok=True)
    bin_path(target).symlink_to(bin_path(source).resolve())
    idx_path(target).write_bytes(
        header + lengths.tobytes() + offsets.tobytes() + boundaries.tobytes()
    )
