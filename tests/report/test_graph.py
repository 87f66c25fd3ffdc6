import re
from itertools import combinations

import pytest

from toolkit.report.graph import TALL, WIDE, draw

MINI = {
    "vocabulary": [],
    "corpus": ["vocabulary"],
    "base": ["corpus"],
    "base-hf": ["base"],
    "chat": ["base-hf"],
    "preferred": ["chat"],
    "scores": ["base-hf", "chat", "preferred"],
}
FORKED = {
    "a": [],
    "b": [],
    "c": ["a", "b"],
    "d": ["b"],
    "e": ["c"],
    "f": ["d", "a"],
    "g": ["e", "f", "b"],
}


@pytest.mark.parametrize("geometry", [WIDE, TALL], ids=["wide", "tall"])
@pytest.mark.parametrize("parents", [MINI, FORKED, {"alone": []}], ids=["mini", "forked", "alone"])
def test_stages_lie_apart_inside_the_drawing_after_what_they_take(parents, geometry) -> None:
    drawing = draw(parents, geometry)
    nodes = {node.name: node for node in drawing.nodes}
    assert set(nodes) == set(parents)
    width, height = geometry.node_width, geometry.node_height
    for node in nodes.values():
        assert 0 <= node.x <= drawing.width - width
        assert 0 <= node.y <= drawing.height - height
    for a, b in combinations(nodes.values(), 2):
        assert abs(a.x - b.x) >= width or abs(a.y - b.y) >= height, (a, b)
    for edge in drawing.edges:
        source, target = nodes[edge.source], nodes[edge.target]
        assert (source.x < target.x) if geometry.wide else (source.y < target.y)
    found = {(e.source, e.target) for e in drawing.edges}
    assert found == {(p, child) for child, needs in parents.items() for p in needs}


def test_edges_pass_beside_stages_and_not_through_them() -> None:
    drawing = draw(MINI, WIDE)
    for edge in drawing.edges:
        ends = {edge.source, edge.target}
        points = re.findall(r"(-?[\d.]+) (-?[\d.]+)", edge.path)
        for x, y in ((float(a), float(b)) for a, b in points):
            for node in drawing.nodes:
                inside = (
                    node.x < x < node.x + WIDE.node_width and node.y < y < node.y + WIDE.node_height
                )
                assert not inside or node.name in ends, (edge, node)


def test_a_chain_is_straight() -> None:
    drawing = draw(MINI, WIDE)
    assert len({round(node.y) for node in drawing.nodes}) == 1


def test_a_circle_in_a_broken_folder_is_still_drawn() -> None:
    drawing = draw({"a": ["b"], "b": ["a"], "c": ["c", "gone"]}, WIDE)
    assert len(drawing.nodes) == 3
    assert len(drawing.edges) == 1
