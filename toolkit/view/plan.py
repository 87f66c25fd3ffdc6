"""What the terminal shows of a plan: memory, speed, cost, and the layouts that were looked at."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from toolkit.plan.breakdown import LABELS
from toolkit.plan.hardware import Hardware
from toolkit.plan.memory import GIB, StageMemory
from toolkit.plan.scaling import FLOPS_PER_PARAMETER, optima
from toolkit.plan.search import Candidate, Found, why_slower
from toolkit.plan.settings import settings_of
from toolkit.plan.shape import Run
from toolkit.plan.sizing import Sizing
from toolkit.plan.stage_text import layers_text, layout_text

EXPERTS_NOTE = (
    "with experts published runs reached 36 to 110 % of such estimates; --calibrate on yours"
)
"""Measured over estimated tokens a second: ``benchmarks/speed.py``, with either dispatcher."""
BAR = 48
"""Width of the bar of a GPU's memory, in characters."""
PARTS = (
    ("weights", "weights", "blue"),
    ("gradients", "grads", "magenta"),
    ("optimizer", "optim.", "cyan"),
    ("activations", "activ.", "green"),
    ("temporary", "temp.", "yellow"),
    ("margin", "margin", "bright_black"),
)
"""Of a rank's memory: the field, the column's title, the colour in the bar. A table with short
titles fits a terminal of 80 columns."""
SHADES = "█▓▒░▚▞"
"""One for each part, so that the bar can be read without colours, too."""


def show_sizing(console: Console, name: str, sizing: Sizing) -> None:
    """Print a stage's plan: the layout, memory by pipeline stage, speed, and cost."""
    layout, hardware = sizing.run.layout, sizing.hardware
    console.print(f"[bold]{escape(name)}[/]  {_model_text(sizing)}")
    console.print(
        f"  {layout.world_size:,} x {hardware.gpu.name}: {layout_text(layout)};"
        f" {layout.global_batch_size:,} sequences of {layout.seq_length:,} tokens in"
        f" {layout.num_microbatches:,} microbatches"
    )
    if layout.pp > 1:
        console.print(f"  layers: {layers_text(sizing.run.model, layout)}")
    console.print("\n  GiB of one rank, by pipeline stage:")
    console.print(_memory_table(sizing.memory, hardware))
    console.print(_bar(sizing.fullest, hardware))
    console.print()
    console.print(_speed_table(sizing))


def _model_text(sizing: Sizing) -> str:
    text = f"{sizing.parameters:,} parameters"
    if sizing.active_parameters != sizing.parameters:
        text += f", {sizing.active_parameters:,} for each token"
    return text


def _memory_table(stages: Sequence[StageMemory], hardware: Hardware) -> Table:
    """A row for each pipeline stage; of many, those that have other weights than the one before."""
    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
    table.add_column("  stage", justify="right")
    table.add_column("params", justify="right")
    for _, title, _ in PARTS:
        table.add_column(title, justify="right")
    table.add_column("total", justify="right", style="bold")
    table.add_column("of GPU", justify="right")
    shown = _telling(stages)
    for before, stage in zip([None, *shown], shown, strict=False):
        if before is not None and stage.stage > before.stage + 1:
            table.add_row("...")
        share = stage.total / hardware.gpu.memory
        style = "red" if share > 1 else ""
        parts = [_gib(getattr(stage, field)) for field, _, _ in PARTS]
        total = Text(_gib(stage.total), style=style)
        of_gpu = Text(f"{share:.0%}", style=style)
        table.add_row(str(stage.stage), count_text(stage.parameters), *parts, total, of_gpu)
    return table


def _gib(count: float) -> str:
    """``17.9``; of a small model ``0.0034``."""
    size = count / GIB
    return f"{size:,.1f}" if size >= 0.1 or not size else f"{size:.2g}"


def _telling(stages: Sequence[StageMemory]) -> list[StageMemory]:
    if len(stages) <= 8:
        return list(stages)
    inner = pairwise(stages[2:-2])
    other = [stage for before, stage in inner if stage.parameters != before.parameters]
    return [*stages[:3], *other, *stages[-2:]]


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
    for (field, _, colour), shade in zip(PARTS, SHADES, strict=True):
        text.append(f"{shade} ", style=colour)
        text.append(f"{field}  ")
    return text


