import math
import random

import pytest

from toolkit.report.scale import duration, fit, number, size, tick


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("log", [False, True])
def test_axes_hold_their_values_and_have_a_few_round_ticks(seed: int, log: bool) -> None:
    chance = random.Random(seed)
    centre = 10 ** chance.uniform(-6, 9)
    values = [centre * math.exp(chance.gauss(0, 0.01 + seed / 8)) for _ in range(50)]
    scale = fit(values, 0, 100, log=log)
    assert all(-1e-6 <= scale(v) <= 100 + 1e-6 for v in values)
    ticks = scale.ticks(4)
    assert 2 <= len(ticks) <= 10
    assert ticks == sorted(ticks)
    assert all(-1e-6 <= scale(t) <= 100 + 1e-6 for t in ticks)
    labels = [tick(t) for t in ticks]
    assert len(set(labels)) == len(labels), labels
    assert all(len(label) <= 9 for label in labels), labels


def test_one_value_alone_has_room_around_it() -> None:
    scale = fit([5.0], 0, 100, log=False)
    assert scale.low < 5.0 < scale.high
    assert fit([0.0], 0, 100, log=False, zero=True).low == 0.0
    assert fit([-3.0, -1.0], 0, 100, log=False, zero=True).high >= -1.0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0"),
        (4.2134, "4.21"),
        (0.000325, "0.000325"),
        (0.00003251, "3.25e-05"),
        (1234.4, "1,234"),
        (1_996_537, "2.00M"),
        (99_960, "100k"),
        (-41.26, "−41.3"),
        (3.4e12, "3.40T"),
        (math.inf, "not finite"),
    ],
)
def test_numbers_are_told_at_a_glance(value: float, expected: str) -> None:
    assert number(value) == expected


def test_ticks_carry_no_needless_zeros() -> None:
    found = [tick(v) for v in (0, 0.25, 1000, 12_500, -0.5, 2.5e-4, 0.30000000000000004)]
    assert found == ["0", "0.25", "1,000", "12.5k", "−0.5", "2.5e-4", "0.3"]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(None, "–"), (0.84, "0.8 s"), (41.5, "42 s"), (272, "4 min 32 s"), (11_100, "3 h 05 min"),
     (59.9, "1 min 00 s"), (190_000, "2 d 04 h")],
)  # fmt: skip
def test_durations(seconds, expected: str) -> None:
    assert duration(seconds) == expected


def test_sizes() -> None:
    assert [size(n) for n in (412, 3 << 20, 5 << 50)] == ["412 B", "3.0 MiB", "5120.0 TiB"]
