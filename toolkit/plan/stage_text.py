"""Which pipeline rank has which part of the model, in words."""

from __future__ import annotations

from itertools import groupby

from toolkit.plan.shape import Layout, ModelShape, stage_layers


def layers_text(model: ModelShape, layout: Layout) -> str:
    """The layers of every pipeline rank, those that are alike together.

    ``rank 0: embedding + 7; ranks 1 to 14: 8; rank 15: 7 + output``; with several parts on a rank
    ``rank 0: embedding + 1 | 7 x 1; ...``.
    """
    last = layout.pp - 1
    ranks = [
        _rank_text(own, first=rank == 0, last=rank == last)
        for rank, own in enumerate(stage_layers(model, layout))
    ]
    told, begin = [], 0
    for text, alike in groupby(ranks):
        end = begin + len(list(alike)) - 1
        name = f"rank {begin}" if begin == end else f"ranks {begin} to {end}"
        told.append(f"{name}: {text}")
        begin = end + 1
    return "; ".join(told)


def _rank_text(chunks: tuple[int, ...], *, first: bool, last: bool) -> str:
    parts = [str(layers) for layers in chunks]
    if first:
        parts[0] = f"embedding + {parts[0]}" if chunks[0] else "embedding"
    if last:
        parts[-1] = "output" if parts[-1] == "0" else f"{parts[-1]} + output"
    counted = [(part, len(list(alike))) for part, alike in groupby(parts)]
    return " | ".join(f"{times} x {part}" if times > 1 else part for part, times in counted)
