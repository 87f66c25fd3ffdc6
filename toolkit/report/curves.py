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
        "total_flos",
        "iteration",
        "consumed_samples",
        "num_tokens",
        "num_input_tokens_seen",
    }
)
"""Keys that say where a row stands, and are no curves."""
SPEED_ENDINGS = ("_runtime", "_per_second")

CHARTS = (
    Chart(
        "Loss",
        (("loss", "training"), ("validation_loss", "held out"), ("eval_loss", "held out")),
        log=True,
    ),
    Chart(
        "Perplexity, held out",
        (("validation_perplexity", "held out"),),
        log=True,
    ),
    Chart("Learning rate", (("learning_rate", ""),), zero=True),
    Chart("Gradient norm", (("grad_norm", ""),), log=True, zero=True),
    Chart("Throughput", (("tokens_per_second", ""),), unit="tokens/s", zero=True),
    Chart("Arithmetic", (("tflops", ""),), unit="TFLOP/s", zero=True),
    Chart("Model FLOPs utilisation", (("mfu", ""),), zero=True),
    Chart("Time per step", (("seconds_per_step", ""),), unit="s", zero=True),
    Chart("Memory", (("memory_gib", ""),), unit="GiB", zero=True),
    Chart(
        "Preference accuracy",
        (("rewards/accuracies", "training"), ("eval_rewards/accuracies", "held out")),
    ),
    Chart("Reward margin", (("rewards/margins", "training"), ("eval_rewards/margins", "held out"))),
    Chart("Rewards", (("rewards/chosen", "chosen"), ("rewards/rejected", "rejected"))),
    Chart(
        "Log-probability of answers",
        (("logps/chosen", "chosen"), ("logps/rejected", "rejected")),
        unit="nats",
    ),
    Chart(
        "Token accuracy",
        (("mean_token_accuracy", "training"), ("eval_mean_token_accuracy", "held out")),
    ),
    Chart("Entropy", (("entropy", "training"), ("eval_entropy", "held out")), unit="nats"),
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
    known = [d for chart in CHARTS if (d := draw(chart, rows))]
    preference = [d for d in known if d.title in ("Preference accuracy", "Reward margin")]
    first = [d for d in known if d.title == "Loss"] + preference
    ordered = first + [d for d in known if d not in first]
    ordered += [d for chart in _others(rows) if (d := draw(chart, rows))]
    if not ordered:
        return None
    return Curves(stage, kind, tuple(ordered[:MAIN]), tuple(ordered[MAIN:]))


def _others(rows: Iterable[Mapping[str, Any]]) -> list[Chart]:
    """A chart for every other number that was logged, by name; eval_X beside X."""
    known = {key for chart in CHARTS for key, _ in chart.series} | BOOKKEEPING
    keys = dict.fromkeys(
        key
        for row in rows
        for key, value in row.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    )
    others = [k for k in keys if k not in known and not k.endswith(SPEED_ENDINGS)]
    bare = dict.fromkeys(k.removeprefix("eval_") for k in others)
    return [Chart(name, ((name, "training"), (f"eval_{name}", "held out"))) for name in bare]
