"""Best-fit decreasing: nothing lost, nothing too long, as tight as the plain algorithm."""

from bisect import bisect_left, insort

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.data.pack.bestfit import Levels, Packing, pack

PROPERTY = settings(deadline=None, max_examples=150, derandomize=True)
CASES = st.integers(1, 80).flatmap(
    lambda capacity: st.tuples(
        st.just(capacity), st.lists(st.integers(1, capacity), max_size=120), st.integers(0, 99)
    )
)


def plain_best_fit(lengths: list[int], capacity: int) -> list[int]:
    """The room that each row has left, sorted: one example after another, longest first."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        at = bisect_left(rooms, length)
        room = rooms.pop(at) if at < len(rooms) else capacity
        insort(rooms, room - length)
    return rooms


def used(packing: Packing, lengths: np.ndarray) -> np.ndarray:
    """The tokens of each row."""
    return np.array([lengths[packing.row(n)].sum() for n in range(len(packing))], np.int64)


@PROPERTY
@given(CASES)
def test_every_example_is_in_one_row_that_has_room(case: tuple[int, list[int], int]) -> None:
    capacity, raw, seed = case
    lengths = np.array(raw, np.int64)
    packing = pack(lengths, capacity, seed)
    assert sorted(packing.order.tolist()) == list(range(len(raw)))
    assert packing.starts[0] == 0 and packing.starts[-1] == len(raw)
    assert (np.diff(packing.starts) > 0).all()
    assert (used(packing, lengths) <= capacity).all()
    again = pack(lengths, capacity, seed)
    assert np.array_equal(again.order, packing.order)
    assert np.array_equal(again.starts, packing.starts)


@PROPERTY
@given(CASES)
def test_the_rows_are_those_of_the_plain_algorithm(case: tuple[int, list[int], int]) -> None:
    capacity, raw, seed = case
    lengths = np.array(raw, np.int64)
    rows = used(pack(lengths, capacity, seed), lengths)
    assert sorted((capacity - rows).tolist()) == plain_best_fit(raw, capacity)
    # the bound of first-fit decreasing, too: all rows but one are more than half full
    assert (rows * 2 <= capacity).sum() <= 1


@PROPERTY
@given(st.lists(st.tuples(st.integers(0, 70), st.booleans())), st.integers(0, 70))
def test_levels_are_a_set(changes: list[tuple[int, bool]], least: int) -> None:
    levels, oracle = Levels(70), set[int]()
    for number, put in changes:
        (levels.add if put else levels.discard)(number)
        (oracle.add if put else oracle.discard)(number)
    assert levels.smallest(least) == min((n for n in oracle if n >= least), default=None)


def test_rows_are_not_sorted_by_length_and_the_seed_decides() -> None:
    lengths = np.random.default_rng(0).integers(1, 513, 5_000)
    first, other = pack(lengths, 512, 1), pack(lengths, 512, 2)
    longest = [lengths[first.row(n)].max() for n in range(len(first))]
    assert abs(np.corrcoef(np.arange(len(longest)), longest)[0, 1]) < 0.1
    assert not np.array_equal(first.order, other.order)
    assert sorted(used(first, lengths).tolist()) == sorted(used(other, lengths).tolist())


@pytest.mark.parametrize("capacity", [2048, 131_072])
def test_half_a_million_examples_fill_their_rows(capacity: int) -> None:
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(5.5, 0.8, 500_000).astype(np.int64), 1, capacity)
    packing = pack(lengths, capacity, 0)
    assert lengths.sum() / (len(packing) * capacity) > 0.999
