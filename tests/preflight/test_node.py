from pathlib import Path

import pytest

from toolkit.preflight import node
from toolkit.preflight.config import Preflight


def test_what_is_below_a_floor_fails_and_says_both_figures(tmp_path: Path) -> None:
    floors = Preflight(min_shm="9000T", min_free_disk="9000T", min_write_speed=1e9)
    found = {f.check: f for f in node.look_at_node(tmp_path, floors)}
    assert list(found) == ["/dev/shm", "disk", "write speed"]
    assert all(f.failed and "wanted" in f.detail for f in found.values())
    assert list(tmp_path.iterdir()) == []


def test_without_floors_everything_is_only_reported(tmp_path: Path) -> None:
    found = list(node.look_at_node(tmp_path, Preflight(min_shm=None)))
    assert not any(f.failed for f in found)
    assert float(found[2].detail.removesuffix(" MB/s").replace(",", "")) > 0


def test_a_folder_that_can_t_be_written_fails(tmp_path: Path) -> None:
    found = node.write_speed(tmp_path / "none", None)
    assert found.failed and "No such file" in found.detail


def test_a_missing_shm_fails_where_a_floor_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "SHARED_MEMORY", tmp_path / "none")
    assert next(node.look_at_node(tmp_path, Preflight())).failed
    assert not next(node.look_at_node(tmp_path, Preflight(min_shm=None))).failed


def test_versions_name_what_must_be_equal() -> None:
    assert {"torch", "megatron-core", "python", "megatron-toolkit"} <= set(node.same_everywhere())
