"""Speed by ``toolkit plan`` beside what was published for DGX H100s and A100s, row by row.

    python -m benchmarks.speed

Run it after a change of ``toolkit/plan/hardware.py``: what comes nearer to one row may leave
another.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from toolkit.plan.flops import flops_per_token
from toolkit.plan.shape import Layout, Precision
from toolkit.plan.stage_text import layout_text
from toolkit.plan.throughput import Estimator

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "plan"))
from plan_shapes import FP8, H100, preset
from published_rows import (
    BF16,
    DELAYED,
    EXPERTS,
    LLAMA_3,
    LONG,
    NEWEST,
    OF_2024,
    OLDER_EXPERTS,
    SC21,
    SELENE,
    of_sc21,
)

Row = tuple[str, str, Layout, float, float]
"""Where it is from, the model, its layout, tokens a second and GPU, and the estimate of them."""


def rows() -> Iterator[Row]:
    """All that was published."""
    for source, name, layout, precision, tokens in on_h100():
        estimate = Estimator(preset(name), precision, H100).estimate(layout)
        yield source, name, layout, tokens, estimate.tokens_per_second_per_gpu
    for row in SC21:
        model, layout, operations = of_sc21(row)
        found = Estimator(model, Precision(), SELENE).estimate(layout).tokens_per_second_per_gpu
        each = operations / layout.global_batch_size / layout.seq_length
        name = f"gpt, {row[0]} x {row[1]}"
        yield "2021, A100, BF16", name, layout, row[-1] * 1e12 / each, found


def on_h100() -> Iterator[tuple[str, str, Layout, Precision, float]]:
    """What was run, in which layout and precision, and its tokens a second and GPU."""
    for name, layout, low, high in NEWEST:
        yield "2025-26, FP8", name, layout, FP8, (low + high) / 2
    for name, layout, tokens in OF_2024:
        yield "2024, FP8", name, layout, DELAYED, tokens
    for name, layout, tokens in LONG:
        yield "2024, FP8, long", name, layout, DELAYED, tokens
    for name, layout, tflops in LLAMA_3:
        counted = flops_per_token(preset(name), layout.seq_length, 128256)
        yield "2024, BF16", name, layout, BF16, tflops * 1e12 / counted
    for name, layout, tokens in EXPERTS:
        yield "2026, FP8, experts", name, layout, FP8, tokens
    for name, layout, tokens in OLDER_EXPERTS:
        yield "2025-26, FP8, experts", name, layout, FP8, tokens


def main() -> None:
    """Print the table."""
    table = Table("published", "model", "GPUs", "layout", "tokens/s/GPU", "estimate", "off")
    for source, name, layout, tokens, found in rows():
        table.add_row(
            source,
            name,
            str(layout.world_size),
            f"{layout_text(layout)}, {layout.seq_length // 1024}k",
            f"{tokens:,.0f}",
            f"{found:,.0f}",
            f"{found / tokens - 1:+.1%}",
        )
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
