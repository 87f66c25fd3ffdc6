"""The same data and seed give the same losses at every parallel layout, with every schedule."""

from pathlib import Path
from typing import Any

import pytest
from pretrain_runs import GPT2, LLAMA, Stage, layout, make_stage, run_stages, succeeded

ITERATIONS = 30
TOLERANCE = 1e-4
TWO = {"resources": {"ntasks_per_node": 2}}
RECOMPUTED = {
    "recompute_granularity": "full",
    "recompute_method": "uniform",
    "recompute_num_layers": 1,
}
LLAMA_LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2": {"parallel": layout(tensor=2)},
    "pp2": {"parallel": layout(pipeline=2)},
    "pp2-interleaved": {"parallel": layout(pipeline=2, virtual=2)},
    "dp2-distributed-optimizer": {**TWO, "use_distributed_optimizer": True},
    "dp2-replicated-optimizer": {**TWO, "use_distributed_optimizer": False},
    "tp2-recomputed": {"parallel": layout(tensor=2), **RECOMPUTED},
    "tp2-pp2": {"parallel": layout(tensor=2, pipeline=2)},
}
GPT2_LAYOUTS = ("pp2-interleaved", "tp2-pp2")


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> dict[str, Stage]:
    """Every layout's run, by name; those of one world size share their processes."""
    root = tmp_path_factory.mktemp("parity")

    def make(name: str, model: dict[str, Any], **settings: Any) -> Stage:
        return make_stage(root / name, dataset, model, train_iters=ITERATIONS, **settings)

    found = {"llama": make("llama", LLAMA), "gpt2": make("gpt2", GPT2)}
    for name, settings in LLAMA_LAYOUTS.items():
        found[f"llama-{name}"] = make(f"llama-{name}", LLAMA, **settings)
    for name in GPT2_LAYOUTS:
        found[f"gpt2-{name}"] = make(f"gpt2-{name}", GPT2, **LLAMA_LAYOUTS[name])
    for world_size in (1, 2, 4):
        group = [s for s in found.values() if s.config.world_size() == world_size]
        succeeded(run_stages(group), group[0])
    return found


@pytest.mark.parametrize(
    ("model", "name"),
    [("llama", name) for name in LLAMA_LAYOUTS] + [("gpt2", name) for name in GPT2_LAYOUTS],
)
def test_the_losses_are_those_of_one_rank(stages: dict[str, Stage], model: str, name: str) -> None:
    alone, split = stages[model], stages[f"{model}-{name}"]
    assert len(alone.rows("loss")) == ITERATIONS
    assert split.rows("loss") == pytest.approx(alone.rows("loss"), abs=TOLERANCE)
    assert split.rows("grad_norm") == pytest.approx(alone.rows("grad_norm"), abs=TOLERANCE)
    held_out = alone.rows("validation_loss")
    assert split.rows("validation_loss") == pytest.approx(held_out, abs=TOLERANCE)


@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_the_model_learns(stages: dict[str, Stage], model: str) -> None:
    losses = stages[model].rows("loss")
    assert losses[0] == pytest.approx(5.70, abs=0.05)  # ln(300): every token as likely
    assert losses[-1] < losses[0] - 0.4


def test_the_artifact_records_layout_and_figures(stages: dict[str, Stage]) -> None:
    alone, split = stages["llama"].artifact.info, stages["llama-tp2-pp2"].artifact.info
    assert split["layout"]["tensor_model_parallel_size"] == 2
    assert split["layout"]["pipeline_model_parallel_size"] == 2
    assert split["parameters"] == alone["parameters"] == 197_184
    assert split["consumed_samples"] == ITERATIONS * 8
    assert split["untrained_validation_loss"] > split["validation_loss"] > 0
    assert (
        stages["gpt2-tp2-pp2"].artifact.info["parameters"]
        == (stages["gpt2"].artifact.info["parameters"])
    )
