"""How large a model and how many tokens a compute budget is best spent on.

Hoffmann et al. 2022 (arXiv:2203.15556, "Chinchilla") fitted this in three ways; Besiroglu et al.
2024 (arXiv:2404.10102) fitted the third again, on the data read off its figure, and corrected it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from toolkit.errors import ToolkitError

FLOPS_PER_PARAMETER = 6
"""Operations of training for each parameter and token, as both papers count."""


class Fit(Protocol):
    """One way to split a budget."""

    @property
    def name(self) -> str:
        """As the paper calls it."""

    def parameters(self, flops: float) -> float:
        """The best number of parameters for ``flops``; tokens are ``flops / (6 parameters)``."""


@dataclass(frozen=True)
class PowerLaw:
    """``parameters = base (flops / flops_at_base) ** exponent``."""

    name: str
    exponent: float
    base: float
    flops_at_base: float

    def parameters(self, flops: float) -> float:
        """See ``Fit``."""
        return self.base * float((flops / self.flops_at_base) ** self.exponent)


@dataclass(frozen=True)
class Parametric:
    """``loss = E + A / parameters ** alpha + B / tokens ** beta``."""

    name: str
    entropy: float
    a: float
    b: float
    alpha: float
    beta: float

    def parameters(self, flops: float) -> float:
        """See ``Fit``: where the derivative of the loss along ``flops`` vanishes (its eq. 4)."""
        both = self.alpha + self.beta
        scale = (self.alpha * self.a / (self.beta * self.b)) ** (1 / both)
        return float(scale * (flops / FLOPS_PER_PARAMETER) ** (self.beta / both))

    def loss(self, parameters: float, tokens: float) -> float:
        """Nats a token, on the paper's own data (MassiveText)."""
        return float(self.entropy + self.a / parameters**self.alpha + self.b / tokens**self.beta)


APPROACH_1 = PowerLaw("Chinchilla 1: minimum over training curves", 0.50, 1e9, 1.21e20)
"""Exponent of table 2; through the row of 1B of table 3 (20.2B tokens)."""
APPROACH_2 = PowerLaw("Chinchilla 2: IsoFLOP profiles", 0.49, 1e9, 1.20e20)
"""Exponent of table 2; through the row of 1B of table A3 (20.0B tokens)."""
APPROACH_3 = Parametric("Chinchilla 3: parametric loss", 1.69, 406.4, 410.7, 0.34, 0.28)
"""Equation 10, as rounded there: table A3, made from the unrounded numbers, has larger models."""
BESIROGLU = Parametric("Besiroglu et al.: 3, corrected", 1.8172, 482.01, 2085.43, 0.3478, 0.3658)
"""Table 1."""
FITS: tuple[Fit, ...] = (APPROACH_1, APPROACH_2, APPROACH_3, BESIROGLU)


@dataclass(frozen=True)
class Optimum:
    """How a fit would spend a budget."""

    name: str
    parameters: float
    tokens: float


def optima(flops: float) -> list[Optimum]:
    """What each fit says of a budget of ``flops``."""
    found = []
    for fit in FITS:
        parameters = fit.parameters(flops)
        tokens = flops / (FLOPS_PER_PARAMETER * parameters)
        found.append(Optimum(fit.name, parameters, tokens))
    return found


@dataclass(frozen=True)
class Trained:
    """One finished run."""

    name: str
    parameters: int
    """Those that a token meets: with experts, fewer than there are."""
    tokens: int
    loss: float
    """Nats a token, on held-out data where it was evaluated."""

    @property
    def flops(self) -> float:
        """As the papers count: six for each parameter and token."""
        return float(FLOPS_PER_PARAMETER) * self.parameters * self.tokens


