from collections.abc import Callable

import pytest

from toolkit.preflight.config import Preflight
from toolkit.preflight.links import Links, Round, measure_links, pairings

FLOORS = Preflight(min_busbw_within=100, min_busbw_across=10)


def simulate(
    nodes: dict[str, list[int]],
    speed: Callable[[tuple[int, ...]], float],
    settings: Preflight = FLOORS,
    silent: tuple[int, ...] = (),
) -> tuple[Links, list[Round]]:
    """Run the schedule where an all-reduce of some ranks is as fast as ``speed`` says."""
    schedule = measure_links(nodes, settings)
    rounds = []
    try:
        plan = next(schedule)
        while True:
            rounds.append(plan)
            ranks = [rank for group in plan.groups for rank in group]
            assert len(ranks) == len(set(ranks)), "a rank can't be in two groups at once"
            figures = {r: speed(group) for group in plan.groups for r in group if r not in silent}
            plan = schedule.send(figures)
    except StopIteration as end:
        return end.value, rounds


def cluster(count: int, each: int = 2) -> dict[str, list[int]]:
    return {f"n{i}": list(range(i * each, (i + 1) * each)) for i in range(count)}


def fabric(
    slow: set[int], each: int = 2, within: float = 200
) -> Callable[[tuple[int, ...]], float]:
    """All-reduces are slow that cross from a slow node, or to one."""

    def speed(group: tuple[int, ...]) -> float:
        nodes = {rank // each for rank in group}
        return within if len(nodes) == 1 else 1.0 if nodes & slow else 20.0

    return speed


def test_a_good_network_takes_two_rounds() -> None:
    found, rounds = simulate(cluster(4), fabric(set()))
    assert [r.name for r in rounds] == ["within", "across"]
    assert rounds[1].groups == ((0, 2, 4, 6), (1, 3, 5, 7))
    assert not found.unfit and not found.common
    assert found.within == {f"n{i}": 200 for i in range(4)} and found.across["n3"] == 20


@pytest.mark.parametrize("count", [3, 4, 5, 8, 33])
def test_a_slow_node_is_named_whichever_it_is(count: int) -> None:
    for bad in range(count):
        found, rounds = simulate(cluster(count), fabric({bad}))
        assert list(found.unfit) == [f"n{bad}"], (count, bad)
        assert "1 GB/s, where 10 are wanted" in found.unfit[f"n{bad}"]
        assert len(rounds) <= 6


@pytest.mark.parametrize("count", [6, 9, 16])
def test_two_slow_nodes_are_both_named(count: int) -> None:
    for first in range(count):
        for second in range(first + 1, count):
            found, _ = simulate(cluster(count), fabric({first, second}))
            assert set(found.unfit) == {f"n{first}", f"n{second}"}


def test_of_two_nodes_both_are_named() -> None:
    found, rounds = simulate(cluster(2), fabric({1}))
    assert set(found.unfit) == {"n0", "n1"} and len(rounds) == 2
    assert "which of the two" in found.unfit["n0"]


def test_a_slow_fabric_is_no_node_s_fault() -> None:
    found, _ = simulate(cluster(4), fabric({0, 1, 2, 3}))
    assert not found.unfit and "in every pair: 1 GB/s, where 10 are wanted" in found.common[0]


def test_a_fabric_that_is_slow_only_as_a_whole_is_told() -> None:
    found, _ = simulate(cluster(4), lambda g: 200 if len(g) == 2 else 5)
    assert not found.unfit and "each pair alone is fast" in found.common[0]


def test_a_node_that_is_slow_within_is_named_before_anything_crosses_nodes() -> None:
    found, rounds = simulate(cluster(3), lambda g: 50 if 2 in g else 200)
    assert list(found.unfit) == ["n1"] and len(rounds) == 1
    assert found.unfit["n1"] == "all-reduce within the node: 50 GB/s, where 100 are wanted"


def test_a_floor_that_no_node_reaches_is_no_node_s_fault() -> None:
    found, _ = simulate(cluster(3), fabric(set(), within=90))
    assert not found.unfit and "within nodes, on every node: 90 GB/s" in found.common[0]


def test_without_floors_only_what_fails_is_wrong() -> None:
    none = Preflight()
    assert not simulate(cluster(3), fabric({1}), none)[0].unfit
    failing, _ = simulate(cluster(3), lambda g: 0.0 if 2 in g and len(g) == 2 else 9.0, none)
    assert list(failing.unfit) == ["n1"] and "failed" in failing.unfit["n1"]
    silent, _ = simulate(cluster(3), fabric(set()), none, silent=(4, 5))
    assert list(silent.unfit) == ["n2"]


def test_one_node_and_one_rank_each_skip_what_they_lack() -> None:
    assert [r.name for r in simulate(cluster(1), fabric(set()))[1]] == ["within"]
    assert [r.name for r in simulate(cluster(2, 1), fabric(set(), 1))[1]] == ["across"]
    assert simulate(cluster(1, 1), fabric(set(), 1))[1] == []


@pytest.mark.parametrize("count", [2, 3, 4, 7, 8])
def test_pairings_bring_every_pair_once(count: int) -> None:
    nodes = [str(i) for i in range(count)]
    met = [frozenset(pair) for pairs in pairings(nodes) for pair in pairs]
    assert len(met) == len(set(met)) == count * (count - 1) // 2
