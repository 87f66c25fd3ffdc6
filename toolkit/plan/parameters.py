"""The weights of a rank, tensor by tensor as megatron-core makes them: counts, exact to the weight.

The order and the sharding are those of ``GPTModel`` (``models/gpt/gpt_model.py``), of the layers'
local spec, and of ``transformer/moe``: a column-parallel matrix and its bias, and a row-parallel
matrix, are cut by the tensor-parallel size; norms, row-parallel biases, routers and learned
positions are whole on every rank; experts are cut by ETP and dealt out by EP.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from toolkit.plan.shape import Layout, ModelShape, stage_layers


@dataclass(frozen=True)
class Weight:
    """One parameter tensor on one rank."""

    name: str
    numel: int
    """Elements on this rank."""
    expert: bool = False
    """Whether its copies are on the expert-data-parallel ranks."""
    linear: bool = False
    """Whether it is a matrix of a linear layer inside a layer: what FP8 applies to."""


@dataclass(frozen=True)
class Numel:
    """Elements of a rank's weights, by what is done with them."""

    dense: int = 0
    """Copied over all data- and context-parallel ranks."""
    expert: int = 0
    """Copied over the expert-data-parallel ranks."""
    linear: int = 0
    """Those of both that are matrices of linear layers inside layers."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.dense + self.expert

    def __add__(self, other: Numel) -> Numel:
        return Numel(
            self.dense + other.dense, self.expert + other.expert, self.linear + other.linear
        )

    def __mul__(self, times: int) -> Numel:
        return Numel(self.dense * times, self.expert * times, self.linear * times)


def numel(weights: Iterator[Weight]) -> Numel:
    """The sums over ``weights``."""
    dense = expert = linear = 0
    for weight in weights:
        if weight.expert:
            expert += weight.numel
        else:
            dense += weight.numel
        linear += weight.numel * weight.linear
    return Numel(dense, expert, linear)


WHOLE = Layout()


def parameter_count(model: ModelShape) -> int:
    """Parameters of the published model: of an embedding with ``vocab_size`` rows, no padding."""
    assert model.vocab_size is not None, "the vocabulary's size is not known"
    embedding = numel(embedding_weights(model, WHOLE, model.vocab_size))
    output = numel(output_weights(model, WHOLE, model.vocab_size, shared_is_here=True))
    return (
        embedding + output + layers_numel(model, WHOLE, *stage_layer_kinds(model, WHOLE, 0))
    ).total


def active_parameter_count(model: ModelShape) -> int:
    """Parameters that one token meets: of the experts, those that the router sends it to."""
    if model.num_moe_experts is None:
        return parameter_count(model)
    one = numel(_expert(model, WHOLE)).total
    idle = (model.num_moe_experts - model.moe_router_topk) * sum(model.moe_layers)
    return parameter_count(model) - one * idle


def stage_numel(model: ModelShape, layout: Layout, stage: int, padded_vocab: int) -> Numel:
    """Elements on a rank of pipeline stage ``stage``, of all its model chunks.

    Args:
        model: the model.
        layout: a layout that the rules accept.
        stage: its number, from 0.
        padded_vocab: rows of the embedding, padding included.
    """
    first, last = stage == 0, stage == layout.pp - 1
    dense, experts = stage_layer_kinds(model, layout, stage)
    found = layers_numel(model, layout, dense, experts)
    if first:
        found += numel(embedding_weights(model, layout, padded_vocab))
    if last:
        found += numel(output_weights(model, layout, padded_vocab, shared_is_here=first))
    return found


def layers_numel(model: ModelShape, layout: Layout, dense: int, experts: int) -> Numel:
    """Elements on one rank of so many dense layers, and of so many with experts."""
    found = Numel()
    if dense:
        found += _layer_numel(model, layout.tp, 1, 1, False) * dense
    if experts:
        found += _layer_numel(model, layout.tp, layout.ep, layout.expert_tp, True) * experts
    return found


@lru_cache(maxsize=1024)
def _layer_numel(model: ModelShape, tp: int, ep: int, etp: int, moe: bool) -> Numel:
    return numel(layer_weights(model, Layout(tp=tp, ep=ep, etp=etp), moe=moe))


def stage_layer_numbers(model: ModelShape, layout: Layout) -> tuple[tuple[int, ...], ...]:
    """For each pipeline rank the numbers of its layers, in order of its model chunks.

    Chunk after chunk goes round the stages, as ``get_transformer_layer_offset`` has it.
    """
    return _numbers(stage_layers(model, layout), layout.vpp)


@lru_cache(maxsize=4096)
def _numbers(counts: tuple[tuple[int, ...], ...], vpp: int) -> tuple[tuple[int, ...], ...]:
    numbers: list[list[int]] = [[] for _ in counts]
    begin = 0
    for chunk in range(vpp):
        for stage, per_chunk in enumerate(counts):
            numbers[stage] += range(begin, begin + per_chunk[chunk])
            begin += per_chunk[chunk]
    return tuple(tuple(stage) for stage in numbers)


def stage_layer_kinds(model: ModelShape, layout: Layout, stage: int) -> tuple[int, int]:
    """How many dense layers, and how many with experts, a stage has."""
    return _kinds(stage_layers(model, layout), layout.vpp, model.moe_layers)[stage]


@lru_cache(maxsize=4096)
def _kinds(
    counts: tuple[tuple[int, ...], ...], vpp: int, moe: tuple[bool, ...]
) -> tuple[tuple[int, int], ...]:
    found = []
    for layers in _numbers(counts, vpp):
        experts = sum(moe[layer] for layer in layers) if moe else 0
        found.append((len(layers) - experts, experts))
    return tuple(found)


def chunk_layer_kinds(model: ModelShape, layout: Layout, stage: int) -> tuple[tuple[int, int], ...]:
    """The same of each of a stage's model chunks."""
    counts = stage_layers(model, layout)[stage]
    if not model.moe_layers:
        return tuple((count, 0) for count in counts)
    numbers = iter(stage_layer_numbers(model, layout)[stage])
    experts = [sum(model.moe_layers[next(numbers)] for _ in range(count)) for count in counts]
    return tuple((count - own, own) for count, own in zip(counts, experts, strict=True))


