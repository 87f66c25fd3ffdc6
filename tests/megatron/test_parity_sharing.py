"""Sequences, experts and layers shared in every way that a CPU can: the losses stay the same."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from pretrain_runs import GPT2, LLAMA, Stage, make_stage, run_stages, succeeded

ITERATIONS = 8
TOLERANCE = 1e-4
EXPERTS = {
    **LLAMA,
    "num_moe_experts": 4,
    "moe_ffn_hidden_size": 96,
    "moe_layer_freq": [0, 1, 1, 1],
    "moe_shared_expert_intermediate_size": 64,
    "moe_z_loss_coeff": 1e-3,
    "moe_router_dtype": "fp32",
}
"""Without a load-balancing loss: it is a mean over microbatches, which layouts make differently."""
TWO = {"resources": {"ntasks_per_node": 2}}


def parallel(**degrees: Any) -> dict[str, Any]:
    short = {
        "tensor": "tensor_model_parallel_size",
        "pipeline": "pipeline_model_parallel_size",
        "virtual": "virtual_pipeline_model_parallel_size",
        "context": "context_parallel_size",
        "expert": "expert_model_parallel_size",
        "expert_tensor": "expert_tensor_parallel_size",
        "group": "microbatch_group_size_per_vp_stage",
        "layout": "pipeline_model_parallel_layout",
    }
    return {"parallel": {short.get(name, name): size for name, size in degrees.items()}}


EINOPS = find_spec("einops") is not None
MODELS = {"llama": LLAMA, "gpt2": GPT2, "experts": EXPERTS}
LAYOUTS: dict[tuple[str, str], dict[str, Any]] = {
    ("llama", "sequence"): parallel(tensor=2, sequence_parallel=True),
    ("gpt2", "sequence"): parallel(tensor=2, sequence_parallel=True),
    ("llama", "context"): parallel(context=2),
    ("gpt2", "context"): parallel(context=2),
    ("llama", "saved-activations-shared"): parallel(tensor=2)
    | {
        "recompute_granularity": "full",
        "recompute_method": "block",
        "recompute_num_layers": 2,
        "distribute_saved_activations": True,
    },
    ("llama", "selective-recompute"): parallel(tensor=2)
    | {"recompute_granularity": "selective", "recompute_modules": ["core_attn", "mlp"]},
    ("llama", "uneven-pipeline"): parallel(pipeline=2, num_layers_in_first_pipeline_stage=1),
    ("llama", "embedding-and-loss-counted"): parallel(
        pipeline=2,
        virtual=3,
        account_for_embedding_in_pipeline_split=True,
        account_for_loss_in_pipeline_split=True,
    ),
    ("llama", "layout"): parallel(pipeline=2, layout="Et*3|t,L"),
    ("gpt2", "layout-with-the-ends-alone"): parallel(pipeline=2, layout="E|t|tt||t|L"),
    ("experts", "layout-of-lists"): parallel(
        pipeline=2,
        layout=[["embedding"], ["decoder"] * 3, ["decoder"], ["loss"]],
    ),
    ("llama", "groups-of-microbatches"): parallel(pipeline=2, virtual=2, group=4),
    ("llama", "overlapped-reduction"): TWO
    | parallel(overlap_grad_reduce=True, overlap_param_gather=True),
    ("experts", "data"): TWO,
    ("experts", "expert"): parallel(expert=2) | TWO,
    ("experts", "expert-allgather"): parallel(expert=2, moe_token_dispatcher_type="allgather")
    | TWO,
    ("experts", "tensor-sequence"): parallel(tensor=2, sequence_parallel=True),
    ("experts", "tensor-of-the-attention-alone"): parallel(
        tensor=2, sequence_parallel=True, expert=2, expert_tensor=1
    ),
    ("experts", "context-expert"): parallel(context=2, expert=2),
    ("experts", "pipeline"): parallel(pipeline=2),
    ("llama", "tensor-sequence-context"): parallel(tensor=2, sequence_parallel=True, context=2),
    ("llama", "pipeline-context"): parallel(pipeline=2, virtual=2, context=2),
    ("llama", "optimizer-instances"): parallel(num_distributed_optimizer_instances=2)
    | {"resources": {"ntasks_per_node": 4}},
    ("experts", "tensor-expert-data"): parallel(tensor=2, sequence_parallel=True, expert=2)
    | {"resources": {"ntasks_per_node": 4}},
}


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> dict[tuple[str, str], Stage]:
    """Every layout's run, by model and name; those of one world size share their processes."""
    root = tmp_path_factory.mktemp("sharing")

    def make(model: str, name: str, settings: dict[str, Any]) -> Stage:
        settings = {"train_iters": ITERATIONS, **settings}
        return make_stage(root / f"{model}-{name}", dataset, MODELS[model], **settings)

    found = {(model, ""): make(model, "alone", {}) for model in MODELS}
    for (model, name), settings in LAYOUTS.items():
        if name != "optimizer-instances" or EINOPS:
            found[model, name] = make(model, name, settings)
    for world_size in (1, 2, 4):
        group = [s for s in found.values() if s.config.world_size() == world_size]
        succeeded(run_stages(group), group[0])
    return found


@pytest.mark.parametrize(("model", "name"), list(LAYOUTS))
def test_the_losses_are_those_of_one_rank(
    stages: dict[tuple[str, str], Stage], model: str, name: str
) -> None:
    if (model, name) not in stages:
        pytest.skip("megatron-core needs einops for it, which is not installed")
    alone, split = stages[model, ""], stages[model, name]
    assert len(alone.rows("loss")) == ITERATIONS
    assert alone.rows("loss")[-1] < alone.rows("loss")[0] - 0.05
    for metric in ("loss", "grad_norm", "validation_loss"):
        assert split.rows(metric) == pytest.approx(alone.rows(metric), abs=TOLERANCE), metric
    assert split.artifact.info["parameters"] == alone.artifact.info["parameters"]


def test_every_expert_is_counted_once(stages: dict[tuple[str, str], Stage]) -> None:
    """Router, 4 experts of three matrices, one shared expert, in 3 of 4 layers."""
    dense = stages["llama", ""].artifact.info["parameters"]
    of_layer = 64 * 4 + 4 * 3 * 64 * 96 + 3 * 64 * 64 - 3 * 64 * 128
    assert stages["experts", ""].artifact.info["parameters"] == dense + 3 * of_layer
