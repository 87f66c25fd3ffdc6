"""How Megatron's parameters and Hugging Face's hold the same numbers.

A family's table is a list of rules. Each rule names one Megatron parameter (as the local layer
spec of megatron-core names it, on one rank), the Hugging Face parameters that it holds, and the
codec between them. Export and import read the same table, so they can't drift apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from toolkit.errors import ToolkitError
from toolkit.megatron.config import TrainedModel


@dataclass(frozen=True, slots=True)
class Codec:
    """Both ways between one Megatron tensor and the Hugging Face tensors that it holds."""

    split: Callable[[Tensor, TrainedModel], Sequence[Tensor]]
    """Megatron to Hugging Face. May return views."""
    join: Callable[[Sequence[Tensor], TrainedModel], Tensor]
    """Hugging Face to Megatron; the exact inverse of ``split``."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One Megatron parameter, and the Hugging Face parameters that hold the same numbers."""

    megatron: str
    hf: tuple[str, ...]
    codec: Codec


def _split_vocabulary(tensor: Tensor, model: TrainedModel) -> Sequence[Tensor]:
    return (tensor[: model.vocab_size],)


def _join_vocabulary(tensors: Sequence[Tensor], model: TrainedModel) -> Tensor:
    """Padding rows are zero: ``build_model`` sets their logits to minus infinity anyway."""
    (real,) = tensors
    padding = real.new_zeros(model.padded_vocab_size - model.vocab_size, *real.shape[1:])
    return torch.cat([real, padding]) if len(padding) else real


def _split_groups(tensor: Tensor, model: TrainedModel) -> Sequence[Tensor]:
    """``linear_qkv`` is laid out by query group: the group's queries, then its key and value
    (megatron/core/transformer/attention.py, ``get_query_key_value_tensors``)."""
    groups, queries, channels = _attention_shape(model)
    grouped = tensor.reshape(groups, queries + 2, channels, *tensor.shape[1:])
    parts = grouped.split([queries, 1, 1], dim=1)
    return [part.reshape(-1, *tensor.shape[1:]) for part in parts]


def _join_groups(tensors: Sequence[Tensor], model: TrainedModel) -> Tensor:
    groups, _, channels = _attention_shape(model)
    rest = tensors[0].shape[1:]
    parts = [part.reshape(groups, -1, channels, *rest) for part in tensors]
    return torch.cat(parts, dim=1).reshape(-1, *rest)


def _attention_shape(model: TrainedModel) -> tuple[int, int, int]:
    """(query groups, queries in each, channels of each)."""
    groups = model.query_groups
    return groups, model.num_attention_heads // groups, model.head_size


def _transposed(codec: Codec) -> Codec:
    """The same, for Hugging Face's ``Conv1D``, whose weight is [in, out]."""
    return Codec(
        split=lambda tensor, model: [part.t() for part in codec.split(tensor, model)],
        join=lambda tensors, model: codec.join([part.t() for part in tensors], model),
    )


def _concatenated(codec: Codec, parts: int) -> Codec:
    """The same, where Hugging Face keeps the ``parts`` equal tensors as one, along the first
    dimension."""
    return Codec(
        split=lambda tensor, model: (torch.cat(list(codec.split(tensor, model))),),
        join=lambda tensors, model: codec.join(tensors[0].chunk(parts), model),
    )


SAME = Codec(split=lambda tensor, _: (tensor,), join=lambda tensors, _: tensors[0])
"""One tensor, the same on both sides."""

VOCABULARY = Codec(_split_vocabulary, _join_vocabulary)
"""[vocabulary, hidden]: Megatron's has padding rows, Hugging Face's has none."""

QKV = Codec(_split_groups, _join_groups)
"""Weight or bias of ``linear_qkv``: Hugging Face has a query, a key and a value projection."""

GATED = Codec(
    split=lambda tensor, _: tensor.chunk(2),
    join=lambda tensors, _: torch.cat(list(tensors)),
)
"""``linear_fc1`` of a gated MLP, on one rank: the gate's rows, then the up projection's.

On more ranks each holds its own halves of both; megatron-core saves the halves as two shards
(``apply_swiglu_sharded_factory``), so that loading on one rank gives this order.
"""

CONV1D = _transposed(SAME)
"""A linear weight that Hugging Face keeps as [in, out]."""

FUSED_QKV = _concatenated(QKV, 3)
"""Bias of ``linear_qkv`` against GPT-2's ``c_attn.bias``: all queries, all keys, all values."""

CONV1D_QKV = _transposed(FUSED_QKV)
"""Weight of ``linear_qkv`` against GPT-2's ``c_attn.weight``, [hidden, 3 x hidden]."""


def to_hf(
    rules: Iterable[Rule], parameters: Mapping[str, Tensor], model: TrainedModel
) -> Iterator[tuple[str, Tensor]]:
    """Hugging Face's name and tensor of everything in a Megatron state dict of one rank.

    Lazy, and mostly views: a caller that writes as it goes holds no second copy.

    Raises:
        ToolkitError: before the first tensor, where rules and state dict don't cover each other.
    """
    table = list(rules)
    _require_same("Megatron model", [rule.megatron for rule in table], parameters)
    for rule in table:
        tensors = rule.codec.split(parameters[rule.megatron], model)
        yield from zip(rule.hf, tensors, strict=True)


def to_megatron(
    rules: Iterable[Rule], parameters: Mapping[str, Tensor], model: TrainedModel
) -> Iterator[tuple[str, Tensor]]:
    """Megatron's name and tensor of everything in a Hugging Face state dict.

    Raises:
        ToolkitError: before the first tensor, where rules and state dict don't cover each other.
    """
    table = list(rules)
    _require_same("Hugging Face model", [name for rule in table for name in rule.hf], parameters)
    for rule in table:
        tensors = [parameters[name] for name in rule.hf]
        yield rule.megatron, rule.codec.join(tensors, model)


def _require_same(what: str, named: Sequence[str], found: Mapping[str, Tensor]) -> None:
    """Every parameter has its rule and every rule its parameter: nothing is left out quietly."""
    unmapped = sorted(set(found) - set(named))
    absent = sorted(set(named) - set(found))
    if not unmapped and not absent:
        return
    lines = [f"no rule for {_some(unmapped)}"] if unmapped else []
    lines += [f"no parameter {_some(absent)}"] if absent else []
    raise ToolkitError(f"the {what} and the mapping don't match: {'; '.join(lines)}")


def _some(names: Sequence[str], shown: int = 4) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