def _speed_table(sizing: Sizing) -> Table:
    estimate, cost = sizing.estimate, sizing.cost
    each = _short(cost.tokens / sizing.active_parameters)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    rows = [
        ("step", f"{_time(estimate.step_seconds)}: {_spent(sizing)}"),
        ("tokens/s/GPU", f"{estimate.tokens_per_second_per_gpu:,.0f}"),
        (
            "model TFLOP/s",
            f"{_short(estimate.tflops_per_gpu)} a GPU, MFU {estimate.mfu:.1%}"
            f" of {_short(estimate.peak / 1e12)} in {estimate.number_format.upper()}",
        ),
        (
            "training",
            f"{count_text(cost.tokens)} tokens ({each} for each parameter): {cost.steps:,} steps,"
            f" {_time(cost.seconds)}, {_short(cost.gpu_hours)} GPU-hours",
        ),
    ]
    if cost.price is not None:
        rows.append(("cost", f"{_short(cost.price)} {cost.currency}"))
    if sizing.run.model.num_moe_experts:
        rows.insert(3, ("", EXPERTS_NOTE))
    what = "" if cost.whole_node else ", the GPUs alone"
    rows.append(("energy", f"{_energy(cost.megawatt_hours)} at {cost.watts:,.0f} W a GPU{what}"))
    flops = _flops(sizing)
    for number, best in enumerate(optima(flops)):
        told = f"{count_text(best.parameters)} on {count_text(best.tokens)} tokens ({best.name})"
        rows.append(("best spent on" if number == 0 else "", told))
    rows.insert(len(rows) - len(optima(flops)), ("compute", f"{flops:.2e} FLOPs, by 6 N D"))
    for title, text in rows:
        table.add_row(f"  {title}", escape(text))
    return table


def _flops(sizing: Sizing) -> float:
    return float(FLOPS_PER_PARAMETER * sizing.active_parameters) * sizing.cost.tokens


def _spent(sizing: Sizing) -> str:
    """What a step is spent on, the largest first, down to one per cent."""
    spent = sizing.estimate.spent
    parts = sorted(spent.items(), key=lambda part: -part[1])
    return ", ".join(
        f"{LABELS[name]} {seconds / spent.total:.0%}"
        for name, seconds in parts
        if seconds >= 0.01 * spent.total
    )


def _time(seconds: float) -> str:
    """``14.6 ms``, ``39.1 s``, ``2.0 hours``, ``539 days (1.5 years)``."""
    days = seconds / 86400
    if days >= 365:
        return f"{days:,.0f} days ({days / 365.25:.1f} years)"
    if days >= 1:
        return f"{days:,.1f} days"
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _energy(megawatt_hours: float) -> str:
    for unit, size in (("MWh", 1.0), ("kWh", 1e-3)):
        if megawatt_hours >= size:
            return f"{_short(megawatt_hours / size)} {unit}"
    return f"{megawatt_hours / 1e-6:.3g} Wh"


def _short(amount: float) -> str:
    return f"{amount:,.0f}" if amount >= 100 else f"{amount:.3g}"


def count_text(count: float) -> str:
    """``8.03B``, ``15T``."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"


def show_search(
    console: Console, found: Found, run: Run, hardware: Hardware, seconds: float
) -> None:
    """Print the layouts that a search found, and why each loses against the first."""
    console.print(f"\n[bold]search[/]  {found.looked_at:,} layouts in {seconds:.1f} s")
    if not found.best:
        console.print(f"  [red]{escape(_why_none(found, run, hardware))}[/]", soft_wrap=True)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title, justify in (
        ("", "right"),
        ("layout", "left"),
        ("tokens/s/GPU", "right"),
        ("MFU", "right"),
        ("GiB", "right"),
        ("step, against the first's", "left"),
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
    settings = yaml.safe_dump(
        settings_of(found.best[0].layout, run.layout), sort_keys=False, default_flow_style=None
    )
    console.print("\n  the first, in the stage:")
    for line in settings.splitlines():
        console.print(f"    {escape(line)}", soft_wrap=True)


def _why_none(found: Found, run: Run, hardware: Hardware) -> str:
    if found.smallest is None:
        told = "\n  ".join(found.refused)
        return f"no layout of {run.layout.world_size:,} GPUs is valid:\n  {told}"
    needed = found.smallest.memory.total / GIB
    return (
        f"no layout fits: the smallest, {layout_text(found.smallest.layout)}, needs"
        f" {needed:.1f} GiB of the {hardware.gpu.memory / GIB:.1f} that a GPU has;"
        " more GPUs, or a shorter seq_length"
    )


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
