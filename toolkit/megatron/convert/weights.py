"""Writes tensors to safetensors files as Hugging Face lays them out, one file in memory at a time.

Names and index follow huggingface_hub's ``save_torch_state_dict``, which wants the whole model
in memory at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from toolkit.artifacts import write_json
from toolkit.errors import ToolkitError

SINGLE = "model.safetensors"
SHARD = "model-{number:05d}-of-{count:05d}.safetensors"
INDEX = "model.safetensors.index.json"


def write_weights(
    tensors: Iterable[tuple[str, Tensor]], folder: Path, dtype: torch.dtype, max_shard_bytes: int
) -> int:
    """Write named tensors into ``folder``, as one file or as shards with an index.

    Args:
        tensors: consumed lazily; each is copied, so views of one storage are fine.
        folder: exists already.
        dtype: what they are written as.
        max_shard_bytes: a tensor that is larger alone gets a file of its own.

    Returns:
        The number of parameters written.

    Raises:
        ToolkitError: the disk is full, or another failure to write.
    """
    shards: list[dict[str, int]] = []
    for number, shard in enumerate(_shards(tensors, dtype, max_shard_bytes)):
        _save(shard, folder / f"shard-{number}.part")
        shards.append({name: tensor.numel() for name, tensor in shard.items()})
    names = [SINGLE] if len(shards) == 1 else _numbered(len(shards))
    for number, name in enumerate(names):
        (folder / f"shard-{number}.part").rename(folder / name)
    parameters = sum(sum(shard.values()) for shard in shards)
    if len(shards) > 1:
        files = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
        metadata = {"total_parameters": parameters, "total_size": parameters * dtype.itemsize}
        write_json(
            folder / INDEX, {"metadata": metadata, "weight_map": dict(sorted(files.items()))}
        )
    return parameters


def _shards(
    tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype, limit: int
) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        wanted = tensor.numel() * dtype.itemsize
        if shard and size + wanted > limit:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)
        size += wanted
    yield shard


def _save(shard: dict[str, Tensor], path: Path) -> None:
    try:
        # Readers refuse a file that doesn't say which framework wrote it.
        save_file(shard, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise ToolkitError(f"could not write the weights: {error}", where=str(path)) from error


def _numbered(count: int) -> list[str]:
    return [SHARD.format(number=number, count=count) for number in range(1, count + 1)]
