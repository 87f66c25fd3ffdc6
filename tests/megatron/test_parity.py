"""The same data and seed give the same losses in every layout that a CPU can run."""

from pathlib import Path
from typing import Any

import pytest
from layouts import EINOPS, LAYOUTS, MODELS, NESTED
from pretrain_runs import Stage, make_stage, run_stages, succeeded

ITERATIONS = {"llama": 5, "gpt2": 5, "experts": 4, "deeper": 4}
LONG = 30
TOLERANCE = 1e-4
Stages = dict[tuple[str, str], Stage]


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Stages:
    """Every layout's run, by model and name; those of one world size share their processes."""
    root = tmp_path_factory.mktemp("parity")

    def make(model: str, name: str, settings: dict[str, Any]) -> Stage:
        settings = {"train_iters": ITERATIONS[model], **settings}
        return make_stage(root / f"{model}-{name}", dataset, MODELS[model], **settings)

    found = {(model, ""): make(model, "alone", {}) for model in MODELS}
    for model in ("llama", "gpt2"):
        found[model, "long"] = make(model, "long", {"train_iters": LONG})
    for (model, name), settings in LAYOUTS.items():
        if EINOPS or not name.startswith(NESTED):
            found[model, name] = make(model, name, settings)
    for world_size in (1, 2, 4):
        group = [s for s in found.values() if s.config.world_size() == world_size]
        succeeded(run_stages(group), group[0])
    return found


@pytest.mark.parametrize(("model", "name"), list(LAYOUTS))
def test_the_losses_are_those_of_one_rank(stages: Stages, model: str, name: str) -> None:
    if (model, name) not in stages:
        pytest.skip("megatron-core needs einops for it, which is not installed")
    alone, split = stages[model, ""], stages[model, name]
    assert len(alone.rows("loss")) == ITERATIONS[model]
    assert min(alone.rows("grad_norm")) > 0.5
    for metric in ("loss", "grad_norm", "validation_loss"):
        assert split.rows(metric) == pytest.approx(alone.rows(metric), abs=TOLERANCE), metric
    assert split.artifact.info["parameters"] == alone.artifact.info["parameters"]


@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_the_model_learns(stages: Stages, model: str) -> None:
    losses = stages[model, "long"].rows("loss")
    assert losses[0] == pytest.approx(5.70, abs=0.05)  # ln(300): every token as likely
    assert losses[-1] < losses[0] - 0.4


def test_every_expert_is_counted_once(stages: Stages) -> None:
    """Router, 4 experts of three matrices, one shared expert, in 3 of 4 layers."""
    dense = stages["llama", ""].artifact.info["parameters"]
    of_layer = 64 * 4 + 4 * 3 * 64 * 96 + 3 * 64 * 64 - 3 * 64 * 128
    assert stages["experts", ""].artifact.info["parameters"] == dense + 3 * of_layer


def test_the_artifact_records_layout_and_figures(stages: Stages) -> None:
    split = stages["llama", "tensor-pipeline"].artifact.info
    assert split["layout"]["tensor_model_parallel_size"] == 2
    assert split["layout"]["pipeline_model_parallel_size"] == 2
    assert split["parameters"] == 197_184
    assert split["consumed_samples"] == ITERATIONS["llama"] * 8
    assert split["untrained_validation_loss"] > split["validation_loss"] > 0
