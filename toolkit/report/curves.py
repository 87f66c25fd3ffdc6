"""Which curves a stage gets: the known ones in a fixed order, then whatever else was logged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.report.charts import Chart, Drawing, draw

BOOKKEEPING = frozenset(
    {
        "step",
        "time",
        "epoch",
        "iteration",
        "consumed_samples",
        "consumed_tokens",
        "skipped_iters",
        "total_flos",
        "num_tokens",
        "num_input_tokens_seen",
    }
)
"""Keys that say where a row stands, and are no curves."""
HELD_OUT = ("validation_", "eval_")
"""Before the names of metrics on held-out data: the toolkit's, and Hugging Face's."""
SPEED_ENDINGS = ("_runtime", "_per_second")


def both(title: str, key: str, unit: str = "", *, log: bool = False) -> Chart:
    """A metric in training, and on held-out data."""
    held_out = tuple((f"{prefix}{key}", "held out") for prefix in HELD_OUT)
    return Chart(title, ((key, "training"), *held_out), unit, log=log)


CHARTS = (
    both("Loss", "loss", log=True),
    Chart("Perplexity, held out", (("validation_perplexity", ""),), log=True),
    both("Preference accuracy", "rewards/accuracies"),
    both("Reward margin", "rewards/margins"),
    Chart("Learning rate", (("lr", ""), ("learning_rate", "")), zero=True),
    Chart("Gradient norm", (("grad_norm", ""),), log=True, zero=True),
    Chart("Throughput", (("tokens_per_second", ""),), "tokens/s", zero=True),
    Chart("Arithmetic", (("tflops_per_second", ""),), "TFLOP/s per rank", zero=True),
    Chart("Model FLOPs utilisation", (("mfu", ""),), zero=True),
    Chart("Time per step", (("seconds_per_step", ""),), "s", zero=True),
    Chart("Memory, peak", (("memory_gib", ""),), "GiB", zero=True),
    Chart("Rewards", (("rewards/chosen", "chosen"), ("rewards/rejected", "rejected"))),
    Chart(
        "Log-probability of answers",
        (("logps/chosen", "chosen"), ("logps/rejected", "rejected")),
        "nats",
    ),
    both("Token accuracy", "mean_token_accuracy"),
    both("Entropy", "entropy", "nats"),
)
MAIN = 6
"""Charts shown at once; further ones are folded."""


@dataclass(frozen=True)
class Curves:
    """The charts of one stage."""

    stage: str
    kind: str
    shown: tuple[Drawing, ...]
    folded: tuple[Drawing, ...]


def curves(stage: str, kind: str, rows: Sequence[Mapping[str, Any]]) -> Curves | None:
    """The charts of a stage's metrics; None where nothing was logged twice."""
    drawn = [d for chart in (*CHARTS, *_others(rows)) if (d := draw(chart, rows))]
    if not drawn:
        return None
    return Curves(stage, kind, tuple(drawn[:MAIN]), tuple(drawn[MAIN:]))


def _others(rows: Iterable[Mapping[str, Any]]) -> list[Chart]:
    """A chart for every other number that was logged, by name, with its held-out twin."""
    known = {key for chart in CHARTS for key, _ in chart.series}
    keys = dict.fromkeys(
        key
        for row in rows
        for key, value in row.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    )
    others = [k for k in keys if k not in known and not k.endswith(SPEED_ENDINGS)]
    names = dict.fromkeys(_bare(key) for key in others)
    return [both(name, name) for name in names if name not in BOOKKEEPING]


def _bare(key: str) -> str:
    for prefix in HELD_OUT:
        key = key.removeprefix(prefix)
    return key
