"""A layout in short, and which pipeline rank has which part of the model, in words."""

from __future__ import annotations

from itertools import groupby

from toolkit.megatron.pipeline_layout import text_of
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


def layout_text(layout: Layout) -> str:
    """A layout in short: ``TP4 PP8 VPP5 DP2, MBS 1, no recomputation``."""
    degrees = [f"TP{layout.tp}", f"PP{layout.pp}"]
    for name, size in (("VPP", layout.vpp), ("CP", layout.cp), ("EP", layout.ep)):
        if size > 1:
            degrees.append(f"{name}{size}")
    if layout.expert_tp != layout.tp:
        degrees.append(f"ETP{layout.expert_tp}")
    degrees.append(f"{'FSDP' if layout.fsdp else 'DP'}{layout.dp}")
    return f"{' '.join(degrees)}, MBS {layout.micro_batch_size}{_ends(layout)}{_again(layout)}"


def _ends(layout: Layout) -> str:
    if layout.stages:
        return f", layout {text_of(layout.stages)}"
    counted = [
        name
        for name, counts in (
            ("embedding", layout.account_for_embedding),
            ("loss", layout.account_for_loss),
        )
        if counts
    ]
    return f", {' and '.join(counted)} as layers" if counted else ""


def _again(layout: Layout) -> str:
    recompute = layout.recompute
    if recompute.granularity is None:
        return ""
    if recompute.granularity == "full":
        return f", recompute {recompute.method} {recompute.num_layers}"
    return f", recompute {' '.join(recompute.modules or ('core_attn',))}"
