"""A run with experts, or with shared sequences, goes on in another layout from its checkpoint."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from layouts import EINOPS, EXPERTS, NESTED, TORCH_FSDP, TWO, parallel
from pretrain_runs import Stage, make_stage, run_stages, succeeded

from toolkit.megatron import checkpoint

ITERATIONS = 4
SAVED = 2
WAYS: dict[str, dict[str, Any]] = {
    "one": {},
    "expert": parallel(expert=2) | TWO,
    "data": TWO,
    "context": parallel(context=2),
    "tensor": parallel(tensor=2, sequence_parallel=True),
    "layout": parallel(pipeline=2, layout="E|t*3||t,L"),
    "torch-fsdp": TORCH_FSDP | TWO,
    "megatron-fsdp": TWO | parallel(use_megatron_fsdp=True),
    "overlapped": TWO | parallel(overlap_grad_reduce=True, overlap_param_gather=True),
}
CHANGES = [
    ("expert", "one"), ("one", "expert"), ("expert", "data"), ("tensor", "expert"),
    ("context", "tensor"), ("overlapped", "context"), ("layout", "one"), ("tensor", "layout"),
    ("torch-fsdp", "tensor"), ("expert", "torch-fsdp"), ("megatron-fsdp", "one"),
    ("torch-fsdp", "megatron-fsdp"),
]  # fmt: skip


def possible(*ways: str) -> bool:
    return EINOPS or not any(way.startswith(NESTED) for way in ways)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> dict[str, Stage]:
    """Whole runs by layout, and the second halves: ``expert-one`` begins where expert was."""
    root = tmp_path_factory.mktemp("going-on")

    def make(name: str, settings: dict[str, Any]) -> Stage:
        common = {"train_iters": ITERATIONS, "save_interval": SAVED, "keep_last": 3}
        return make_stage(root / name, dataset, EXPERTS, **common, **settings)

    found = {name: make(name, settings) for name, settings in WAYS.items() if possible(name)}
    _run(list(found.values()))
    changes = [(first, then) for first, then in CHANGES if possible(first, then)]
    for first, then in changes:
        name = f"{first}-{then}"
        shutil.copytree(found[first].checkpoints, root / name / "work" / "checkpoints")
        checkpoint.discard_newer(root / name / "work" / "checkpoints", SAVED)
        found[name] = make(name, WAYS[then])
    _run([found[f"{first}-{then}"] for first, then in changes])
    return found


def _run(stages: list[Stage]) -> None:
    for world_size in (1, 2):
        group = [s for s in stages if s.config.world_size() == world_size]
        succeeded(run_stages(group), group[0])


@pytest.mark.parametrize(("first", "then"), CHANGES)
def test_it_goes_on_as_one_rank_would(runs: dict[str, Stage], first: str, then: str) -> None:
    if not possible(first, then):
        pytest.skip("megatron-core needs einops for it, which is not installed")
    whole, second = runs["one"], runs[f"{first}-{then}"]
    for metric in ("loss", "grad_norm"):
        expected = whole.rows(metric)[SAVED:]
        assert len(expected) == ITERATIONS - SAVED  # the second half took no other steps
        assert second.rows(metric) == pytest.approx(expected, abs=1e-4), metric
    final = second.artifact.info["validation_loss"]
    assert final == pytest.approx(whole.artifact.info["validation_loss"], abs=1e-4)
