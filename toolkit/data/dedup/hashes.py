"""What deduplication needs to know of a shard's documents, gathered while they pass by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
import numpy.typing as npt

from toolkit.data.dedup.arrays import mapped
from toolkit.data.dedup.config import ExactDedupSettings, NearDedupSettings
from toolkit.data.dedup.exact import digests, write_digests
from toolkit.data.dedup.minhash import band_keys, signatures
from toolkit.data.dedup.shingles import shingle
from toolkit.data.dedup.words import batches

SIGNATURES, LENGTHS = "near-signatures.bin", "near-lengths.bin"
"""u16[documents, num_perm], and u32[documents]: characters."""
KEYS, ORDER = "near-keys.bin", "near-order.bin"
"""u64 and u32 [bands, documents that have a word]: each band's keys, sorted, and the documents."""


class DocumentHashes:
    """Writes the hashes of a shard's documents into its folder, where the phases find them.

    Memory: 20 bytes a document beside the batch in hand (signatures go to disk as they come).

    Args:
        folder: of the shard; files named ``exact-*`` and ``near-*`` are written there.
        exact: settings of exact deduplication, if there is to be one.
        near: settings of near deduplication, if there is to be one.
    """

    def __init__(
        self, folder: Path, exact: ExactDedupSettings | None, near: NearDedupSettings | None
    ) -> None:
        self._folder, self._exact, self._near = folder, exact, near
        self._digests: list[npt.NDArray[np.uint64]] = [np.zeros((0, 2), np.uint64)]
        self._lengths: list[npt.NDArray[np.uint32]] = [np.zeros(0, np.uint32)]
        self._worded: list[npt.NDArray[np.bool_]] = [np.zeros(0, np.bool_)]
        self._signatures: BinaryIO | None = None
        if near:
            self._signatures = (folder / SIGNATURES).open("wb")
        self.documents = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        elif self._signatures:
            self._signatures.close()

    def add(self, texts: Sequence[str]) -> None:
        """Take the next documents; the order of all calls is the documents' order."""
        self.documents += len(texts)
        if self._exact:
            self._digests.append(digests(texts, self._exact.lowercase))
        if self._near:
            self._lengths.append(np.array([len(text) for text in texts], np.uint32))
            for batch in batches(texts):
                self._sign(batch, self._near)

    def close(self) -> None:
        """Sort and write what was gathered."""
        if self._exact:
            write_digests(self._folder, np.concatenate(self._digests))
        if self._near and self._signatures:
            self._signatures.close()
            np.concatenate(self._lengths).tofile(self._folder / LENGTHS)
            self._write_bands(self._near)

    def _sign(self, texts: Sequence[str], near: NearDedupSettings) -> None:
        assert self._signatures is not None
        shingles = shingle(texts, near)
        self._worded.append(shingles.counts > 0)
        self._signatures.write(signatures(shingles, near.num_perm).tobytes())

    def _write_bands(self, near: NearDedupSettings) -> None:
        rows = mapped(self._folder / SIGNATURES, np.uint16).reshape(-1, near.num_perm)
        worded = np.flatnonzero(np.concatenate(self._worded)).astype(np.uint32)
        bands, width = near.banding()
        with (self._folder / KEYS).open("wb") as keys, (self._folder / ORDER).open("wb") as order:
            for band in range(bands):
                columns = rows[:, band * width : (band + 1) * width][worded]
                found = band_keys(columns, 1, width)[:, 0]
                ranked = np.argsort(found, kind="stable")
                keys.write(found[ranked].tobytes())
                order.write(worded[ranked].tobytes())
