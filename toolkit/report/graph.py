"""The graph of stages as a layered drawing, after Sugiyama, Tagawa and Toda (1981).

A stage is one layer after the last stage that it takes from. An edge over several layers gets a
lane of its own in each of them. Lanes and stages are ordered by the mean of their neighbours
(barycentre), and placed by isotonic regression: as near to that mean as their order allows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean

SWEEPS = 6
LANE = 16.0
"""Room that an edge takes beside the stages that it passes."""
STAGE_WEIGHT, LANE_WEIGHT = 1.0, 0.001
"""How much a stage, and an edge that passes, insist on their place."""


@dataclass(frozen=True)
class Geometry:
    """Sizes of a drawing, in CSS pixels."""

    wide: bool
    """Layers from left to right; otherwise from top to bottom."""
    node_width: float
    node_height: float
    layer_gap: float
    node_gap: float
    margin: float = 2.0

    @property
    def depth(self) -> float:
        """A node's extent along the direction of the layers."""
        return self.node_width if self.wide else self.node_height

    @property
    def breadth(self) -> float:
        """A node's extent across it."""
        return self.node_height if self.wide else self.node_width


WIDE = Geometry(wide=True, node_width=140, node_height=66, layer_gap=22, node_gap=16)
TALL = Geometry(wide=False, node_width=200, node_height=66, layer_gap=24, node_gap=14)


@dataclass(frozen=True)
class Node:
    """A stage on the drawing, by its upper left corner."""

    name: str
    x: float
    y: float


@dataclass(frozen=True)
class Edge:
    """A reference: from the stage that makes to the one that takes."""

    source: str
    target: str
    path: str


@dataclass(frozen=True)
class Drawing:
    """The placed graph."""

    width: float
    height: float
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    geometry: Geometry


@dataclass
class _Slot:
    """A stage, or the lane of an edge, in one layer."""

    name: str
    lane: bool = False
    before: list[_Slot] = field(default_factory=list)
    after: list[_Slot] = field(default_factory=list)
    place: float = 0.0
    """The middle, across the layers."""


def draw(parents: Mapping[str, Sequence[str]], geometry: Geometry) -> Drawing:
    """Place stages and edges.

    Args:
        parents: for each stage, those it takes from. A cycle (only in a broken run folder) loses
            the edge that closes it.
        geometry: sizes and direction.
    """
    layer_of = _layers(parents)
    layers, chains = _slots(parents, layer_of)
    for sweep in range(SWEEPS):
        _order(layers, forward=sweep % 2 == 0)
    for layer in layers:
        _align(layer, [0.0] * len(layer), geometry)
    for sweep in range(SWEEPS):
        _place(layers, geometry, forward=sweep % 2 == 1)
    slots = [slot for layer in layers for slot in layer]
    half = {True: LANE / 2, False: geometry.breadth / 2}
    low = min((s.place - half[s.lane] for s in slots), default=0.0)
    for slot in slots:
        slot.place += geometry.margin - low
    across = max((s.place + half[s.lane] for s in slots), default=0.0) + geometry.margin
    along = len(layers) * (geometry.depth + geometry.layer_gap) - geometry.layer_gap
    along += 2 * geometry.margin
    return Drawing(
        width=along if geometry.wide else across,
        height=across if geometry.wide else along,
        nodes=tuple(_node(s, layer_of[s.name], geometry) for s in slots if not s.lane),
        edges=tuple(_edge(chain, layer_of, geometry) for chain in chains),
        geometry=geometry,
    )


