"""Context parallelism on the CPU: attention over a sequence that several ranks share.

megatron-core leaves it to TransformerEngine's kernels, which pass keys and values around while they
compute. Here every rank gathers all keys and values and attends with its own queries: the same
sums, more memory.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


class SharedSequenceAttention(DotProductAttention):  # type: ignore[misc]
    """Causal attention of this rank's queries, (tokens / CP, batch, heads, channels), to all keys.

    Of 2 x CP pieces of a sequence rank r has the pieces r and 2 x CP - 1 - r, as megatron-core
    deals them out (``get_batch_on_this_cp_rank``).
    """

    def __init__(self, config: TransformerConfig, *args: Any, **kwargs: Any) -> None:
        alone = copy.copy(config)
        alone.context_parallel_size = 1
        super().__init__(alone, *args, **kwargs)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Gather keys and values of the whole sequence, and attend."""
        group = parallel_state.get_context_parallel_group()
        keys, values = (gather_from_sequence_parallel_region(t, group=group) for t in (key, value))
        later = _later_tokens(len(query), group.size(), group.rank())
        context: Tensor = super().forward(query, keys, values, later, attn_mask_type, **kwargs)
        return context


def _later_tokens(own: int, ranks: int, rank: int) -> Tensor:
    """(1, 1, own, all) bool: which keys, in the order of the ranks, come after each query."""
    positions = torch.cat([_positions(own, ranks, r) for r in range(ranks)])
    return positions[None, None, None, :] > _positions(own, ranks, rank)[None, None, :, None]


def _positions(own: int, ranks: int, rank: int) -> Tensor:
    """Where a rank's tokens stand in the whole sequence."""
    piece = torch.arange(own // 2)
    return torch.cat([piece + rank * len(piece), piece + (2 * ranks - 1 - rank) * len(piece)])


def share_sequences(block: TransformerBlockSubmodules) -> None:
    """Put this attention into the layers of a block's specification."""
    for layer in block.layer_specs:
        layer.submodules.self_attention.submodules.core_attention = SharedSequenceAttention
