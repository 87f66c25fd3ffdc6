"""Constants from measured runs: found again where the runs tell them apart, and left where not."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from plan_shapes import H100, preset, published, run
from published_rows import EXPERTS as EXPERTS_ROWS

from toolkit.errors import ToolkitError
from toolkit.plan.calibration import calibrate, seconds
from toolkit.plan.config import Planning
from toolkit.plan.fitting import deviations, solve, told_apart
from toolkit.plan.hardware import Hardware
from toolkit.plan.measured import Measured
from toolkit.plan.memory import GIB, largest, memory_by_stage
from toolkit.plan.scaling import Trained
from toolkit.plan.shape import Overlap, Precision
from toolkit.plan.sizing import hardware_of

SHOWN = Overlap()
LARGE = run(preset("llama-3-8b"), published(8, 128, 8192), Precision())
SPLIT = run(preset("llama-3-70b"), published(64, 256, 8192, 4, 8, vpp=5))
SMALL = run(preset("gpt2-124m"), published(8, 64, 1024), Precision())
SPREAD = run(
    preset("llama-3-8b"),
    replace(published(64, 64, 2048), overlap=SHOWN, distributed_optimizer=True),
    Precision(),
)
EXPERTS_ROW = EXPERTS_ROWS[0]
EXPERTS = run(preset(EXPERTS_ROW[0]), EXPERTS_ROW[1])
ALL = [LARGE, SPLIT, SMALL, SPREAD, EXPERTS]


def measured(whole: Any, step: float, reserved: float | None = None) -> Measured:
    trained = Trained("run/base", 1, 1, 3.0)
    return Measured(Path("runs/run/base"), whole, trained, step, 10.0, reserved, "cuda")


def ran(hardware: Hardware, runs: Sequence[Any], noise: float = 0.0) -> list[Measured]:
    """Runs as they would be measured on such hardware."""
    dice = random.Random(3)
    exact = [measured(whole, 1.0) for whole in runs]
    return [
        replace(each, step_seconds=seconds(each, hardware) * dice.lognormvariate(0, noise))
        for each in exact
    ]


TRUE = {"sustained": 0.7, "network": 30e9, "layer_floor": 9e-4, "moe_floor": 6e-3}
OTHERS = {"sustained": 0.95, "network": 18e9, "layer_floor": 5e-4, "moe_floor": 5e-3}


@pytest.mark.parametrize("true", [TRUE, OTHERS])
def test_runs_of_many_kinds_give_the_constants_that_they_were_made_with(
    true: dict[str, float],
) -> None:
    hardware = H100.calibrated(**true)
    found = calibrate(ran(hardware, ALL), H100)
    assert {name for name, _ in found.left} == {"fragmentation"}
    planning = Planning(**found.planning())
    again = hardware_of("h100", 8, "infiniband", planning)
    assert again.network == pytest.approx(true["network"], rel=0.01)
    for name in ("sustained", "layer_floor", "moe_floor"):
        assert getattr(again.tuning, name) == pytest.approx(true[name], rel=0.01)
    for fit in found.runs:
        assert fit.after == pytest.approx(fit.measured.step_seconds, rel=0.002)
        assert seconds(fit.measured, again) == pytest.approx(fit.after, rel=0.001)
    assert any(abs(fit.before / fit.measured.step_seconds - 1) > 0.1 for fit in found.runs)


def test_noise_leaves_the_constants_near() -> None:
    found = calibrate(ran(H100.calibrated(**TRUE), ALL * 3, noise=0.02), H100)
    for each in found.fitted:
        true = TRUE["network"] / 0.9 * 8 / 1e9 if each.key == "network_gbps" else TRUE[each.key]
        assert abs(each.after / true - 1) < max(0.02, 3 * each.deviation), each
        assert each.deviation < 0.2
    assert len(found.fitted) == 4


def test_one_run_says_one_thing() -> None:
    for true in (0.4, 0.7, 1.0):
        found = calibrate(ran(H100.calibrated(sustained=true), [LARGE]), H100)
        assert [each.key for each in found.fitted] == ["sustained"]
        assert found.planning()["sustained"] == pytest.approx(true, rel=0.01)
        left = dict(found.left)
        assert "hardly changes the time" in left["network_gbps"]
        assert left["layer_floor"]
        assert found.hardware.network == H100.network


def test_the_same_run_ten_times_says_no_more_than_once() -> None:
    found = calibrate(ran(H100.calibrated(**TRUE), [SPREAD] * 10), H100)
    assert len(found.fitted) == 1
    assert any("don't tell it from" in why for _, why in found.left)


def test_short_layers_are_the_hosts_and_long_ones_the_gpus() -> None:
    """A higher floor than the one to begin with, which no run would feel."""
    true = {"sustained": 0.8, "layer_floor": 2e-3}
    found = calibrate(ran(H100.calibrated(**true), [LARGE, SMALL]), H100)
    assert found.planning() == pytest.approx(true, rel=0.01)
    assert all(fit.after == pytest.approx(fit.measured.step_seconds) for fit in found.runs)


def test_runs_inside_a_node_say_nothing_of_the_network() -> None:
    found = calibrate(ran(H100.calibrated(**TRUE), [LARGE, SMALL]), H100)
    assert "network_gbps" in dict(found.left)
    assert found.hardware.network == H100.network


def test_a_calibrated_profile_is_where_the_next_one_begins() -> None:
    before = hardware_of("h100", 8, "infiniband", Planning(sustained=0.5, layer_floor=9e-4))
    found = calibrate(ran(H100.calibrated(**TRUE), [LARGE, SMALL]), before)
    assert {e.key: e.before for e in found.fitted} == {"sustained": 0.5, "layer_floor": 9e-4}
    assert found.planning()["sustained"] == pytest.approx(0.7, rel=0.01)


def test_fragmentation_is_that_of_the_worst_run() -> None:
    def reserved(whole: Any, share: float) -> Measured:
        each = measured(whole, 1.0)
        fullest = largest(memory_by_stage(whole.model, whole.layout, whole.precision))
        allocated = (fullest.total - fullest.margin) / GIB
        return replace(each, step_seconds=seconds(each, H100), reserved_gib=allocated * share)

    found = calibrate([reserved(LARGE, 1.12), reserved(SMALL, 1.02)], H100)
    assert found.planning()["fragmentation"] == pytest.approx(0.12, rel=0.01)
    assert found.hardware.tuning.fragmentation == found.planning()["fragmentation"]
    less = calibrate([reserved(LARGE, 0.9)], H100)
    assert less.planning()["fragmentation"] == 0
    small = dict(calibrate([reserved(SMALL, 1.5)], H100).left)
    assert "no run should fill 20% of a GPU" in small["fragmentation"]
    far = dict(calibrate([reserved(LARGE, 2.3)], H100).left)
    assert "reserved 2.3 times" in far["fragmentation"]


def test_what_can_not_be_calibrated() -> None:
    good, slow = ran(H100, [LARGE, SPLIT])
    with pytest.raises(ToolkitError, match="with the most that the GPUs can do"):
        calibrate([good, replace(slow, step_seconds=1e-3)], H100)
    with pytest.raises(ToolkitError, match="ran on CPUs"):
        calibrate([good, replace(slow, device="cpu")], H100)
    apart = [replace(each, step_seconds=60 * each.step_seconds) for each in ran(H100, [SPREAD])]
    with pytest.raises(ToolkitError, match="and with 2% of it"):
        calibrate(apart, H100)


def test_what_is_told_apart() -> None:
    columns = {"a": [1.0, 0.5], "b": [2.0, 1.0], "c": [0.0, 1.0], "d": [0.01, 0.02]}
    chosen, left = told_apart(columns, "a")
    assert chosen == ["b", "c"] or chosen == ["a", "c"]
    assert "hardly" in left["d"]
    assert ("a" if "b" in chosen else "b") in left
    assert solve([[0.0, 2.0], [3.0, 1.0]], [4.0, 5.0]) == pytest.approx([1.0, 2.0])
    assert deviations({"a": [2.0, 0.0], "c": [0.0, 1.0]}, ["a", "c"], 0.02) == {
        "a": pytest.approx(0.01),
        "c": pytest.approx(0.02),
    }
