"""Packed rows as samples: each row is one, whole, and its examples don't see each other.

The rows are those of ``toolkit.data.pack.rows``. A sample's loss counts the tokens that the mask
marks, each predicted from those in front of it in its own example; positions begin anew with each
example, and ``lengths`` says where, for the attention.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from megatron.core.datasets.blended_megatron_dataset_config import BlendedMegatronDatasetConfig
from megatron.core.datasets.megatron_dataset import MegatronDataset
from megatron.core.datasets.utils import Split
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from toolkit.data.indexed import IndexedReader, bin_path
from toolkit.data.pack.examples import document_bounds
from toolkit.errors import DataError


@dataclass
class PackedDatasetConfig(BlendedMegatronDatasetConfig):  # type: ignore[misc]
    """What Megatron's builder asks of a configuration, and where the masks are."""

    masks: Mapping[str, str] = field(default_factory=dict)
    """Prefixes of the loss masks, by those of the tokens."""


class PackedRows:
    """A pair of packed rows and the pair of their mask, mapped.

    Raises:
        DataError: a file is damaged, or the rows are not all of ``seq_length`` tokens.
    """

    def __init__(self, prefix: Path, mask: Path, seq_length: int) -> None:
        reader, masks = IndexedReader(prefix), IndexedReader(mask)
        self.bounds = reader.document_indices
        self.lengths = reader.lengths
        rows = reader.header.documents
        if not np.array_equal(document_bounds(prefix), np.arange(rows + 1) * seq_length):
            raise DataError(
                f"not packed into rows of {seq_length:,} tokens",
                where=str(prefix),
                hint="pack the data again with this seq_length",
            )
        if not np.array_equal(masks.lengths, self.lengths):
            raise DataError("the loss mask is not of these rows", where=str(mask))
        self.tokens = _matrix(prefix, reader, seq_length)
        self.mask = _matrix(mask, masks, seq_length)

    def __len__(self) -> int:
        return len(self.bounds) - 1


def _matrix(prefix: Path, reader: IndexedReader, seq_length: int) -> npt.NDArray[np.number[Any]]:
    if not len(reader):
        return np.zeros((0, seq_length), reader.header.dtype)
    return np.memmap(bin_path(prefix), reader.header.dtype, mode="r").reshape(-1, seq_length)


class PackedDataset(MegatronDataset):  # type: ignore[misc]
    """The rows of one part, epoch after epoch, each in an order of its own.

    It stands where ``GPTDataset`` does, so that Megatron's builder splits and blends it. There is
    no index to build: an epoch's order is drawn when it is reached.
    """

    def __init__(
        self,
        dataset: PackedRows,
        dataset_path: str | None,
        indices: npt.NDArray[np.int32],
        num_samples: int | None,
        index_split: Split,
        config: PackedDatasetConfig,
    ) -> None:
        super().__init__(dataset, dataset_path, indices, num_samples, index_split, config)
        self.order = functools.lru_cache(maxsize=2)(self._order)

    @staticmethod
    def numel_low_level_dataset(low_level_dataset: PackedRows) -> int:
        """Rows: what is divided into training and held-out data."""
        return len(low_level_dataset)

    @staticmethod
    def build_low_level_dataset(dataset_path: str, config: PackedDatasetConfig) -> PackedRows:
        """Open a pair and its mask."""
        mask = Path(config.masks[dataset_path])
        return PackedRows(Path(dataset_path), mask, config.sequence_length)

    def __len__(self) -> int:
        """The samples asked for; without a number, each row once."""
        return len(self.indices) if self.num_samples is None else int(self.num_samples)

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        if self.index_split == Split.valid:
            return np.arange(len(self.indices))
        random = np.random.default_rng([self.config.random_seed, epoch])
        return random.permutation(len(self.indices))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """A row: tokens, labels, loss_mask and position_ids of (seq_length,), and the lengths of
        its examples, padding included as the last."""
        epoch, number = divmod(int(index), len(self.indices))
        row = int(self.indices[self.order(epoch)[number]])
        first, last = self.dataset.bounds[row : row + 2]
        lengths = self.dataset.lengths[first:last]
        ends = np.cumsum(lengths)
        tokens = self.dataset.tokens[row].astype(np.int64)
        mask = np.roll(self.dataset.mask[row], -1).astype(np.float32)
        mask[ends - 1] = 0  # what follows an example's last token is another's
        positions = np.arange(len(tokens)) - np.repeat(ends - lengths, lengths)
        return {
            "tokens": torch.from_numpy(tokens),
            "labels": torch.from_numpy(np.roll(tokens, -1)),
            "loss_mask": torch.from_numpy(mask),
            "position_ids": torch.from_numpy(positions),
            "lengths": torch.from_numpy(lengths.astype(np.int32)),
        }


def cumulative_lengths(samples: list[dict[str, Tensor]]) -> Tensor:
    """Where the examples of a microbatch begin and end, all rows in one: int32 (examples + 1,)."""
    lengths = torch.cat([torch.zeros(1, dtype=torch.int32), *(s["lengths"] for s in samples)])
    return torch.cumsum(lengths, dim=0, dtype=torch.int32)


def joins_rows(device: torch.device) -> bool:
    """Whether the attention on ``device`` is TransformerEngine's, which takes a microbatch of
    packed rows as one long row and its ``cu_seqlens``; the CPU's takes a dense mask."""
    return device.type == "cuda"


def examples_apart(position_ids: Tensor) -> Tensor:
    """The mask of what must not be attended to, for attention that takes a dense one.

    Args:
        position_ids: (rows, seq_length), 0 at each example's first token.

    Returns:
        (rows, 1, seq_length, seq_length) bool: True for other examples and for what comes later.
    """
    length = position_ids.shape[1]
    places = torch.arange(length, device=position_ids.device)
    begun = places - position_ids
    other = begun[:, :, None] != begun[:, None, :]
    return (other | (places[None, :] > places[:, None])).unsqueeze(1)


def packed_sequences(cu_seqlens: Tensor, seq_length: int) -> PackedSeqParams:
    """The same for TransformerEngine's attention over one long row (``thd``).

    ``seq_length`` bounds the longest example: asking for its length would wait for the GPU.
    """
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_kv=cu_seqlens,
        max_seqlen_q=seq_length,
        max_seqlen_kv=seq_length,
    )
