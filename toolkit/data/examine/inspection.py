"""What is in a dataset, at a glance: counts, lengths, the first documents as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.data.examine.decoding import Decode, decoder, token_name
from toolkit.data.examine.lengths import LengthSummary, summarize
from toolkit.data.examine.locate import Dataset
from toolkit.data.examine.structure import open_sound
from toolkit.data.indexed import IndexedReader, bin_path, idx_path
from toolkit.data.tokenizer_folder import TokenizerFolder

ENDS = 1 << 12
"""Documents, evenly spread, whose last token is looked at; ``doctor`` looks at all."""
LONGEST = 1 << 14
"""Tokens of a document that are decoded at most."""


@dataclass(frozen=True)
class Part:
    """One prefix."""

    name: str
    documents: int
    sequences: int
    tokens: int
    dtype: str
    bin_bytes: int
    idx_bytes: int


@dataclass(frozen=True)
class Ends:
    """How documents end."""

    token: int
    text: str
    share: float
    looked_at: int
    known: bool
    """Whether it is recorded as the end of documents, or only the commonest last token."""


@dataclass(frozen=True)
class Decoded:
    """A document of the dataset."""

    dataset: str
    number: int
    tokens: int
    text: str | None
    """None where no tokenizer is known."""
    ids: tuple[int, ...]
    cut: bool
    """Whether it goes on behind what is shown here."""


@dataclass(frozen=True)
class Inspection:
    """A dataset, or all of an artifact."""

    parts: tuple[Part, ...]
    lengths: LengthSummary
    ends: Ends | None
    mask_share: float | None
    """Tokens that count in the loss, of 1; None without a loss mask."""
    tokenizer: str | None
    documents: tuple[Decoded, ...]

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def inspect(
    datasets: Sequence[Dataset], *, documents: int = 3, tokenizer: Path | None = None
) -> Inspection:
    """Look at datasets through their indexes; of the tokens only a few are read.

    Loss masks, a byte for each token, are read whole. Memory is some 24 bytes a document.

    Raises:
        DataError: a dataset is not whole, or there is no such tokenizer.
    """
    readers = [open_sound(dataset) for dataset in datasets]
    folder = datasets[0].tokenizer(tokenizer)
    text = decoder(folder) if folder else None
    return Inspection(
        parts=tuple(_part(d, r) for d, r in zip(datasets, readers, strict=True)),
        lengths=summarize(document_lengths(reader) for reader in readers),
        ends=_ends(datasets[0], readers[0], folder),
        mask_share=_mask_share(datasets),
        tokenizer=str(folder.folder) if folder else None,
        documents=tuple(_first(datasets, readers, documents, text)),
    )


def _part(dataset: Dataset, reader: IndexedReader) -> Part:
    return Part(
        name=dataset.name,
        documents=reader.header.documents,
        sequences=len(reader),
        tokens=int(reader.lengths.sum(dtype=np.int64)),
        dtype=np.dtype(reader.header.dtype).name,
        bin_bytes=bin_path(dataset.prefix).stat().st_size,
        idx_bytes=idx_path(dataset.prefix).stat().st_size,
    )


def document_lengths(reader: IndexedReader) -> Any:
    """Tokens of each document: the lengths of its sequences, added up."""
    ends = np.append(np.int64(0), np.cumsum(reader.lengths, dtype=np.int64))
    return np.diff(ends[reader.document_indices])


def read_document(reader: IndexedReader, number: int, limit: int = LONGEST) -> Any:
    """The first ``limit`` tokens of a document."""
    begin, end = (int(n) for n in reader.document_indices[number : number + 2])
    taken: list[Any] = []
    left = limit
    for sequence in range(begin, end):
        taken.append(reader[sequence][:left])
        left -= len(taken[-1])
        if not left:
            break
    return np.concatenate([np.zeros(0, reader.header.dtype), *taken])


def _ends(dataset: Dataset, reader: IndexedReader, folder: TokenizerFolder | None) -> Ends | None:
    """The last tokens of documents, evenly spread over the dataset."""
    count = reader.header.documents
    numbers = np.unique(np.linspace(0, count - 1, min(count, ENDS)).astype(np.int64))
    last = reader.document_indices[numbers + 1] - 1
    last = last[last >= reader.document_indices[numbers]]
    last = last[reader.lengths[last] > 0]
    if not len(last) or np.dtype(reader.header.dtype).kind == "f":
        return None
    ends = np.array([reader[int(sequence)][-1] for sequence in last])
    known = dataset.recorded("eod_id")
    values, counts = np.unique(ends, return_counts=True)
    token = known if known is not None else int(values[np.argmax(counts)])
    share = float(np.count_nonzero(ends == token) / len(ends))
    return Ends(
        token, token_name(folder, token) if folder else "", share, len(ends), known is not None
    )


def _mask_share(datasets: Sequence[Dataset]) -> float | None:
    masks = [bin_path(d.mask) for d in datasets if d.mask is not None]
    if not masks:
        return None
    size = counted = 0
    for path in masks:
        with path.open("rb") as stream:
            while block := stream.read(1 << 22):
                size += len(block)
                counted += int(np.count_nonzero(np.frombuffer(block, np.uint8)))
    return counted / size if size else 0.0


def _first(
    datasets: Sequence[Dataset], readers: Sequence[IndexedReader], count: int, text: Decode | None
) -> list[Decoded]:
    """The first documents of the first datasets."""
    return [
        decode(dataset, reader, number, text)
        for dataset, reader in zip(datasets, readers, strict=True)
        for number in range(min(count, reader.header.documents))
    ][:count]


def decode(dataset: Dataset, reader: IndexedReader, number: int, text: Decode | None) -> Decoded:
    """A document as text, or as ids where there is no tokenizer.

    Args:
        dataset: whose document it is.
        reader: of the dataset.
        number: of the document, from 0.
        text: turns ids to text; None where no tokenizer is known.
    """
    begin, end = (int(n) for n in reader.document_indices[number : number + 2])
    ids = tuple(int(token) for token in read_document(reader, number))
    whole = int(reader.lengths[begin:end].sum(dtype=np.int64))
    written = text(ids) if text else None
    return Decoded(dataset.name, number, whole, written, ids, len(ids) < whole)