def _layers(parents: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Longest distance of each stage from one that takes nothing."""
    found: dict[str, int] = {}

    def visit(name: str, above: frozenset[str]) -> int:
        if name not in found:
            usable = [p for p in parents[name] if p in parents and p not in above | {name}]
            found[name] = 1 + max((visit(p, above | {name}) for p in usable), default=-1)
        return found[name]

    for name in parents:
        visit(name, frozenset())
    return found


def _slots(
    parents: Mapping[str, Sequence[str]], layer_of: Mapping[str, int]
) -> tuple[list[list[_Slot]], list[list[_Slot]]]:
    """The layers with their slots, and for each edge the slots that it goes through."""
    layers: list[list[_Slot]] = [[] for _ in range(max(layer_of.values(), default=-1) + 1)]
    stages = {name: _Slot(name) for name in parents}
    for name, slot in stages.items():
        layers[layer_of[name]].append(slot)
    chains = []
    for target, sources in parents.items():
        for source in sources:
            if source not in stages or layer_of[source] >= layer_of[target]:
                continue
            chain = [stages[source]]
            for layer in range(layer_of[source] + 1, layer_of[target]):
                lane = _Slot(f"{source}>{target}", lane=True)
                layers[layer].append(lane)
                chain.append(lane)
            chain.append(stages[target])
            for one, other in pairwise(chain):
                one.after.append(other)
                other.before.append(one)
            chains.append(chain)
    return layers, chains


def _order(layers: list[list[_Slot]], *, forward: bool) -> None:
    """Sort each layer by the mean rank of its neighbours in the layer before (or after)."""
    for layer in layers if forward else reversed(layers):
        ranks = {id(slot): rank for each in layers for rank, slot in enumerate(each)}

        def mean(slot: _Slot, ranks: dict[int, int] = ranks) -> float:
            near = slot.before if forward else slot.after
            return fmean(ranks[id(n)] for n in near) if near else float(ranks[id(slot)])

        layer.sort(key=mean)


def _place(layers: list[list[_Slot]], geometry: Geometry, *, forward: bool) -> None:
    """Move each layer's slots towards their neighbours in the layer before (or after)."""
    for layer in layers if forward else reversed(layers):
        wanted = []
        for slot in layer:
            near = slot.before if forward else slot.after
            stages = [n for n in near if not n.lane] or near
            wanted.append(fmean(n.place for n in stages) if near else slot.place)
        _align(layer, wanted, geometry)


def _align(layer: list[_Slot], wanted: list[float], geometry: Geometry) -> None:
    """Places nearest to the wanted ones that keep the order and the gaps (pool adjacent violators).

    Subtracting each slot's offset in a tight packing turns the gaps into "not decreasing".
    """
    offsets = _offsets(layer, geometry)
    pools: list[tuple[float, float, int]] = []  # mean, weight, members
    for slot, target, offset in zip(layer, wanted, offsets, strict=True):
        mean, weight, members = target - offset, LANE_WEIGHT if slot.lane else STAGE_WEIGHT, 1
        while pools and pools[-1][0] > mean:
            other, heavy, count = pools.pop()
            mean = (mean * weight + other * heavy) / (weight + heavy)
            weight, members = weight + heavy, members + count
        pools.append((mean, weight, members))
    means = [mean for mean, _, members in pools for _ in range(members)]
    for slot, mean, offset in zip(layer, means, offsets, strict=True):
        slot.place = mean + offset


def _offsets(layer: Sequence[_Slot], geometry: Geometry) -> list[float]:
    """The middles of slots packed as tightly as they may be."""
    found, edge = [], 0.0
    for index, slot in enumerate(layer):
        size = LANE if slot.lane else geometry.breadth
        if index:
            edge += 0.0 if slot.lane and layer[index - 1].lane else geometry.node_gap
        found.append(edge + size / 2)
        edge += size
    return found


def _node(slot: _Slot, layer: int, geometry: Geometry) -> Node:
    along = geometry.margin + layer * (geometry.depth + geometry.layer_gap)
    across = slot.place - geometry.breadth / 2
    x, y = (along, across) if geometry.wide else (across, along)
    return Node(slot.name, round(x, 1), round(y, 1))


def _edge(chain: Sequence[_Slot], layer_of: Mapping[str, int], geometry: Geometry) -> Edge:
    """Straight past each layer in its lane, curved between the layers."""
    first = layer_of[chain[0].name]
    pitch = geometry.depth + geometry.layer_gap
    parts: list[str] = []
    for index, slot in enumerate(chain):
        start = geometry.margin + (first + index) * pitch
        if index:
            bend = start - geometry.layer_gap / 2
            before = chain[index - 1].place
            control = (_point(bend, before, geometry), _point(bend, slot.place, geometry))
            parts.append(f"C{control[0]} {control[1]} {_point(start, slot.place, geometry)}")
        if index < len(chain) - 1:
            end = _point(start + geometry.depth, slot.place, geometry)
            parts.append(f"{'L' if index else 'M'}{end}")
    return Edge(chain[0].name, chain[-1].name, "".join(parts))


def _point(along: float, across: float, geometry: Geometry) -> str:
    x, y = (along, across) if geometry.wide else (across, along)
    return f"{x:.1f} {y:.1f}"
