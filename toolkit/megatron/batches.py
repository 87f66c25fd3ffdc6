"""Microbatches in the order of the samples: the same samples in every step at every layout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from toolkit.errors import DataError
from toolkit.megatron.packed import cumulative_lengths

FILLER = -1
"""Stands for a sample that only fills up a batch: its loss is masked."""


@dataclass(frozen=True)
class Sharding:
    """How a global batch is dealt out: ``micro_batch_size`` samples to each rank in turn."""

    global_batch_size: int
    micro_batch_size: int
    data_parallel_rank: int
    data_parallel_size: int

    def microbatches(self, first: int, last: int) -> Iterator[list[int]]:
        """This rank's microbatches of the samples ``first`` to ``last``; a rest is dropped.

        The order is that of Megatron-LM's ``MegatronPretrainingSampler``.
        """
        step = self.micro_batch_size * self.data_parallel_size
        own = self.data_parallel_rank * self.micro_batch_size
        for batch in range(first, last - self.global_batch_size + 1, self.global_batch_size):
            for start in range(batch + own, batch + self.global_batch_size, step):
                yield list(range(start, start + self.micro_batch_size))

    def filled(self, samples: int) -> Iterator[list[int]]:
        """All microbatches of ``samples`` samples, the last batch filled up with ``FILLER``."""
        whole = -(-samples // self.global_batch_size) * self.global_batch_size
        for batch in self.microbatches(0, whole):
            yield [index if index < samples else FILLER for index in batch]


@dataclass(frozen=True)
class Batch:
    """One microbatch; each tensor is (micro_batch_size, seq_length)."""

    tokens: Tensor
    labels: Tensor
    loss_mask: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor | None = None
    """Of packed rows: where the examples of all rows begin and end, (examples + 1,)."""


def of_rank(batch: Batch, rank: int, ranks: int) -> Batch:
    """What a context-parallel rank has of every sequence: the pieces ``rank`` and, from the end,
    ``rank`` again of 2 x ``ranks``, so that all ranks attend to as many tokens
    (``get_batch_on_this_cp_rank`` of megatron-core).
    """
    if ranks == 1:
        return batch

    def own(tensor: Tensor) -> Tensor:
        pieces = tensor.chunk(2 * ranks, dim=1)
        return torch.cat([pieces[rank], pieces[2 * ranks - 1 - rank]], dim=1)

    names = ("tokens", "labels", "loss_mask", "position_ids")
    return replace(batch, **{name: own(getattr(batch, name)) for name in names})


class Samples(torch.utils.data.Dataset[dict[str, Tensor]]):
    """A dataset that knows ``FILLER``, and refuses token ids outside the vocabulary."""

    def __init__(self, dataset: Any, vocab_size: int) -> None:
        self.dataset, self.vocab_size = dataset, vocab_size

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        sample: dict[str, Tensor] = self.dataset[max(index, 0)]
        if index == FILLER:
            return sample | {"loss_mask": torch.zeros_like(sample["loss_mask"])}
        highest = int(torch.maximum(sample["tokens"].max(), sample["labels"].max()))
        if highest >= self.vocab_size:
            raise DataError(
                f"token id {highest} in sample {index} is outside the vocabulary of"
                f" {self.vocab_size:,} (0 to {self.vocab_size - 1:,})",
                hint="the tokens come from another tokenizer, or the .bin file was overwritten",
            )
        return sample


def load_batches(
    samples: Samples,
    indices: Sequence[list[int]] | Iterator[list[int]],
    device: torch.device,
    num_workers: int = 0,
) -> Iterator[Batch]:
    """The microbatches of ``indices`` on ``device``, read ahead where there are workers."""
    loader = DataLoader(
        samples,
        batch_sampler=indices,
        num_workers=num_workers,
        collate_fn=_collate,
        pin_memory=device.type == "cuda",
        # The loader draws a seed for its workers; not from the generator that dropout draws from.
        generator=torch.Generator(),
    )
    for tensors in loader:
        yield Batch(**{name: t.to(device, non_blocking=True) for name, t in tensors.items()})


def _collate(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    names = ("tokens", "labels", "loss_mask", "position_ids")
    batch = {name: torch.stack([sample[name] for sample in samples]) for name in names}
    if "lengths" in samples[0]:
        batch["cu_seqlens"] = cumulative_lengths(samples)
    return batch
