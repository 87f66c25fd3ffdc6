"""Constants of one's own cluster from runs that were measured on it: ``toolkit plan --calibrate``.

All runs together say how fast matrices and attention run, how fast the network is and how long the
host takes for a layer, as far as their layouts differ enough to tell these apart; and how much
memory fragmentation takes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from toolkit.errors import ToolkitError
from toolkit.plan.fitting import (
    Constants,
    Errors,
    descend,
    deviations,
    dot,
    sensitivities,
    told_apart,
)
from toolkit.plan.hardware import GIGA, NETWORK_SHARE, Hardware
from toolkit.plan.measured import Measured
from toolkit.plan.memory import GIB, largest, memory_by_stage
from toolkit.plan.throughput import Estimator

FIRST = "sustained"
BOUNDS = {
    "sustained": (0.02, 1.5),
    "network": (0.05 * GIGA, 1000 * GIGA),
    "layer_floor": (1e-5, 0.1),
    "moe_floor": (1e-5, 0.5),
}
"""Between which a constant is believed; bytes a second, and seconds."""
FLOORS = (2.0, 4.0, 8.0)
"""Times the host's seconds from which the fit starts, too: a floor that no run touches is not felt,
and a higher one may be what the short steps show."""
NOISE = 0.01
"""How well the time of a step is known, at the best."""
FILLED = 0.2
"""Of a GPU's memory, what a run must fill to say something of fragmentation."""
SURER = 0.5
UNEXPLAINED = 0.03
"""The share of its error that another start must leave, and the error from which it may."""


@dataclass(frozen=True)
class RunFit:
    """One run, measured and estimated."""

    measured: Measured
    before: float
    """Seconds of a step with the constants as they were."""
    after: float
    """The same with those that were found."""
    allocated_gib: float
    """Of the fullest rank, without the margin: what the allocator should have."""


@dataclass(frozen=True)
class Fitted:
    """A constant that the runs identify, named and measured as in a profile's ``planning``."""

    key: str
    before: float
    after: float
    deviation: float
    """Relative; the standard deviation that follows from what the fit leaves unexplained."""


@dataclass(frozen=True)
class Calibration:
    """What runs say of the constants."""

    runs: tuple[RunFit, ...]
    fitted: tuple[Fitted, ...]
    left: tuple[tuple[str, str], ...]
    """Constants that stay as they were, and why."""
    hardware: Hardware
    """With the constants that were found."""

    def planning(self) -> dict[str, float]:
        """What to write into the profile."""
        return {each.key: each.after for each in self.fitted}


def calibrate(runs: Sequence[Measured], hardware: Hardware) -> Calibration:
    """Fit the constants to measured runs, all at once.

    Raises:
        ToolkitError: a run was on CPUs, or no believable constants explain one.
    """
    for run in runs:
        if run.device == "cpu":
            where = str(run.folder)
            raise ToolkitError("ran on CPUs, and the constants are of GPUs", where=where)
        _believe(run, hardware)
    start = _constants(hardware, runs)

    def errors(constants: Constants) -> list[float]:
        changed = hardware.calibrated(**constants)
        return [math.log(seconds(run, changed) / run.step_seconds) for run in runs]

    at, names, left = _best(errors, start)
    _bounded(at, names)
    noise = _noise(errors(at), len(names))
    spread = deviations(sensitivities(errors, at, names), names, noise)
    found = {name: _rounded(*_planned(name, at[name])) for name in names}
    fitted = [
        Fitted(key, _planned(name, start[name])[1], value, spread[name])
        for name, (key, value) in found.items()
    ]
    margin, why = _fragmentation(runs, hardware)
    fitted += [margin] if margin else []
    untold = {_planned(name, 1.0)[0]: reason for name, reason in left.items()}
    untold |= {"fragmentation": why} if why else {}
    new = hardware.calibrated(
        **{name: at[name] for name in names},
        fragmentation=margin.after if margin else None,
    )
    fits = tuple(_run_fit(run, hardware, new) for run in runs)
    return Calibration(fits, tuple(fitted), tuple(untold.items()), new)


def seconds(run: Measured, hardware: Hardware) -> float:
    """The estimated time of a step."""
    whole = run.run
    estimator = Estimator(whole.model, whole.precision, hardware)
    return estimator.estimate(whole.layout).step_seconds


