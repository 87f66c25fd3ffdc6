"""Pipelines of equal stages but for the last one, which has the output layer in their place."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from toolkit.megatron.pipeline_layout import DECODER, EMBEDDING, LOSS
from toolkit.plan.shape import Layout, ModelShape


def from_the_last(model: ModelShape, layout: Layout) -> Layout | None:
    """A pipeline whose two ends count as a layer each, as one whose output layer counts as two.

    The first stage is full then and the last has two layers less: better where layers are small
    beside the vocabulary. Megatron has no setting for it but a layout; there is none where a stage
    has one layer only.
    """
    stages = layout.pp * layout.vpp
    each = (model.num_layers + 2) // stages
    if each < 2:
        return None
    return replace(
        layout,
        account_for_embedding=False,
        account_for_loss=False,
        stages=_spelled(stages, each),
    )


@lru_cache(maxsize=1024)
def _spelled(stages: int, each: int) -> tuple[str, ...]:
    middle = (DECODER * each,) * (stages - 2)
    return (EMBEDDING + DECODER * each, *middle, DECODER * (each - 2) + LOSS)
