"""What the terminal shows of finished runs: the constants, and the power law, that fit them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import yaml
from rich.console import Console
from rich.table import Table

from toolkit.plan.calibration import Calibration
from toolkit.plan.scaling import Law, Trained, optima
from toolkit.view.plan import count_text


def show_calibration(console: Console, found: Calibration, planning: Mapping[str, object]) -> None:
    """Print the runs, measured and estimated, the constants, and the profile's new ``planning``.

    Args:
        console: the terminal.
        found: the fit.
        planning: what the profile says already, which stays unless a constant was found.
    """
    console.print(_runs_table(found))
    console.print()
    console.print(_constants_table(found))
    console.print("\nin the cluster's profile:\n")
    block = {"planning": {**planning, **found.planning()}}
    console.print(yaml.safe_dump(block, sort_keys=False).rstrip(), highlight=False, markup=False)


def _runs_table(found: Calibration) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    titles = ("run", "measured", "before", "off", "after", "off", "GiB", "estimated")
    for title in titles:
        table.add_column(title, justify="left" if title == "run" else "right")
    for fit in found.runs:
        measured = fit.measured
        table.add_row(
            measured.trained.name,
            f"{measured.step_seconds:.3g} s",
            f"{fit.before:.3g} s",
            f"{fit.before / measured.step_seconds - 1:+.1%}",
            f"{fit.after:.3g} s",
            f"{fit.after / measured.step_seconds - 1:+.1%}",
            f"{measured.memory_gib:.1f}",
            f"{fit.allocated_gib:.1f}",
        )
    return table


def _constants_table(found: Calibration) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("constant", "was", "is", ""):
        table.add_column(title, justify="right" if title in ("was", "is") else "left")
    for each in found.fitted:
        sure = f"give or take {each.deviation:.0%}" if each.deviation else "of the worst run"
        table.add_row(each.key, f"{each.before:.4g}", f"{each.after:.4g}", sure)
    for key, why in found.left:
        table.add_row(key, "", "", f"left: {why}")
    return table


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
        f"\nloss = {floor}(FLOPs / {law.scale:.3g}) ^ -{law.exponent:.4f}"
        f"{_error(law.exponent_error)}, off by {law.error:.4f} nats (root mean square)"
    )
    if law.exponent_error is None:
        console.print("how sure that is can't be told from so few runs")
    console.print(_plot(ordered, law))
    for times in (10, 100):
        flops = ordered[-1].flops * times
        told = f"{law.loss(flops):.4f}{_error(law.loss_error(flops))} nats"
        console.print(f"{times} x the largest, {flops:.1e} FLOPs: {told}")
    for best in optima(ordered[-1].flops * 10):
        told = f"{count_text(best.parameters)} on {count_text(best.tokens)} tokens"
        console.print(f"  10 x is best spent on {told} ({best.name})")


def _error(error: float | None) -> str:
    """A standard error, behind its number."""
    return "" if error is None else f" ± {error:.4f}"


def _plot(runs: Sequence[Trained], law: Law) -> str:
    """Runs as circles, the law as dots, ten times beyond the largest run; both axes logarithmic."""
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
