"""A whole Megatron model on one rank, on the CPU, and its weights in a checkpoint's folder.

Loading reshards: a checkpoint holds global tensors, whatever TP, PP and VPP it was written at, and
one rank asks for all of each. TransformerEngine's layer spec (GPU training) and megatron-core's
local one (here) name their tensors alike in a checkpoint: ``sharded_state_dict_keys_map`` of the
local spec turns ``input_layernorm.weight`` into ``self_attention.linear_qkv.layer_norm_weight``.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory
from megatron.core.models.gpt import GPTModel
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from toolkit.errors import ToolkitError
from toolkit.megatron.config import TrainedModel
from toolkit.megatron.model import accepted, build_model
from toolkit.megatron.sharding import sharding_metadata

MODEL_PREFIXES = ("embedding.", "decoder.", "output_layer.")
"""Keys of weights in a checkpoint; the rest belongs to the optimizer and the loop."""
UNREADABLE = (
    CheckpointingException,
    CheckpointException,
    OSError,
    EOFError,
    KeyError,
    ValueError,
    RuntimeError,
    pickle.UnpicklingError,
)
"""What megatron-core and torch raise for a checkpoint that is incomplete or damaged."""


def build_network(model: TrainedModel) -> GPTModel:
    """The model on this one rank, in float32, weights not yet set; needs Megatron's groups."""
    return build_model(model, vocab_size=model.vocab_size).eval().requires_grad_(False)


def parameters(network: GPTModel) -> dict[str, Tensor]:
    """The weights by name. A tied output layer has none of its own."""
    return {name: parameter.data for name, parameter in network.named_parameters()}


def round_to(network: GPTModel, dtype: torch.dtype) -> None:
    """Round every weight to what ``dtype`` can hold; it stays float32."""
    for tensor in parameters(network).values():
        tensor.copy_(tensor.to(dtype))


def read_weights(network: GPTModel, folder: Path, model: TrainedModel) -> torch.dtype:
    """Fill ``network`` from a distributed checkpoint, and say what its weights were stored as.

    Raises:
        ToolkitError: not a checkpoint, damaged, or of a model of another shape.
    """
    try:
        stored = dist_checkpointing.load_tensors_metadata(str(folder))
    except UNREADABLE as error:
        raise ToolkitError(f"not a Megatron checkpoint: {error}", where=str(folder)) from error
    stored = {key: value for key, value in stored.items() if key.startswith(MODEL_PREFIXES)}
    state = _tensors(network.sharded_state_dict(metadata=_layout_of(stored)))
    _require_shapes(state, stored, model, folder)
    try:
        loaded = dist_checkpointing.load(state, str(folder))
    except UNREADABLE as error:
        raise ToolkitError(
            f"the checkpoint can't be read: {error}",
            where=str(folder),
            hint="its files are incomplete or damaged",
        ) from error
    own = parameters(network)
    for name in state:
        own[name].copy_(loaded[name])
    dtypes = {value.dtype for value in stored.values()}
    return dtypes.pop() if len(dtypes) == 1 else torch.float32


def write_weights(network: GPTModel, folder: Path, dtype: torch.dtype) -> None:
    """Write the weights of ``network`` as a distributed checkpoint, without an optimizer's state.

    ``folder`` exists and is empty. The network is left in ``dtype``.
    """
    network.to(dtype)
    metadata = sharding_metadata()
    state = _tensors(network.sharded_state_dict(metadata=metadata))
    del metadata["dp_cp_group"]  # a process group can't be stored
    # 0.17 to 0.19 would hand the writing to a package of NVIDIA's that need not be there.
    options = accepted(dist_checkpointing.save, async_strategy="mcore")
    dist_checkpointing.save(state, str(folder), content_metadata=metadata, **options)


def _tensors(state: Mapping[str, Any]) -> dict[str, Any]:
    """The weights alone: TransformerEngine's extra state (FP8 scales) is no weight."""
    kinds = (ShardedTensor, ShardedTensorFactory)
    return {name: value for name, value in state.items() if isinstance(value, kinds)}


def _layout_of(stored: Mapping[str, ShardedTensor]) -> dict[str, Any]:
    """The metadata that asks for the keys that are there: Megatron-LM can also store each layer,
    and each half of a gated MLP's first matrix, under a key of its own."""
    return {
        **sharding_metadata(),
        "non_homogeneous_layers": any(key.startswith("decoder.layers.0.") for key in stored),
        "singleton_local_shards": any(key.endswith(".linear_fc1.weight_w") for key in stored),
    }


def _require_shapes(
    state: Mapping[str, Any],
    stored: Mapping[str, ShardedTensor],
    model: TrainedModel,
    folder: Path,
) -> None:
    """Everything asked for is there in its shape, and everything there is asked for."""
    wanted = {shard.key: shard for value in state.values() for shard in _shards(value)}
    problems = [f"no tensor {key}" for key in sorted(wanted.keys() - stored.keys())]
    problems += [f"a tensor {key}" for key in sorted(stored.keys() - wanted.keys())]
    for key in sorted(wanted.keys() & stored.keys()):
        shape, found = tuple(wanted[key].global_shape), tuple(stored[key].global_shape)
        padded = wanted[key].allow_shape_mismatch and found[1:] == shape[1:]
        if padded and found[0] >= model.vocab_size:
            continue
        if shape != found:
            problems.append(f"{key} of shape {list(found)}, not {list(shape)}")
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise ToolkitError(
            f"the checkpoint is not of the model that model.json describes: it has "
            f"{'; '.join(problems[:4])}{more}",
            where=str(folder),
        )


def _shards(value: ShardedTensor | ShardedTensorFactory) -> Iterator[ShardedTensor]:
    if isinstance(value, ShardedTensorFactory):
        yield from value.build()
    else:
        yield value
