"""The plan: layout arithmetic, and layouts that can't work, reported with the other mistakes."""

from importlib import metadata
from pathlib import Path

import pytest

from toolkit.errors import ConfigError
from toolkit.plan.stages import StagePlan, load_checked, plan_stages

TEXT = """\
name: test
stages:
  vocabulary: {kind: train-tokenizer, sources: [sample:python-docs], vocab_size: 1000}
  corpus: {kind: tokenize, sources: [sample:python-docs], tokenizer: vocabulary}
  base:
    kind: pretrain
    data: corpus
    train_iters: 10
    micro_batch_size: 2
    global_batch_size: 16
    model:
      num_layers: 4
      hidden_size: 64
      num_attention_heads: 4
      num_query_groups: 2
      ffn_hidden_size: 192
      max_position_embeddings: 128
"""


def plan(tmp_path: Path, *overrides: str) -> dict[str, StagePlan]:
    file = tmp_path / "p.yaml"
    file.write_text(TEXT)
    return {p.name: p for p in plan_stages(load_checked(file, overrides))}


def mistakes(tmp_path: Path, *overrides: str) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        plan(tmp_path, *overrides)
    found: dict[str, str] = {}
    for problem in caught.value.problems:
        found[problem.key] = found.get(problem.key, "") + problem.message + "\n"
    return found


def test_the_sums_are_right(tmp_path: Path) -> None:
    found = plan(
        tmp_path,
        "stages.base.parallel={tensor_model_parallel_size: 2, pipeline_model_parallel_size: 2}",
        "stages.base.resources={nodes: 2, ntasks_per_node: 4}",
    )["base"]
    assert found.ranks == 8
    assert found.detail["ranks"] == "8 = tensor 2 x pipeline 2 x data 2"
    assert found.detail["batch"].startswith(
        "16 sequences = 2 per micro-batch x 2 data-parallel x 4"
    )
    assert found.detail["step"] == "2,048 tokens = 16 x 128"
    assert found.detail["vocabulary"] == "1,000 tokens, 1,024 rows in the embedding"


def test_sequences_and_experts_are_in_the_sum(tmp_path: Path) -> None:
    found = plan(
        tmp_path,
        "stages.base.model.num_moe_experts=4",
        "stages.base.parallel={context_parallel_size: 2, expert_model_parallel_size: 4}",
        "stages.base.resources.ntasks_per_node=8",
    )["base"]
    assert found.detail["ranks"] == (
        "8 = tensor 1 x pipeline 1 x context 2 x data 4;"
        " of experts: tensor 1 x expert 4 x pipeline 1 x data 2"
    )


def test_the_layers_of_every_rank_are_told(tmp_path: Path) -> None:
    layout = "stages.base.parallel={pipeline_model_parallel_size: 2, pipeline_model_parallel_layout"
    detail = plan(tmp_path, f'{layout}: "E|tt|t|t,L"}}')["base"].detail
    assert detail["layers"] == "rank 0: embedding | 1; rank 1: 2 | 1 + output"
    assert detail["ranks"].endswith("data 1, 2 parts of the pipeline a rank")
    assert "layers" not in plan(tmp_path)["base"].detail


def test_ranks_follow_from_the_layout_where_nothing_is_asked(tmp_path: Path) -> None:
    assert plan(tmp_path)["base"].ranks == 1
    assert plan(tmp_path, "stages.base.parallel={tensor_model_parallel_size: 2}")["base"].ranks == 2


@pytest.mark.parametrize(
    ("overrides", "key", "words"),
    [
        (
            ["parallel={tensor_model_parallel_size: 3}"],
            "parallel.tensor_model_parallel_size",
            "the nearest are 2 or 4",
        ),
        (
            ["parallel={pipeline_model_parallel_size: 3}"],
            "parallel.pipeline_model_parallel_size",
            "num_layers 4",
        ),
        (["resources.ntasks_per_node=3"], "global_batch_size", "6"),
        (
            ["parallel={tensor_model_parallel_size: 2}", "resources.ntasks_per_node=3"],
            "parallel",
            "not a multiple",
        ),
        (["micro_batch_size=3"], "global_batch_size", "micro_batch_size 3"),
        (["model.num_query_groups=3"], "model.num_query_groups", "the nearest are 2 or 4"),
        (["seq_length=256"], "seq_length", "max_position_embeddings"),
    ],
)
def test_what_does_not_divide_is_named(
    tmp_path: Path, overrides: list[str], key: str, words: str
) -> None:
    found = mistakes(tmp_path, *[f"stages.base.{o}" for o in overrides])
    assert words in found[f"stages.base.{key}".rstrip(".")]


def test_layouts_and_other_mistakes_come_together(tmp_path: Path) -> None:
    found = mistakes(
        tmp_path, "stages.base.parallel.tensor_model_parallel_size=3", "stages.corpus.tokenizer=no"
    )
    assert {"stages.base.parallel.tensor_model_parallel_size", "stages.corpus.tokenizer"} <= set(
        found
    )


def test_the_phases_of_a_stage_that_spreads_over_ranks(tmp_path: Path) -> None:
    found = plan(tmp_path, "stages.corpus.resources.ntasks_per_node=3")["corpus"]
    assert found.detail == {"phases": "shards -> finish (3 ranks in each, one in finish)"}


def test_a_single_process_stage_refuses_ranks(tmp_path: Path) -> None:
    found = mistakes(tmp_path, "stages.vocabulary.resources.ntasks_per_node=2")
    assert "runs as one process" in found["stages.vocabulary.resources"]


@pytest.mark.parametrize(("version", "refused"), [("0.16.1", True), ("0.19.2", False)])
def test_a_run_here_is_held_to_the_megatron_that_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, refused: bool
) -> None:
    """4 layers in chunks of 3: from 0.19 on the last chunk may be a smaller one."""
    monkeypatch.setattr(metadata, "version", lambda name: {"megatron-core": version}[name])
    full = {"granularity": "full", "method": "uniform", "num_layers": "3"}
    asked = [f"stages.base.recompute_{name}={value}" for name, value in full.items()]
    if refused:
        assert "stages.base.recompute_num_layers" in mistakes(tmp_path, *asked)
    else:
        assert plan(tmp_path, *asked)["base"].ranks == 1