def is_uneven(model: ModelShape, layout: Layout) -> bool:
    """Whether chunks between the first and the last of the whole pipeline differ in layers."""
    return _differ(stage_layers(model, layout))


@lru_cache(maxsize=4096)
def _differ(ranks: tuple[tuple[int, ...], ...]) -> bool:
    row = [own for turn in zip(*ranks, strict=True) for own in turn]
    return len(set(row[1:-1])) > 1


def telling_stages(model: ModelShape, layout: Layout) -> tuple[tuple[int, int], ...]:
    """Pipeline stages that stand for all: each one's number, and how many are like it.

    They are the first and the last, which have the model's ends, and of the others one of each
    number of layers, dense and with experts: the first of those, which keeps most microbatches.
    """
    return _telling(_kinds(stage_layers(model, layout), layout.vpp, model.moe_layers))


@lru_cache(maxsize=4096)
def _telling(kinds: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    last = len(kinds) - 1
    between = kinds[1:last]
    alike = [(1 + between.index(kind), between.count(kind)) for kind in dict.fromkeys(between)]
    return ((0, 1), *alike, *([(last, 1)] if last else []))


def embedding_weights(model: ModelShape, layout: Layout, padded_vocab: int) -> Iterator[Weight]:
    """Of the first stage."""
    yield Weight("word_embeddings.weight", padded_vocab * model.hidden_size // layout.tp)
    if model.position_embedding_type == "learned_absolute":
        positions = model.max_position_embeddings * model.hidden_size
        yield Weight("position_embeddings.weight", positions)


def output_weights(
    model: ModelShape, layout: Layout, padded_vocab: int, *, shared_is_here: bool
) -> Iterator[Weight]:
    """Of the last stage: the final norm and the output layer.

    A tied output layer has a copy of the embedding where that is on another rank
    (``shared_is_here`` false), and nothing of its own where it is on the same.
    """
    yield from _norm(model, "final_layernorm", model.hidden_size)
    if model.untie_embeddings_and_output_weights or not shared_is_here:
        yield Weight("output_layer.weight", padded_vocab * model.hidden_size // layout.tp)


def layer_weights(model: ModelShape, layout: Layout, *, moe: bool) -> Iterator[Weight]:
    """Of one transformer layer, dense or with experts."""
    yield from _norm(model, "input_layernorm", model.hidden_size)
    yield from _attention(model, layout)
    yield from _norm(model, "pre_mlp_layernorm", model.hidden_size)
    if moe:
        yield from _moe(model, layout)
    else:
        yield from _mlp(model, model.ffn_hidden_size, layout.tp)


def _attention(model: ModelShape, layout: Layout) -> Iterator[Weight]:
    hidden, size = model.hidden_size, model.kv_channels
    query, keys = model.num_attention_heads * size, model.num_query_groups * size
    yield Weight("linear_proj.weight", query * hidden // layout.tp, linear=True)
    if model.add_bias_linear:
        yield Weight("linear_proj.bias", hidden)
    yield Weight("linear_qkv.weight", hidden * (query + 2 * keys) // layout.tp, linear=True)
    if model.add_bias_linear or model.add_qkv_bias:
        yield Weight("linear_qkv.bias", (query + 2 * keys) // layout.tp)
    if model.qk_layernorm:
        yield from _norm(model, "q_layernorm", size)
        yield from _norm(model, "k_layernorm", size)


def _mlp(model: ModelShape, inner: int, tp: int, *, expert: bool = False) -> Iterator[Weight]:
    wide = inner * (2 if model.gated_linear_unit else 1)
    hidden = model.hidden_size
    yield Weight("linear_fc1.weight", hidden * wide // tp, expert, linear=True)
    if model.add_bias_linear:
        yield Weight("linear_fc1.bias", wide // tp, expert)
    yield Weight("linear_fc2.weight", inner * hidden // tp, expert, linear=True)
    if model.add_bias_linear:
        yield Weight("linear_fc2.bias", hidden, expert)


def _expert(model: ModelShape, layout: Layout) -> Iterator[Weight]:
    yield from _mlp(model, model.moe_ffn_hidden_size, layout.expert_tp, expert=True)


def _moe(model: ModelShape, layout: Layout) -> Iterator[Weight]:
    assert model.num_moe_experts is not None
    hidden, experts = model.hidden_size, model.num_moe_experts
    yield Weight("router.weight", hidden * experts)
    if model.add_bias_linear:
        yield Weight("router.bias", experts)
    for weight in _expert(model, layout):
        local = experts // layout.ep
        yield Weight(f"experts.{weight.name}", weight.numel * local, True, weight.linear)
    if model.moe_shared_expert_intermediate_size:
        yield from _mlp(model, model.moe_shared_expert_intermediate_size, layout.tp)
        if model.moe_shared_expert_gate:
            yield Weight("shared_experts.gate_weight", hidden)


def _norm(model: ModelShape, name: str, size: int) -> Iterator[Weight]:
    yield Weight(f"{name}.weight", size)
    if model.normalization == "LayerNorm":
        yield Weight(f"{name}.bias", size)
