"""Random weights that do not depend on the layout.

Megatron draws each rank's shard from that rank's random state, so a model starts from other weights
at every TP and PP. Here each matrix has a generator of its own, seeded by its name, its layer and
the row; every rank draws the rows that touch its shard and keeps its columns. No rank holds more
than a block of rows besides its shard.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from toolkit.megatron.config import ModelConfig
from toolkit.megatron.sharding import sharded_weights

ROWS_PER_BLOCK = 1024
SCALED_DOWN = ("linear_proj.weight", "linear_fc2.weight")
"""Matrices that write into the residual stream: std / sqrt(2 x layers), as in GPT-2."""


@torch.no_grad()
def initialize_weights(
    chunks: Sequence[GPTModel], model: ModelConfig, seed: int, device: torch.device
) -> None:
    """Fill all weights: normal matrices, zero biases, unit norms; the same for every layout.

    They are drawn on ``device``, whose random numbers are its own, wherever the weights are.
    """
    for chunk in chunks:
        for tensor in sharded_weights(chunk):
            _fill(tensor, model, seed, device)


def _fill(tensor: ShardedTensor, model: ModelConfig, seed: int, device: torch.device) -> None:
    data = tensor.data
    if data.dim() == 1:
        data.fill_(0.0 if tensor.key.endswith("bias") else 1.0)
        return
    std = model.init_method_std
    if tensor.key.endswith(SCALED_DOWN):
        std /= math.sqrt(2.0 * model.num_layers)
    prepended = tensor.prepend_axis_num
    name = f"{seed}/{tensor.key}/{tensor.global_offset[:prepended]}"
    rows, columns = tensor.global_shape[prepended:]
    generator = torch.Generator(device)
    _fill_shard(data, name, std, (rows, columns), tensor.global_offset[prepended:], generator)


def _fill_shard(
    shard: Tensor,
    name: str,
    std: float,
    shape: tuple[int, int],
    offset: tuple[int, int],
    generator: torch.Generator,
) -> None:
    """Fill ``shard``, which begins at ``offset`` of a matrix of ``shape``, block by block."""
    first, last = offset[0], offset[0] + shard.shape[0]
    columns = slice(offset[1], offset[1] + shard.shape[1])
    for block in range(first // ROWS_PER_BLOCK, -(-last // ROWS_PER_BLOCK)):
        begin = block * ROWS_PER_BLOCK
        digest = hashlib.sha256(f"{name}/{block}".encode()).digest()
        generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        # Always the whole block, so that its values do not depend on where the matrix ends.
        values = torch.empty(ROWS_PER_BLOCK, shape[1], device=generator.device)
        values.normal_(0.0, std, generator=generator)
        low, high = max(first, begin), min(last, begin + ROWS_PER_BLOCK)
        shard[low - first : high - first].copy_(values[low - begin : high - begin, columns])