def _constants(hardware: Hardware, runs: Sequence[Measured]) -> dict[str, float]:
    tuning = hardware.tuning
    found = {
        "sustained": tuning.sustained,
        "network": hardware.network,
        "layer_floor": tuning.layer_floor,
    }
    if any(run.run.model.num_moe_experts for run in runs):
        found["moe_floor"] = tuning.moe_floor
    return found


def _believe(run: Measured, hardware: Hardware) -> None:
    """Refuse a step's time that neither the best nor the worst of believable constants reaches."""
    least = BOUNDS[FIRST][0]
    fast = {name: high if name in (FIRST, "network") else low
            for name, (low, high) in BOUNDS.items()}  # fmt: skip
    shortest = seconds(run, hardware.calibrated(**fast))
    longest = seconds(run, hardware.calibrated(sustained=least))
    if not shortest <= run.step_seconds <= longest:
        raise ToolkitError(
            f"a step took {run.step_seconds:.3g} s; with the most that the GPUs can do it takes"
            f" {shortest:.3g} s, and with {least:.0%} of it {longest:.3g} s",
            where=str(run.folder),
            hint="is the cluster's profile that of the machine it ran on?",
        )


def _bounded(at: Constants, names: Sequence[str]) -> None:
    for name in names:
        if not BOUNDS[name][0] < at[name] < BOUNDS[name][1]:
            key, value = _planned(name, at[name])
            raise ToolkitError(
                f"no believable {key} explains these runs together: it would be beyond {value:.3g}",
                hint="calibrate them one by one; is the cluster's profile that of all of them?",
            )


Found = tuple[dict[str, float], list[str], dict[str, str]]


def _best(errors: Errors, start: dict[str, float]) -> Found:
    """The fit from where the constants are, unless one from higher floors explains far more."""
    best = _fit(errors, start, start)
    for name in ("layer_floor", "moe_floor"):
        for times in FLOORS if name in start else ():
            other = _fit(errors, start, {**start, name: times * start[name]})
            was, now = _error(errors(best[0])), _error(errors(other[0]))
            if was > UNEXPLAINED and now < SURER * was:
                best = other
    return best


def _fit(errors: Errors, start: dict[str, float], first: dict[str, float]) -> Found:
    """Fit what is told apart, and look again with the constants that came out."""
    at, names, left = first, list[str](), dict[str, str]()
    for _ in range(4):
        chosen, left = told_apart(sensitivities(errors, at, list(start)), FIRST)
        if set(chosen) == set(names):
            break
        names = chosen
        at = descend(errors, {**start, **{name: at[name] for name in names}}, names, BOUNDS)
    return at, names, left


def _error(errors: Sequence[float]) -> float:
    return math.sqrt(dot(errors, errors) / len(errors))


def _noise(errors: Sequence[float], fitted: int) -> float:
    free = len(errors) - fitted
    return max(NOISE, math.sqrt(dot(errors, errors) / free) if free > 0 else 0.0)


def _planned(name: str, value: float) -> tuple[str, float]:
    """A constant by the name and in the unit of a profile's ``planning``."""
    if name == "network":
        return "network_gbps", value / NETWORK_SHARE / GIGA * 8
    return name, value


def _rounded(key: str, value: float) -> tuple[str, float]:
    return key, float(f"{value:.4g}")


def _fragmentation(runs: Sequence[Measured], hardware: Hardware) -> tuple[Fitted | None, str]:
    """What the allocator had reserved over what it should have allocated: of the worst run.

    Of runs that fill a good part of a GPU alone: in small ones fixed workspaces are most of it.
    """
    told = [(run.reserved_gib, _allocated_gib(run)) for run in runs if run.reserved_gib is not None]
    filled = [pair for pair in told if pair[1] > FILLED * hardware.gpu.memory / GIB]
    if not filled:
        few = f"no run should fill {FILLED:.0%} of a GPU's memory"
        return None, few if told else "no row of metrics has memory_reserved_gib"
    worst = max(reserved / allocated - 1 for reserved, allocated in filled)
    if worst > 1:
        return None, f"a run reserved {1 + worst:.1f} times what it should have allocated"
    after = float(f"{max(0.0, worst):.4g}")
    return Fitted("fragmentation", hardware.tuning.fragmentation, after, 0.0), ""


def _allocated_gib(run: Measured) -> float:
    whole = run.run
    fullest = largest(memory_by_stage(whole.model, whole.layout, whole.precision))
    return (fullest.total - fullest.margin) / GIB


def _run_fit(run: Measured, before: Hardware, after: Hardware) -> RunFit:
    return RunFit(run, seconds(run, before), seconds(run, after), _allocated_gib(run))
