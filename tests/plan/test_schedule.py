"""What is in flight in a pipeline, and how long it takes, against megatron-core's own schedule."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import schedules
from plan_shapes import H100, preset, published
from published_rows import BF16

from toolkit.megatron.pipeline_layout import stages_of
from toolkit.plan.memory import memory_by_stage
from toolkit.plan.schedule import most_kept, step_seconds
from toolkit.plan.shape import Layout
from toolkit.plan.stage_text import layers_text
from toolkit.plan.throughput import Estimate, Estimator


def pipeline(pp: int, vpp: int, batches: int, group: int | None = None) -> Layout:
    layout = Layout(world_size=pp, pp=pp, vpp=vpp, global_batch_size=batches)
    return replace(layout, microbatch_group=group)


def passes(layout: Layout, rank: int, patch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """A rank's passes in megatron-core's order: forward or backward, and the chunk."""
    group, vpp = layout.microbatch_group or layout.pp, layout.vpp
    for name, value in (
        ("get_pipeline_model_parallel_world_size", layout.pp),
        ("get_pipeline_model_parallel_rank", rank),
        ("get_virtual_pipeline_model_parallel_world_size", vpp if vpp > 1 else None),
    ):
        patch.setattr(parallel_state, name, lambda value=value: value)
    batches = layout.num_microbatches
    total, _, ahead, _ = schedules.get_pp_rank_microbatches(batches, vpp, group)
    chunks = [chunk for _, chunk in schedules.get_schedule_table(batches, vpp, group)]
    found = [("forward", chunk) for chunk in chunks[:ahead]]
    for number in range(total):
        if number + ahead < total:
            found.append(("forward", chunks[number + ahead]))
        found.append(("backward", vpp - 1 - chunks[number]))
    return found


SCHEDULES = [
    pipeline(4, 1, 8), pipeline(4, 1, 2), pipeline(2, 3, 2), pipeline(4, 2, 32),
    pipeline(2, 4, 30, group=4), pipeline(3, 2, 7, group=5), pipeline(4, 3, 11, group=4),
]  # fmt: skip


@pytest.mark.parametrize("layout", SCHEDULES, ids=str)
def test_what_is_kept_is_the_most_of_any_time(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice = random.Random(3)
    for rank in range(layout.pp):
        order = passes(layout, rank, monkeypatch)
        for _ in range(4):
            kept = [float(dice.choice([0, 1, 2, 5])) for _ in range(layout.vpp)]
            now = most = 0.0
            for way, chunk in order:
                now += kept[chunk] if way == "forward" else -kept[chunk]
                most = max(most, now)
            assert most_kept(layout, rank, kept) == most
            assert now == 0


def test_even_chunks_have_the_bubble_of_the_paper() -> None:
    """(p - 1) / v of a microbatch's time, forward and backward."""
    for pp, vpp in ((4, 1), (4, 2), (8, 4)):
        layout = pipeline(pp, vpp, 8 * pp)
        forward, backward = ([[s / vpp] * vpp for _ in range(pp)] for s in (1.0, 2.0))
        expected = 3 * (layout.num_microbatches + (pp - 1) / vpp)
        assert step_seconds(layout, forward, backward) == pytest.approx(expected)


def test_uneven_chunks_wait_for_one_another() -> None:
    """Ranks that are as busy, with chunks of 3 + 1 and 1 + 3 layers, wait in every group."""
    layout = pipeline(4, 2, 40)
    busy = 40 * 12.0

    def seconds(forward: list[list[float]]) -> float:
        return step_seconds(layout, forward, [[2 * each for each in rank] for rank in forward])

    assert seconds([[3.0, 1.0], [1.0, 3.0]] * 2) > 1.2 * busy
    assert seconds([[2.0, 2.0]] * 4) == busy + 18


def test_the_rest_of_a_full_pipeline_takes_as_long() -> None:
    """Of many microbatches only some are gone through; one by one they take as long."""
    dice = random.Random(4)
    for pp, vpp in ((4, 1), (4, 2), (3, 3)):
        forward = [[dice.randint(1, 4) / 1.0 for _ in range(vpp)] for _ in range(pp)]
        backward = [[2 * each for each in rank] for rank in forward]
        times = [
            step_seconds(pipeline(pp, vpp, batches), forward, backward)
            for batches in (4 * pp, 20 * pp, 40 * pp)
        ]
        assert times[2] - times[1] == pytest.approx(20 / 16 * (times[1] - times[0]), rel=0.02)


# Estimates ---------------------------------------------------------------------------------------


def estimate(layout: Layout) -> Estimate:
    return Estimator(preset("llama-3-70b"), BF16, H100).estimate(layout)


def own_stages(layout: Layout, notation: str) -> Layout:
    stages = stages_of(notation)
    return replace(layout, stages=stages, vpp=len(stages) // layout.pp)


EVEN = published(64, 256, 8192, 4, 8, vpp=5)


def test_an_even_pipeline_in_stages_is_as_fast() -> None:
    same = own_stages(EVEN, "Ett|(tt|)*38ttL")
    assert estimate(same).spent == estimate(EVEN).spent
    model = preset("llama-3-70b")
    assert memory_by_stage(model, same, BF16) == memory_by_stage(model, EVEN, BF16)


def test_the_same_stages_in_both_ways_to_say_them() -> None:
    plain = published(64, 256, 8192, 4, 8)
    named = replace(plain, first_stage_layers=7, last_stage_layers=7)
    spelled = own_stages(plain, "Et*7|(t*11|)*6t*7L")
    assert estimate(spelled).spent.values() == pytest.approx(estimate(named).spent.values())
    model = preset("llama-3-70b")
    assert memory_by_stage(model, spelled, BF16) == memory_by_stage(model, named, BF16)


def test_a_fuller_stage_is_waited_for() -> None:
    plain = published(64, 256, 8192, 4, 8)
    uneven = own_stages(plain, "Et*10|t*10|t*15|t*5|(t*10|)*3t*10L")
    lost = estimate(uneven).spent.imbalance - estimate(plain).spent.imbalance
    # 15 layers, where an even pipeline's slowest stage has 10 and the output layer.
    assert lost > 0.25 * estimate(plain).spent.matmul
    stages = memory_by_stage(preset("llama-3-70b"), uneven, BF16)
    assert stages[2].weights - stages[4].weights == 5 * (stages[4].weights / 10)


def test_less_on_the_last_stage_makes_up_for_the_output_layer() -> None:
    plain = published(64, 256, 8192, 4, 8)
    lighter = own_stages(plain, "Et*11|(t*10|)*6t*9L")
    assert estimate(lighter).step_seconds < estimate(plain).step_seconds


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        (Layout(pp=4), "rank 0: embedding + 20; ranks 1 to 2: 20; rank 3: 20 + output"),
        (Layout(pp=4, vpp=2), "rank 0: embedding + 10 | 10; ranks 1 to 2: 2 x 10;"
         " rank 3: 10 | 10 + output"),
        (own_stages(Layout(pp=2), "E|t*40|t*40|L"), "rank 0: embedding | 40; rank 1: 40 | output"),
    ],
)  # fmt: skip
def test_the_layers_in_words(layout: Layout, text: str) -> None:
    assert layers_text(preset("llama-3-70b"), layout) == text
