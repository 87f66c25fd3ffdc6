"""The search: published layouts among the best, and what it says of the others."""

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest
from plan_shapes import FP8, H100, preset, published, run

from toolkit.megatron.pipeline_layout import text_of
from toolkit.plan.breakdown import Breakdown
from toolkit.plan.layout import is_valid
from toolkit.plan.memory import fullest, largest, memory_by_stage
from toolkit.plan.search import Found, _grid, cut, search, why_slower
from toolkit.plan.shape import Layout, Overlap, Precision, Run
from toolkit.plan.throughput import Estimate, Estimator

BF16 = Precision(grad_reduce_in_fp32=False)


def look(name: str, layout: Layout, precision: Precision = FP8, keep: int = 5) -> Found:
    model = preset(name)
    estimator = Estimator(model, precision, H100)
    return search(run(model, layout, precision), estimator, keep=keep)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("llama-3-8b", published(8, 128, 8192, fsdp="megatron")),
        ("llama-3-70b", published(64, 256, 8192, 4, 8, vpp=5)),
        ("llama-3.1-405b", published(1024, 1536, 8192, 8, 8, 2, 8)),
    ],
)
def test_the_published_layout_is_among_the_five_best(name: str, layout: Layout) -> None:
    found = look(name, replace(layout, tp=1, pp=1, cp=1, vpp=1, fsdp=None))
    same = [c.layout for c in found.best if cut(c.layout) == cut(layout)]
    assert len(same) == 1
    assert (same[0].vpp, same[0].micro_batch_size) == (layout.vpp, layout.micro_batch_size)


@pytest.mark.parametrize(
    ("seq_length", "cp"), [pytest.param(8192, 1, id="8k"), pytest.param(131072, 16, id="131k")]
)
def test_llama_3_405b_on_16384_gpus_in_two_seconds(seq_length: int, cp: int) -> None:
    """Its paper's layouts (table 4) are among the best: TP8 PP16, and CP16 for long sequences."""
    batch = 2048 if seq_length == 8192 else 128
    began = time.process_time()
    found = look("llama-3.1-405b", published(16384, batch, seq_length), BF16)
    assert time.process_time() - began < 2
    assert (8, 16, cp) in [(c.layout.tp, c.layout.pp, c.layout.cp) for c in found.best]


def test_experts_on_16384_gpus_in_two_seconds() -> None:
    """As many layouts again for each way to deal the experts out."""
    began = time.process_time()
    found = look("qwen3-235b-a22b", published(16384, 16384, 4096, etp=1))
    assert time.process_time() - began < 2
    assert found.looked_at > 5000
    assert len(found.best) == 5


def test_all_that_is_found_is_valid_and_fits() -> None:
    given = published(64, 256, 8192)
    model = preset("llama-3-70b")
    found = look("llama-3-70b", given, keep=20)
    assert len(found.best) > 10
    for candidate in found.best:
        whole = run(model, candidate.layout)
        assert is_valid(whole)
        fullest = largest(memory_by_stage(model, candidate.layout, FP8))
        assert fullest.total <= H100.gpu.memory
        assert fullest.total == pytest.approx(candidate.memory.total)
    steps = [c.estimate.step_seconds for c in found.best]
    assert steps == sorted(steps)
    assert len({cut(c.layout) for c in found.best}) == len(found.best)


def test_what_does_not_fit_is_told() -> None:
    found = look("llama-3-70b", published(64, 256, 8192))
    assert found.too_large is not None
    assert found.too_large.memory.total > H100.gpu.memory
    assert found.too_large.estimate.step_seconds < found.best[0].estimate.step_seconds


def test_the_fullest_stage_may_be_any_one() -> None:
    """Experts in a few layers alone: the stage that has them is neither the first nor the last."""
    layers = 32
    model = preset("mixtral-8x7b", moe_layers=tuple(16 <= n < 24 for n in range(layers)))
    given = published(64, 64, 4096, etp=1)
    estimator = Estimator(model, FP8, H100)
    whole = run(model, replace(given, pp=4, sequence_parallel=False))
    found = fullest(model, whole.layout, FP8, H100.gpu.memory, H100.tuning.fragmentation)
    stages = memory_by_stage(model, whole.layout, FP8)
    assert found == largest(stages) == stages[2]
    middle = estimator.estimate(whole.layout)
    even = Estimator(preset("mixtral-8x7b"), FP8, H100).estimate(whole.layout)
    assert middle.spent.imbalance > 4 * even.spent.imbalance


def test_nothing_fits_on_one_gpu() -> None:
    assert look("llama-3-70b", published(1, 8, 8192)).best == ()


def test_experts_are_dealt_out() -> None:
    given = published(64, 256, 4096, etp=1)
    best = look("mixtral-8x7b", given).best[0].layout
    assert best.ep > 1
    assert is_valid(run(preset("mixtral-8x7b"), best))


