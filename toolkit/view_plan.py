"""What the terminal shows of a plan: memory, speed, cost, and the layouts that were looked at."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from toolkit.plan.hardware import Hardware
from toolkit.plan.measured import Calibration
from toolkit.plan.memory import GIB, StageMemory
from toolkit.plan.scaling import FLOPS_PER_PARAMETER, Law, Trained, optima
from toolkit.plan.search import LABELS, Candidate, Found, why_slower
from toolkit.plan.shape import Layout
from toolkit.plan.sizing import Sizing

BAR = 48
"""Width of the bar of a GPU's memory, in characters."""
PARTS = (
    ("weights", "weights", "blue"),
    ("gradients", "gradients", "magenta"),
    ("optimizer", "optimizer", "cyan"),
    ("activations", "activations", "green"),
    ("temporary", "temporary", "yellow"),
    ("margin", "margin", "bright_black"),
)
"""Of a rank's memory: the field, the column's title, the colour in the bar."""
SHADES = "█▓▒░▚▞"
"""One for each part, so that the bar can be read without colours, too."""


def show_sizing(console: Console, name: str, sizing: Sizing) -> None:
    """Print a stage's plan: the layout, memory by pipeline stage, speed, and cost."""
    layout, hardware = sizing.run.layout, sizing.hardware
    console.print(f"[bold]{escape(name)}[/]  {_model_text(sizing)}")
    console.print(
        f"  {layout.world_size:,} x {hardware.gpu.name}: {layout_text(layout)};"
        f" {layout.global_batch_size:,} sequences of {layout.seq_length:,} tokens in"
        f" {layout.num_microbatches:,} microbatches\n"
    )
    console.print(_memory_table(sizing.memory, hardware))
    console.print(_bar(sizing.fullest, hardware))
    console.print()
    console.print(_speed_table(sizing))


def _model_text(sizing: Sizing) -> str:
    text = f"{sizing.parameters:,} parameters"
    if sizing.active_parameters != sizing.parameters:
        text += f", {sizing.active_parameters:,} for each token"
    return text


def layout_text(layout: Layout) -> str:
    """A layout in short: ``TP4 PP8 VPP5 DP2, MBS 1, no recomputation``."""
    degrees = [f"TP{layout.tp}", f"PP{layout.pp}"]
    for name, size in (("VPP", layout.vpp), ("CP", layout.cp), ("EP", layout.ep)):
        if size > 1:
            degrees.append(f"{name}{size}")
    if layout.ep > 1 and layout.expert_tp != layout.tp:
        degrees.append(f"ETP{layout.expert_tp}")
    degrees.append(f"{'FSDP' if layout.fsdp else 'DP'}{layout.dp}")
    return f"{' '.join(degrees)}, MBS {layout.micro_batch_size}{_ends(layout)}{_again(layout)}"


def _ends(layout: Layout) -> str:
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


def _memory_table(stages: Sequence[StageMemory], hardware: Hardware) -> Table:
    """A row for each pipeline stage; of a long row of the same, the first and the last."""
    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
    table.add_column("GiB a rank")
    table.add_column("parameters", justify="right")
    for _, title, _ in PARTS:
        table.add_column(title, justify="right")
    table.add_column("total", justify="right", style="bold")
    table.add_column("of GPU", justify="right")
    shown = _telling(stages)
    for before, stage in zip([None, *shown], shown, strict=False):
        if before is not None and stage.stage > before.stage + 1:
            table.add_row("  ...")
        share = stage.total / hardware.gpu.memory
        style = "red" if share > 1 else ""
        parts = [f"{getattr(stage, field) / GIB:.1f}" for field, _, _ in PARTS]
        total = Text(f"{stage.total / GIB:.1f}", style=style)
        of_gpu = Text(f"{share:.0%}", style=style)
        table.add_row(f"  stage {stage.stage}", f"{stage.parameters:,}", *parts, total, of_gpu)
    return table


def _telling(stages: Sequence[StageMemory]) -> list[StageMemory]:
    if len(stages) <= 8:
        return list(stages)
    return [*stages[:3], *stages[-2:]]


