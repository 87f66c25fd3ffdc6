"""What is measured between ranks, in which order, and which node is slow: no rank is touched here.

Bandwidths are nccl-tests' ``busbw`` (NVIDIA/nccl-tests, doc/PERFORMANCE.md): the size over the
time (``algbw``), times 2 (n - 1) / n for n ranks, which does not depend on n and can be held
against a link's speed.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from toolkit.preflight.config import Preflight
from toolkit.preflight.verdict import EITHER

PARTNERS = 3
"""Whom each node meets in pairs: so two slow ones can't make a third look slow."""


@dataclass(frozen=True)
class Round:
    """One all-reduce of every group, all at once."""

    name: str
    groups: tuple[tuple[int, ...], ...]
    """Ranks; no rank is in two of them."""


Figures = Mapping[int, float]
"""GB/s by rank; 0 where it failed; a rank that gave no answer is not in it."""


@dataclass
class Links:
    """What was measured, and what is wrong with it."""

    within: dict[str, float] = field(default_factory=dict)
    """GB/s by node."""
    across: dict[str, float] = field(default_factory=dict)
    unfit: dict[str, str] = field(default_factory=dict)
    """By node: the reason."""
    common: list[str] = field(default_factory=list)


def measure_links(
    nodes: Mapping[str, Sequence[int]], settings: Preflight
) -> Generator[Round, Figures, Links]:
    """Yields what to measure, is sent the figures, and returns what they mean.

    Args:
        nodes: the ranks of each, by local rank.
        settings: the floors; without one, only an all-reduce that fails is wrong.
    """
    found = Links()
    spread = {node: tuple(ranks) for node, ranks in nodes.items() if len(ranks) > 1}
    if spread:
        figures = yield Round("within", tuple(spread.values()))
        floor = settings.min_busbw_within
        found.within = {node: slowest(figures, ranks) for node, ranks in spread.items()}
        slow = {node: speed for node, speed in found.within.items() if is_slow(speed, floor)}
        if len(slow) == len(nodes) > 1:
            found.common.append(f"all-reduce within nodes, on every node: {_text(slow, floor)}")
        else:
            found.unfit = {
                node: f"all-reduce within the node: {said(speed, floor)}"
                for node, speed in slow.items()
            }
    if len(nodes) > 1 and not found.unfit and not found.common:
        yield from _across(found, nodes, settings.min_busbw_across)
    return found


def _across(
    found: Links, nodes: Mapping[str, Sequence[int]], floor: float | None
) -> Generator[Round, Figures, None]:
    figures = yield Round("across", rails(list(nodes.values())))
    found.across = {node: slowest(figures, ranks) for node, ranks in nodes.items()}
    if not any(is_slow(speed, floor) for speed in found.across.values()):
        return
    speed = min(found.across.values())
    if len(nodes) == 2:
        reason = f"all-reduce across nodes: {said(speed, floor)}{EITHER}"
        found.unfit = dict.fromkeys(nodes, reason)
        return
    best = dict.fromkeys(nodes, 0.0)
    rounds = PARTNERS + len(nodes) % 2  # of an odd number, one sits out in each
    for number, pairs in enumerate(pairings(list(nodes))[:rounds], start=1):
        groups = [group for pair in pairs for group in rails([nodes[node] for node in pair])]
        figures = yield Round(f"pairs-{number}", tuple(groups))
        for pair in pairs:
            both = slowest(figures, [rank for node in pair for rank in nodes[node]])
            for node in pair:
                best[node] = max(best[node], both)
    slow = {node: speed for node, speed in best.items() if is_slow(speed, floor)}
    if len(slow) == len(nodes):
        found.common.append(f"all-reduce across nodes, in every pair: {_text(slow, floor)}")
    elif not slow:
        said_now = said(speed, floor)
        found.common.append(f"all-reduce across all nodes: {said_now}; each pair alone is fast")
    else:
        found.unfit = {
            node: f"all-reduce with every other node: {said(speed, floor)}"
            for node, speed in slow.items()
        }


def rails(nodes: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Groups of one rank of each node: the first ones, the second ones, and so on."""
    return tuple(zip(*nodes, strict=False))


def pairings(nodes: Sequence[str]) -> list[list[tuple[str, str]]]:
    """Every node with every other one, a round at a time (the circle method); one may sit out."""
    circle: list[str | None] = [*nodes, *([None] if len(nodes) % 2 else [])]
    rounds = []
    for _ in range(len(circle) - 1):
        rounds.append(list(_couples(circle)))
        circle = [circle[0], circle[-1], *circle[1:-1]]
    return rounds


def _couples(circle: Sequence[str | None]) -> Iterator[tuple[str, str]]:
    half = len(circle) // 2
    for one, other in zip(circle[:half], reversed(circle[half:]), strict=True):
        if one is not None and other is not None:
            yield one, other


def slowest(figures: Figures, ranks: Sequence[int]) -> float:
    """The figure that counts: of the slowest rank."""
    return min(figures.get(rank, 0.0) for rank in ranks)


def is_slow(speed: float, floor: float | None) -> bool:
    """Whether a figure is below its floor; 0 always is: the all-reduce failed."""
    return speed <= 0 or (floor is not None and speed < floor)


def said(speed: float, floor: float | None) -> str:
    """A figure against its floor, in words."""
    if speed <= 0:
        return "failed, or gave no answer in time"
    wanted = "" if floor is None else f", where {floor:g} are wanted"
    return f"{speed:.3g} GB/s{wanted}"


def _text(slow: Mapping[str, float], floor: float | None) -> str:
    return said(max(slow.values()), floor)