def test_94_layers_leave_the_output_layer_alone() -> None:
    """Qwen3-235B: 48 stages of 2 layers, the last of which is the output layer's."""
    given = published(256, 1024, 4096, etp=1)
    found = look("qwen3-235b-a22b", given)
    best = found.best[0].layout
    assert text_of(best.stages) == "Ett|(tt|)*46L"
    assert is_valid(run(preset("qwen3-235b-a22b"), best))
    both = replace(best, stages=(), account_for_embedding=True, account_for_loss=True)
    estimator = Estimator(preset("qwen3-235b-a22b"), FP8, H100)
    saved = 1 - found.best[0].estimate.step_seconds / estimator.estimate(both).step_seconds
    assert 0.02 < saved < 0.10


def test_without_fsdp_there_is_none() -> None:
    model, layout = preset("llama-3-8b"), published(8, 128, 8192)
    estimator = Estimator(model, FP8, H100)
    found = search(run(model, layout), estimator, keep=50, fsdp=False)
    assert found.best
    assert all(c.layout.fsdp is None for c in found.best)


SMALL = {
    "dense": ("llama-3-8b", {"num_layers": 8, "num_attention_heads": 16, "num_query_groups": 4}),
    "experts": ("mixtral-8x7b", {"num_layers": 6, "moe_layers": (True,) * 6}),
}


@pytest.mark.parametrize("world_size", [8, 12])
@pytest.mark.parametrize("name", SMALL)
def test_the_grid_has_every_valid_layout_of_a_small_world(name: str, world_size: int) -> None:
    """All degrees there are, asked of the rules one by one: the grid has those that they take, but
    for what it says that it leaves out."""
    source, changes = SMALL[name]
    model = preset(source, **changes)
    given = published(world_size, 24, 8192, etp=1 if model.num_moe_experts else None)
    whole = run(model, given)
    found = {seen(c) for c in _grid(whole, 8, fsdp=False) if is_valid(replace(whole, layout=c))}
    wanted = {seen(c) for c in every(whole) if is_valid(replace(whole, layout=c))}
    assert len(wanted) > 30
    assert found == wanted


def every(whole: Run) -> Iterator[Layout]:
    """Without a thought for what divides what; but TP that divides the node's 8 GPUs, CP in powers
    of 2 with 2,048 tokens at the least, and with it one sequence a microbatch."""
    world = whole.layout.world_size
    degrees = range(1, world + 1)
    experts = whole.model.num_moe_experts
    for tp, pp, cp in product((1, 2, 4, 8), degrees, (1, 2, 4)):
        if world % (tp * pp * cp):
            continue
        for vpp, ep, size, ends in product(
            range(1, 1 + whole.model.num_layers + 2),
            degrees if experts else (1,),
            (1, 2, 4, 8) if cp == 1 else (1,),
            ((False, False), (False, True), (True, True)),
        ):
            if pp == 1 and any(ends):
                continue  # nothing is split
            copies = tp * pp < world
            overlap = Overlap(copies, copies, p2p=vpp > 1, tp_comm=tp > 1)
            yield replace(
                whole.layout,
                tp=tp,
                pp=pp,
                cp=cp,
                vpp=vpp,
                ep=ep,
                micro_batch_size=size,
                sequence_parallel=tp > 1,
                account_for_embedding=ends[0],
                account_for_loss=ends[1],
                overlap=overlap,
            )


def seen(layout: Layout) -> tuple[object, ...]:
    ends = (layout.account_for_embedding, layout.account_for_loss)
    return (*cut(layout), layout.vpp, layout.micro_batch_size, ends)


def test_the_best_is_the_best_of_all() -> None:
    """Of all valid layouts that fit without recomputation none is faster than the first."""
    model = preset("llama-3-8b", num_layers=8)
    given = published(8, 24, 8192)
    whole = run(model, given)
    estimator = Estimator(model, FP8, H100)
    fitting = [
        estimator.estimate(layout).step_seconds
        for layout in every(whole)
        if is_valid(replace(whole, layout=layout))
        and largest(memory_by_stage(model, layout, FP8)).total <= H100.gpu.memory
    ]
    found = search(whole, estimator, fsdp=False)
    assert found.best[0].estimate.step_seconds == pytest.approx(min(fitting))


def made_of(**spent: float) -> Estimate:
    parts = Breakdown(**spent)
    return Estimate(Layout(), parts.total, 1.0, 1.0, 0.5, 2.0, "bf16", parts)


def test_why_a_layout_loses() -> None:
    best = made_of(matmul=90.0, bubble=5.0, tensor=5.0)
    other = made_of(matmul=90.0, bubble=9.0, tensor=4.0, recompute=1.0)
    told = why_slower(other, best)
    assert told == "+4.0% pipeline bubble, +1.0% recomputation, -1.0% TP communication"
    assert why_slower(best, best) == "as fast, and takes more memory"
