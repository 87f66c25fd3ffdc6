"""The search: published layouts among the best, and what it says of the others."""

import time
from dataclasses import replace

import pytest
from plan_shapes import FP8, H100, preset, published, run

from toolkit.plan.layout import is_valid
from toolkit.plan.memory import largest, memory_by_stage
from toolkit.plan.search import Found, cut, search, why_slower
from toolkit.plan.shape import Layout, Precision
from toolkit.plan.throughput import Breakdown, Estimate, Estimator

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


def test_nothing_fits_on_one_gpu() -> None:
    assert look("llama-3-70b", published(1, 8, 8192)).best == ()


def test_experts_are_dealt_out() -> None:
    given = published(64, 256, 4096, etp=1)
    best = look("mixtral-8x7b", given).best[0].layout
    assert best.ep > 1
    assert is_valid(run(preset("mixtral-8x7b"), best))


def test_without_fsdp_there_is_none() -> None:
    model, layout = preset("llama-3-8b"), published(8, 128, 8192)
    estimator = Estimator(model, FP8, H100)
    found = search(run(model, layout), estimator, keep=50, fsdp=False)
    assert found.best
    assert all(c.layout.fsdp is None for c in found.best)


def made_of(**spent: float) -> Estimate:
    parts = Breakdown(**spent)
    return Estimate(Layout(), parts.total, 1.0, 1.0, 0.5, 2.0, "bf16", parts)


def test_why_a_layout_loses() -> None:
    best = made_of(matmul=90.0, bubble=5.0, tensor=5.0)
    other = made_of(matmul=90.0, bubble=9.0, tensor=4.0, recompute=1.0)
    told = why_slower(other, best)
    assert told == "+4.0% pipeline bubble, +1.0% recomputation, -1.0% TP communication"
    assert why_slower(best, best) == "as fast, and takes more memory"
