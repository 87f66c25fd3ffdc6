"""The parallel layout as a picture: which rank holds which slice of which copy of the model.

Ranks are numbered in Megatron's default order, tp-cp-ep-dp-pp (``parallel_state.py``): tensor
ranks are neighbours, and pipeline stages are farthest apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from toolkit.report.read import mapping

SHOWN = 8
"""Copies of the model drawn at most; the rest are counted."""


@dataclass(frozen=True)
class Copy:
    """One copy of the model: rows are tensor (and context) ranks, columns pipeline stages."""

    number: int
    rows: tuple[tuple[int, ...], ...]
    """Global ranks."""


@dataclass(frozen=True)
class Layout:
    """A layout, drawn."""

    stage: str
    world_size: int
    tensor: int
    pipeline: int
    virtual: int | None
    context: int
    expert: int
    data: int
    row_labels: tuple[str, ...]
    copies: tuple[Copy, ...]
    hidden: int
    """Copies that are not drawn."""
    sharded: bool
    """Whether the copies share one set of weights between them: FSDP."""
    facts: tuple[tuple[str, str], ...]


def draw_layout(
    stage: str, layout: Mapping[str, Any], settings: Mapping[str, Any]
) -> Layout | None:
    """Draw the layout that a checkpoint records; None where it records none.

    Args:
        stage: whose it is.
        layout: ``info.layout`` of the checkpoint.
        settings: the stage's own, for the batch arithmetic.
    """
    tensor, pipeline, context, expert, data = (
        _size(layout, f"{name}_parallel_size")
        for name in ("tensor_model", "pipeline_model", "context", "expert_model", "data")
    )
    world = layout.get("world_size", tensor * pipeline * context * data)
    if not layout or not isinstance(world, int):
        return None
    rows = [(c, t) for c in range(context) for t in range(tensor)]
    copies = tuple(
        Copy(
            number,
            tuple(
                tuple(t + tensor * (c + context * (number + data * p)) for p in range(pipeline))
                for c, t in rows
            ),
        )
        for number in range(min(data, SHOWN))
    )
    parallel = mapping(settings.get("parallel"))
    virtual = layout.get("virtual_pipeline_model_parallel_size")
    return Layout(
        stage=stage,
        world_size=world,
        tensor=tensor,
        pipeline=pipeline,
        virtual=virtual if isinstance(virtual, int) else None,
        context=context,
        expert=expert,
        data=data,
        row_labels=tuple(f"t{t}" if context == 1 else f"c{c} t{t}" for c, t in rows),
        copies=copies,
        hidden=max(0, data - SHOWN),
        sharded=any(parallel.get(f"use_{name}") for name in ("megatron_fsdp", "torch_fsdp2")),
        facts=tuple(_facts(layout, settings, data)),
    )


def _size(layout: Mapping[str, Any], name: str) -> int:
    found = layout.get(name)
    return found if isinstance(found, int) and found > 0 else 1


def _facts(
    layout: Mapping[str, Any], settings: Mapping[str, Any], data: int
) -> list[tuple[str, str]]:
    """The batch arithmetic, as far as it is known."""
    micro, whole = settings.get("micro_batch_size"), settings.get("global_batch_size")
    longest = mapping(settings.get("model")).get("max_position_embeddings")
    count, length = layout.get("num_microbatches"), settings.get("seq_length") or longest
    found = []
    if all(isinstance(n, int) for n in (micro, whole, count)):
        arithmetic = f"{micro} × {data} × {count} = {whole} sequences"
        found.append(("Micro batch × data parallel × microbatches", arithmetic))
    if isinstance(whole, int) and isinstance(length, int):
        found.append(("Tokens per step", f"{whole * length:,}"))
    return found