def _bar(stage: StageMemory, hardware: Hardware) -> Text:
    """The fullest rank's memory against its GPU's, a shade and a colour for each part."""
    room = hardware.gpu.memory
    scale = BAR / max(room, stage.total)
    text = Text("\n  ")
    drawn, before = 0, 0.0
    for (field, _, colour), shade in zip(PARTS, SHADES, strict=True):
        before += getattr(stage, field)
        width = round(before * scale) - drawn
        text.append(shade * width, style=colour)
        drawn += width
    end = round(room * scale)
    if drawn < end:
        text.append("·" * (end - drawn), style="dim")
    fits = stage.total <= room
    text.append(f"  {stage.total / GIB:.1f} of {room / GIB:.1f} GiB: ")
    text.append("fits" if fits else "does not fit", style="green" if fits else "bold red")
    text.append("\n  ")
    for (_, title, colour), shade in zip(PARTS, SHADES, strict=True):
        text.append(f"{shade} ", style=colour)
        text.append(f"{title}  ")
    return text


def _speed_table(sizing: Sizing) -> Table:
    estimate, cost = sizing.estimate, sizing.cost
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    rows = [
        ("step", f"{estimate.step_seconds:.3g} s: {_spent(sizing)}"),
        ("tokens/s/GPU", f"{estimate.tokens_per_second_per_gpu:,.0f}"),
        ("model TFLOP/s", f"{estimate.tflops_per_gpu:,.0f} a GPU, MFU {estimate.mfu:.1%}"),
        (
            "training",
            f"{count_text(cost.tokens)} tokens: {cost.steps:,} steps, {_days(cost.days)},"
            f" {cost.gpu_hours:,.0f} GPU-hours",
        ),
    ]
    if cost.price is not None:
        rows.append(("cost", f"{cost.price:,.0f} {cost.currency}"))
    what = "" if cost.whole_node else ", the GPUs alone"
    rows.append(("energy", f"{cost.megawatt_hours:,.1f} MWh at {cost.watts:,.0f} W a GPU{what}"))
    for number, best in enumerate(optima(_flops(sizing))):
        told = f"{count_text(best.parameters)} on {count_text(best.tokens)} tokens ({best.name})"
        rows.append(("optimal" if number == 0 else "", told))
    for title, text in rows:
        table.add_row(f"  {title}", escape(text))
    return table


def _flops(sizing: Sizing) -> float:
    return float(FLOPS_PER_PARAMETER * sizing.active_parameters) * sizing.cost.tokens


def _spent(sizing: Sizing) -> str:
    """What a step is spent on, the largest first, down to one per cent."""
    spent = sizing.estimate.spent
    parts = sorted(spent.items(), key=lambda part: -part[1])
    short = {"matmul": "matrices", "attention": "attention", "memory": "moving bytes"}
    return ", ".join(
        f"{short.get(name, LABELS[name])} {seconds / spent.total:.0%}"
        for name, seconds in parts
        if seconds >= 0.01 * spent.total
    )


def _days(days: float) -> str:
    return f"{days:,.1f} days" if days >= 1 else f"{days * 24:.1f} hours"


