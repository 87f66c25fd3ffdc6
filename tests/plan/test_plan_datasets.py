"""What contradicts the stages that make the data is found before anything is started."""

from pathlib import Path

import pytest

from toolkit.errors import ConfigError
from toolkit.plan.datasets import makers
from toolkit.plan.stages import load_checked

TEXT = """\
name: test
stages:
  vocabulary: {kind: train-tokenizer, sources: [sample:python-docs], vocab_size: 1000}
  corpus: {kind: tokenize, sources: [sample:python-docs], tokenizer: vocabulary}
  parts: {kind: split, data: corpus}
  rows: {kind: pack, dataset: parts, seq_length: 128}
  chats: {kind: pack, data: [sample:python-questions], tokenizer: vocabulary, seq_length: 128}
  mix: {kind: blend, data: [chats, rows]}
  base:
    kind: pretrain
    data: rows
    train_iters: 10
    model: {num_layers: 2, hidden_size: 64, num_attention_heads: 4, max_position_embeddings: 256}
    seq_length: 128
"""


def problems(tmp_path: Path, *overrides: str) -> list[tuple[str, str, int | None]]:
    file = tmp_path / "pipeline.yaml"
    file.write_text(TEXT)
    try:
        load_checked(file, overrides)
    except ConfigError as error:
        return [(p.key, p.message, p.line) for p in error.problems]
    return []


@pytest.mark.parametrize("data", ["rows", "mix", "corpus", "parts"])
def test_what_fits(tmp_path: Path, data: str) -> None:
    assert problems(tmp_path, f"stages.base.data={data}") == []


@pytest.mark.parametrize("data", ["rows", "mix"])
def test_rows_of_another_length(tmp_path: Path, data: str) -> None:
    changed = ["stages.base.seq_length=64", f"stages.base.data={data}"]
    found = problems(tmp_path, *changed)
    assert {key for key, _, _ in found} == {"stages.base.seq_length"}
    assert "(pack) makes have 128 tokens, and seq_length is 64 here" in found[0][1]
    assert len(found) == (2 if data == "mix" else 1)


def test_data_that_is_split_already(tmp_path: Path) -> None:
    found = problems(tmp_path, "stages.base.split='9,1'")
    assert [key for key, _, _ in found] == ["stages.base.split"]
    assert "split already, by 'parts'" in found[0][1]
    assert problems(tmp_path, "stages.base.split='9,1'", "stages.base.data=corpus") == []


@pytest.mark.parametrize(("data", "refused"), [("rows", True), ("mix", True), ("corpus", False)])
def test_rows_that_context_parallelism_would_cut(tmp_path: Path, data: str, refused: bool) -> None:
    cut = "stages.base.parallel={context_parallel_size: 2}"
    found = problems(tmp_path, cut, f"stages.base.data={data}")
    keys = {key for key, _, _ in found}
    assert keys == ({"stages.base.parallel.context_parallel_size"} if refused else set())
    assert all("hold several examples" in message for _, message, _ in found)


def test_a_cycle_and_nonsense_end(tmp_path: Path) -> None:
    stages = {
        "a": {"kind": "blend", "data": ["b", 3, ["c"]]},
        "b": {"kind": "split", "data": "a"},
        "c": "nonsense",
    }
    assert [name for name, _ in makers(stages, "a")] == ["a", "b"]
    assert problems(tmp_path, "stages.parts.data=rows")


@pytest.mark.parametrize("experts", [None, 4])
def test_a_model_that_can_not_be_exported(tmp_path: Path, experts: int | None) -> None:
    overrides = ["stages.model={kind: export, checkpoint: base}", "stages.base.data=corpus"]
    if experts:
        overrides.append(f"stages.base.model.num_moe_experts={experts}")
    found = problems(tmp_path, *overrides)
    assert [key for key, _, _ in found] == (["stages.model.checkpoint"] if experts else [])
    assert all("no architecture with experts" in message for _, message, _ in found)