@dataclass(frozen=True)
class Law:
    """``loss = floor + (flops / scale) ** -exponent``, fitted to runs."""

    floor: float
    scale: float
    exponent: float
    error: float
    """Root of the mean squared difference to the runs, in nats."""
    without: tuple[Law, ...] = ()
    """The laws through all runs but one, of each run; empty where they are too few to tell."""

    def loss(self, flops: float) -> float:
        """Nats a token at a budget."""
        return self.floor + float((flops / self.scale) ** -self.exponent)

    @property
    def exponent_error(self) -> float | None:
        """Standard error of the exponent, by the jackknife; None from fewer than three runs."""
        return _jackknife([law.exponent for law in self.without])

    def loss_error(self, flops: float) -> float | None:
        """The same of the loss at a budget, in nats: how far a prediction leans on single runs."""
        return _jackknife([law.loss(flops) for law in self.without])


def _jackknife(values: list[float]) -> float | None:
    """Standard error from what is found when each run in turn is left out (Efron 1982, ch. 3)."""
    count = len(values)
    if count < 3:
        return None
    mean = sum(values) / count
    return math.sqrt((count - 1) / count * sum((value - mean) ** 2 for value in values))


FLOORS = 200
"""Floors that are tried between none and just below the best run, and as many again nearby."""
BUDGETS_FOR_A_FLOOR = 4


def finite(runs: Sequence[Trained]) -> list[Trained]:
    """The runs that did not diverge: whose loss is a number above zero."""
    return [run for run in runs if math.isfinite(run.loss) and run.loss > 0]


def fit_law(runs: Sequence[Trained]) -> Law:
    """The power law through runs, least squares in the logarithm of what is above the floor.

    With fewer than four budgets the floor is none: three numbers can't be had from three points.
    With three budgets or more, the laws through all runs but one tell how sure it is.

    Raises:
        ToolkitError: fewer than two budgets, or a loss that does not fall with the budget.
    """
    if _budgets(runs) < 2:
        raise ToolkitError("a power law takes at least two runs of different compute")
    floored = _budgets(runs) >= BUDGETS_FOR_A_FLOOR
    best = _fit(runs, floored)
    if best is None:
        raise ToolkitError(
            "the loss does not fall with the compute over these runs",
            hint="runs on the same data, each with its own learning rate at its best, do",
        )
    others = [[*runs[:left], *runs[left + 1 :]] for left in range(len(runs))]
    told = [_fit(some, floored) for some in others if _budgets(some) >= 2 + floored]
    without = [law for law in told if law is not None]
    return replace(best, without=tuple(without) if len(without) == len(runs) else ())


def _budgets(runs: Sequence[Trained]) -> int:
    return len({run.flops for run in runs})


def _fit(runs: Sequence[Trained], floored: bool) -> Law | None:
    """The best of the lines above each floor; where one is fitted, looked for in two rounds."""
    if not floored:
        return _line(runs, 0.0)
    lowest = min(run.loss for run in runs)
    step = 0.999 * lowest / FLOORS
    first = _best(runs, [step * number for number in range(FLOORS)])
    if first is None:
        return None
    near = [first.floor + step * (number / FLOORS - 1) for number in range(2 * FLOORS)]
    return _best(runs, [first.floor, *(floor for floor in near if 0 <= floor < lowest)])


def _best(runs: Sequence[Trained], floors: Sequence[float]) -> Law | None:
    tried = (_line(runs, floor) for floor in floors)
    return min((law for law in tried if law is not None), key=lambda law: law.error, default=None)


def _line(runs: Sequence[Trained], floor: float) -> Law | None:
    """A straight line through the logarithms, above a given floor."""
    xs = [math.log(run.flops) for run in runs]
    ys = [math.log(run.loss - floor) for run in runs]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread
    if slope >= 0:
        return None
    scale = math.exp(mean_x - mean_y / slope)
    law = Law(floor, scale, -slope, 0.0)
    squares = [(law.loss(run.flops) - run.loss) ** 2 for run in runs]
    return replace(law, error=math.sqrt(sum(squares) / len(squares)))