def count_text(count: float) -> str:
    """``8.03B``, ``15T``."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"


def show_search(console: Console, found: Found, hardware: Hardware, seconds: float) -> None:
    """Print the layouts that a search found, and why each loses against the first."""
    console.print(f"\n[bold]search[/]  {found.looked_at:,} layouts in {seconds:.1f} s")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title, justify in (
        ("", "right"),
        ("layout", "left"),
        ("tokens/s/GPU", "right"),
        ("MFU", "right"),
        ("GiB", "right"),
        ("against the first", "left"),
    ):
        table.add_column(title, justify=justify)  # type: ignore[arg-type]
    for number, candidate in enumerate(found.best, start=1):
        slower = candidate.estimate.step_seconds / found.best[0].estimate.step_seconds - 1
        why = why_slower(candidate.estimate, found.best[0].estimate)
        against = "" if number == 1 else f"{slower:+.1%}: {why}"
        _candidate_row(table, str(number), candidate, against)
    if found.too_large is not None:
        over = found.too_large.memory.total - hardware.gpu.memory
        told = f"would be faster, and needs {over / GIB:.1f} GiB more than there are"
        _candidate_row(table, "-", found.too_large, told)
    console.print(table)
    if not found.best:
        console.print("  [red]no layout fits[/]: more GPUs, or a shorter seq_length")


def _candidate_row(table: Table, number: str, candidate: Candidate, against: str) -> None:
    estimate = candidate.estimate
    table.add_row(
        f"  {number}",
        layout_text(candidate.layout),
        f"{estimate.tokens_per_second_per_gpu:,.0f}",
        f"{estimate.mfu:.1%}",
        f"{candidate.memory.total / GIB:.1f}",
        against,
    )


def show_calibration(console: Console, found: Sequence[Calibration]) -> None:
    """Print measured against estimated, and what to write into the profile."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("run", "measured", "estimated", "sustained", "measured GiB", "estimated GiB"):
        table.add_column(title, justify="left" if title == "run" else "right")
    for each in found:
        table.add_row(
            each.measured.trained.name,
            f"{each.measured.step_seconds:.3g} s",
            f"{each.estimated_seconds:.3g} s",
            f"{each.sustained:.3f}",
            f"{each.measured.memory_gib:.1f}",
            f"{each.estimated_gib:.1f}",
        )
    console.print(table)
    middle = sorted(each.sustained for each in found)[len(found) // 2]
    console.print(f"\nin the cluster's profile: [bold]planning: {{sustained: {middle}}}[/]")


ROWS, COLUMNS = 14, 60
"""Size of the plot, in characters."""


def show_scaling(console: Console, runs: Sequence[Trained], law: Law) -> None:
    """Print the runs, the law through them, and a plot of both in logarithmic scales."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("run", "parameters", "tokens", "FLOPs", "loss", "law"):
        table.add_column(title, justify="left" if title == "run" else "right")
    ordered = sorted(runs, key=lambda r: r.flops)
    for run in ordered:
        table.add_row(
            run.name,
            count_text(run.parameters),
            count_text(run.tokens),
            f"{run.flops:.2e}",
            f"{run.loss:.4f}",
            f"{law.loss(run.flops):.4f}",
        )
    console.print(table)
    floor = f"{law.floor:.4f} + " if law.floor else ""
    console.print(
        f"\nloss = {floor}(FLOPs / {law.scale:.3g}) ^ -{law.exponent:.4f},"
        f" off by {law.error:.4f} nats (root mean square)"
    )
    console.print(_plot(ordered, law))
    for times in (10, 100):
        flops = ordered[-1].flops * times
        console.print(f"{times} x the largest, {flops:.1e} FLOPs: {law.loss(flops):.4f} nats")
    for best in optima(ordered[-1].flops * 10):
        told = f"{count_text(best.parameters)} on {count_text(best.tokens)} tokens"
        console.print(f"  10 x is best spent on {told} ({best.name})")


def _plot(runs: Sequence[Trained], law: Law) -> str:
    """Runs as circles, the law as dots, ten times beyond the largest run."""
    first, last = math.log10(runs[0].flops), math.log10(runs[-1].flops) + 1
    at = [first + (last - first) * column / (COLUMNS - 1) for column in range(COLUMNS)]
    curve = [math.log(law.loss(10**x)) for x in at]
    heights = [math.log(run.loss) for run in runs] + curve
    low, high = min(heights), max(heights)
    grid = [[" "] * COLUMNS for _ in range(ROWS)]

    def row(height: float) -> int:
        return round((high - height) / ((high - low) or 1) * (ROWS - 1))

    for column, height in enumerate(curve):
        grid[row(height)][column] = "·"
    for run in runs:
        column = round((math.log10(run.flops) - first) / (last - first) * (COLUMNS - 1))
        grid[row(math.log(run.loss))][column] = "o"
    lines = ["".join(line) for line in grid]
    labels = {0: f"{math.exp(high):.3f}", ROWS - 1: f"{math.exp(low):.3f}"}
    drawn = [f"{labels.get(n, ''):>8} │{line}" for n, line in enumerate(lines)]
    scale = f"{10**first:.1e}".ljust(COLUMNS - 7) + f"{10**last:.1e}"
    return "\n".join(["", *drawn, f"{'':>8} └{'─' * COLUMNS}", f"{'':>9}{scale} FLOPs", ""])
