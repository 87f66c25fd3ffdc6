import math
import random
import statistics

import pytest

from toolkit.evaluate.figures import Figure, Kind, Scored

SHARE = Kind("accuracy", "Accuracy", unit="pairs", better="higher", percent=True)
LOSS = Kind("loss", "Loss", unit="tokens", better="lower")


def test_a_share_has_the_binomial_standard_error() -> None:
    right = [1.0] * 30 + [0.0] * 20
    figure = Figure(SHARE, right, [1.0] * 50)
    assert figure.value == 0.6
    assert figure.n == 50
    assert figure.standard_error == pytest.approx(math.sqrt(0.6 * 0.4 / 49))


def test_a_change_takes_the_same_items_of_both_models() -> None:
    noise = random.Random(1)
    hard = [noise.gauss(4, 2) for _ in range(200)]
    before = [h + noise.gauss(0, 0.1) for h in hard]
    after = [h - 0.3 + noise.gauss(0, 0.1) for h in hard]
    ones = [1.0] * 200
    value = Figure(LOSS, after, ones).result(("base", Figure(LOSS, before, ones)))
    differences = [a - b for a, b in zip(after, before, strict=True)]
    assert value.change is not None
    assert value.change.model == "base"
    assert value.change.value == pytest.approx(statistics.mean(differences))
    paired = statistics.stdev(differences) / math.sqrt(200)
    assert value.change.standard_error == pytest.approx(paired)
    assert value.change.standard_error < value.standard_error / 5


def test_perplexity_and_its_error_follow_from_the_loss() -> None:
    losses, tokens = [30.0, 8.0, 55.0], [10.0, 4.0, 20.0]
    plain = Figure(LOSS, losses, tokens)
    exponential = Figure(LOSS, losses, tokens, exponential=True)
    assert plain.value == pytest.approx(93 / 34)
    assert exponential.value == pytest.approx(math.exp(93 / 34))
    assert exponential.standard_error == pytest.approx(plain.standard_error * exponential.value)


def test_one_document_alone_has_no_error() -> None:
    assert Figure(LOSS, [3.0], [2.0]).standard_error is None
    assert Figure(LOSS, [3000.0], [2.0], exponential=True).value == math.inf


def test_figures_survive_json() -> None:
    figures = (Figure(SHARE, [1.0, 0.0], [1.0, 1.0]), Figure(LOSS, given=(0.25, 0.1, 12)))
    scored = Scored("a", figures, {"pairs": 2})
    again = Scored.from_json(scored.to_json())
    assert [f.value for f in again.figures] == [0.5, 0.25]
    assert [f.n for f in again.figures] == [2, 12]
    assert again.figures[1].result(("base", scored.figures[1])).change.standard_error == (
        pytest.approx(math.hypot(0.1, 0.1))
    )
