"""Compute-optimal sizes as the papers print them, and power laws through runs."""

import math
import random
from dataclasses import replace

import pytest

from toolkit.errors import ToolkitError
from toolkit.plan.scaling import (
    APPROACH_1,
    APPROACH_2,
    APPROACH_3,
    BESIROGLU,
    FITS,
    Trained,
    finite,
    fit_law,
    optima,
)


@pytest.mark.parametrize(
    ("flops", "parameters", "tokens"),
    [
        (1.92e19, 400e6, 8.0e9),
        (1.21e20, 1e9, 20.2e9),
        (1.23e22, 10e9, 205.1e9),
        (5.76e23, 67e9, 1.5e12),
        (3.85e24, 175e9, 3.7e12),
        (3.43e25, 520e9, 11.0e12),
    ],
)
def test_chinchilla_1_is_its_table_3(flops: float, parameters: float, tokens: float) -> None:
    found = APPROACH_1.parameters(flops)
    assert found == pytest.approx(parameters, rel=0.08)
    assert flops / 6 / found == pytest.approx(tokens, rel=0.08)


@pytest.mark.parametrize(
    ("flops", "parameters"), [(1.84e19, 400e6), (1.32e22, 10e9), (6.88e23, 67e9), (4.54e24, 175e9)]
)
def test_chinchilla_2_is_its_table_a3(flops: float, parameters: float) -> None:
    assert APPROACH_2.parameters(flops) == pytest.approx(parameters, rel=0.05)


def test_chinchilla_3_and_its_correction() -> None:
    """Gopher's budget: about 40B by the paper's third fit, near 70B by the corrected one."""
    assert 30e9 < APPROACH_3.parameters(5.76e23) < 42e9
    assert 65e9 < BESIROGLU.parameters(5.76e23) < 75e9
    assert BESIROGLU.beta / (BESIROGLU.alpha + BESIROGLU.beta) == pytest.approx(0.513, abs=0.001)
    assert APPROACH_3.loss(70e9, 1.4e12) == pytest.approx(1.9366, abs=1e-3)


@pytest.mark.parametrize("fit", [APPROACH_3, BESIROGLU])
def test_the_optimum_of_a_parametric_loss_is_one(fit: type[BESIROGLU]) -> None:
    flops = 1e23
    best = fit.parameters(flops)
    losses = [fit.loss(n, flops / 6 / n) for n in (0.9 * best, best, 1.1 * best)]
    assert losses[1] == min(losses)


def test_a_budget_is_split_whole() -> None:
    found = optima(1e22)
    assert [o.name for o in found] == [fit.name for fit in FITS]
    for best in found:
        assert 6 * best.parameters * best.tokens == pytest.approx(1e22)


def made(budgets: list[float], floor: float, exponent: float, scale: float) -> list[Trained]:
    runs = []
    for number, flops in enumerate(budgets):
        parameters = round(math.sqrt(flops / 120))
        tokens = round(flops / 6 / parameters)
        loss = floor + (6 * parameters * tokens / scale) ** -exponent
        runs.append(Trained(f"run{number}", parameters, tokens, loss))
    return runs


def test_a_law_is_found_again() -> None:
    law = fit_law(made([1e15, 1e16, 1e17, 1e18, 1e19], 1.7, 0.15, 1e19))
    assert law.floor == pytest.approx(1.7, abs=1e-3)
    assert law.exponent == pytest.approx(0.15, rel=1e-3)
    assert law.error < 1e-5
    assert law.loss(1e21) == pytest.approx(1.7 + 100**-0.15, abs=1e-3)
    assert law.exponent_error == pytest.approx(0, abs=1e-3)


def test_how_sure_a_law_is() -> None:
    """Over many sweeps with noise the truth lies within three standard errors mostly, and the
    errors are as large as the noise makes them."""
    draw = random.Random(5)
    budgets = [1e15 * 10 ** (n / 2) for n in range(8)]
    runs = made(budgets, 0.0, 0.05, 1e24)
    within, sizes = 0, []
    for _ in range(200):
        law = fit_law([replace(r, loss=r.loss * (1 + draw.gauss(0, 0.003))) for r in runs[:3]])
        assert law.exponent_error is not None
        sizes.append(law.exponent_error)
        within += abs(law.exponent - 0.05) < 3 * law.exponent_error
    assert within > 150
    spread = 0.003 / math.sqrt(2 * math.log(10) ** 2 / 4)  # of a least-squares slope
    assert sorted(sizes)[100] == pytest.approx(spread, rel=0.6)


def test_beyond_the_runs_it_is_less_sure() -> None:
    runs = made([1e15 * 10 ** (n / 2) for n in range(8)], 1.7, 0.2, 1e19)
    noisy = [replace(r, loss=r.loss + 0.004 * (-1) ** n) for n, r in enumerate(runs)]
    law = fit_law(noisy)
    errors = [law.loss_error(flops) for flops in (1e17, 1e19, 1e22)]
    assert all(error is not None for error in errors)
    assert errors == sorted(errors, key=float)  # type: ignore[arg-type]


def test_runs_of_equal_size_are_one_budget() -> None:
    """Four runs of two budgets have no floor."""
    runs = made([1e15, 1e15, 1e17, 1e17], 1.7, 0.15, 1e19)
    law = fit_law(runs)
    assert law.floor == 0
    assert law.loss(1e15) == pytest.approx(runs[0].loss)
    assert fit_law(made([1e15, 1e17], 1.7, 0.15, 1e19)).exponent_error is None


def test_diverged_runs_are_left_out() -> None:
    runs = made([1e15, 1e16, 1e17], 0.0, 0.05, 1e24)
    diverged = [replace(runs[0], loss=loss) for loss in (math.nan, math.inf, 0.0)]
    assert finite([*diverged, *runs]) == runs


def test_three_runs_have_no_floor() -> None:
    law = fit_law(made([1e15, 1e16, 1e17], 0.0, 0.05, 1e24))
    assert law.floor == 0
    assert law.exponent == pytest.approx(0.05, rel=1e-3)


def test_what_is_no_law_is_refused() -> None:
    runs = made([1e15, 1e16], 0.0, 0.05, 1e24)
    with pytest.raises(ToolkitError, match="at least two runs"):
        fit_law(runs[:1])
    with pytest.raises(ToolkitError, match="at least two runs"):
        fit_law([runs[0], runs[0]])
    rising = [Trained("a", 10, 100, 3.0), Trained("b", 100, 1000, 4.0)]
    with pytest.raises(ToolkitError, match="does not fall"):
        fit_law(rising)
