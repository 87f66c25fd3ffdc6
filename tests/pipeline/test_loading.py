"""Pipeline files: every mistake at once, each with file, line, key, and what would be right."""

from pathlib import Path

import pytest

from toolkit.errors import ConfigError, Problem
from toolkit.pipeline.loading import Loaded, load_pipeline

GOOD = """\
name: test
stages:
  vocabulary: {kind: train-tokenizer, sources: [sample:python-docs], vocab_size: 512}
  corpus:
    kind: tokenize
    sources: [sample:python-docs]
    tokenizer: vocabulary
  base:
    kind: pretrain
    data: corpus
    model: {preset: llama-mini}
    train_iters: 20
  base-hf: {kind: export, checkpoint: base}
  chat:
    kind: sft
    model: base-hf
    data: [sample:python-questions]
"""


def load(tmp_path: Path, text: str, *overrides: str) -> Loaded:
    file = tmp_path / "p.yaml"
    file.write_text(text)
    return load_pipeline(file, overrides)


def mistakes(tmp_path: Path, text: str, *overrides: str) -> dict[str, Problem]:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, *overrides)
    return {p.key: p for p in caught.value.problems}


def test_a_good_file_loads_in_order_of_need(tmp_path: Path) -> None:
    reversed_stages = "name: t\nstages:\n" + "\n".join(
        [
            "  chat: {kind: sft, model: base-hf, data: [sample:python-questions]}",
            "  base-hf: {kind: export, checkpoint: base}",
            "  base: {kind: pretrain, data: corpus, model: {preset: llama-mini}, train_iters: 2}",
            "  corpus: {kind: tokenize, sources: [sample:python-docs], tokenizer: vocabulary}",
            "  vocabulary: {kind: train-tokenizer, sources: [sample:python-docs], vocab_size: 300}",
        ]
    )
    loaded = load(tmp_path, reversed_stages)
    assert loaded.graph.order == ["vocabulary", "corpus", "base", "base-hf", "chat"]
    assert loaded.graph.needs["chat"] == ["base-hf"]


def test_presets_are_filled_in_and_overridden(tmp_path: Path) -> None:
    text = GOOD.replace("{preset: llama-mini}", "{preset: llama-mini, num_layers: 3}")
    loaded = load(tmp_path, text)
    model = loaded.pipeline.stages["base"].model  # type: ignore[attr-defined]
    assert model.num_layers == 3
    assert model.hidden_size > 0


def test_a_preset_may_be_a_file_beside_the_pipeline(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("num_layers: 2\nhidden_size: 64\nnum_attention_heads: 4\n")
    loaded = load(tmp_path, GOOD.replace("llama-mini", "m.yaml"))
    assert loaded.pipeline.stages["base"].model.hidden_size == 64  # type: ignore[attr-defined]


def test_overrides_are_typed_by_the_schema(tmp_path: Path) -> None:
    loaded = load(tmp_path, GOOD, "stages.base.train_iters=50", "stages.base.lr=1e-5", "seed=7")
    base = loaded.pipeline.stages["base"]
    assert (base.train_iters, base.lr) == (50, 1e-5)  # type: ignore[attr-defined]
    assert loaded.pipeline.seed == 7
    found = mistakes(tmp_path, GOOD, "stages.base.train_iters=many")
    problem = found["stages.base.train_iters"]
    assert "command line" in str(problem.file)
    assert "'many'" in problem.message


def test_all_mistakes_are_reported_at_once_with_their_lines(tmp_path: Path) -> None:
    text = (
        GOOD.replace("vocab_size: 512", "vocab_size: big")
        .replace("train_iters: 20", "train_iters: -1\n    train_itres: 5")
        .replace("tokenizer: vocabulary", "tokenizer: vocabluary")
        .replace("kind: sft", "kind: stf")
    )
    found = mistakes(tmp_path, text)
    assert found["stages.vocabulary.vocab_size"].line == 3
    assert "integer" in found["stages.vocabulary.vocab_size"].message
    assert found["stages.corpus.tokenizer"].line == 7
    assert "did you mean 'vocabulary'" in found["stages.corpus.tokenizer"].message
    assert found["stages.base.train_itres"].line == 13
    assert "did you mean 'train_iters'" in found["stages.base.train_itres"].message
    assert found["stages.base.train_iters"].line == 12
    assert "greater than or equal to 1; got -1" in found["stages.base.train_iters"].message
    assert "did you mean 'sft'" in found["stages.chat.kind"].message


@pytest.mark.parametrize(
    ("short", "whole"),
    [
        ("tp", "tensor_model_parallel_size"),
        ("vpp", "virtual_pipeline_model_parallel_size"),
        ("etp", "expert_tensor_parallel_size"),
        ("sp", "sequence_parallel"),
    ],
)
def test_what_people_call_a_degree_is_spelt_out(tmp_path: Path, short: str, whole: str) -> None:
    text = GOOD.replace("train_iters: 20", f"train_iters: 20\n    parallel: {{{short}: 2}}")
    message = mistakes(tmp_path, text)[f"stages.base.parallel.{short}"].message
    assert f"unknown key {short!r}; did you mean {whole!r}? (valid: " in message
    assert len(message) < 150  # and not all of them


def test_an_override_of_a_stage_that_is_none_is_no_new_stage(tmp_path: Path) -> None:
    message = mistakes(tmp_path, GOOD, "stages.bsae.train_iters=3")["stages.bsae"].message
    assert message.startswith("has no kind; did you mean 'base'? (valid: ")


def test_no_setting_is_made_of_what_is_derived(tmp_path: Path) -> None:
    text = GOOD.replace("train_iters: 20", "train_iters: 20\n    parallel: {dp: 2}")
    assert "did you mean" not in mistakes(tmp_path, text)["stages.base.parallel.dp"].message


def test_a_number_in_quotes_is_not_a_number(tmp_path: Path) -> None:
    found = mistakes(tmp_path, GOOD.replace("train_iters: 20", "train_iters: '20'"))
    assert "got '20' (a string)" in found["stages.base.train_iters"].message


def test_a_typo_inside_a_nested_mapping(tmp_path: Path) -> None:
    text = GOOD.replace("{preset: llama-mini}", "{preset: llama-mini, num_layer: 3}")
    assert (
        "did you mean 'num_layers'"
        in mistakes(tmp_path, text)["stages.base.model.num_layer"].message
    )


def test_references_are_typed_with_both_names(tmp_path: Path) -> None:
    problem = mistakes(tmp_path, GOOD.replace("model: base-hf", "model: corpus"))[
        "stages.chat.model"
    ]
    assert "'chat'" in problem.message
    assert "'corpus'" in problem.message
    assert "a model or an adapter" in problem.message
    assert "makes a dataset" in problem.message
    assert problem.line == 16


def test_cycles_are_named(tmp_path: Path) -> None:
    text = (
        "name: t\nstages:\n"
        "  a: {kind: sft, model: b, data: [sample:python-questions]}\n"
        "  b: {kind: sft, model: a, data: [sample:python-questions]}\n"
    )
    assert "a -> b -> a" in mistakes(tmp_path, text)["stages.a"].message


def test_missing_keys_and_missing_stages(tmp_path: Path) -> None:
    found = mistakes(tmp_path, GOOD.replace("    data: corpus\n", ""))
    assert "is missing" in found["stages.base.data"].message
    assert "is missing" in mistakes(tmp_path, "name: x\n")["stages"].message
    assert (
        "has no kind" in mistakes(tmp_path, "name: x\nstages: {a: {lr: 1}}\n")["stages.a"].message
    )


@pytest.mark.parametrize(
    "text", ["", "[]", "just text", "name: x\nstages: []\n", "name: x\nstages: {a: 3}"]
)
def test_files_of_another_shape(tmp_path: Path, text: str) -> None:
    assert mistakes(tmp_path, text)


def test_missing_data_files_are_found_before_anything_runs(tmp_path: Path) -> None:
    found = mistakes(
        tmp_path, GOOD.replace("sources: [sample:python-docs]\n", "sources: [no.txt]\n")
    )
    problem = found["stages.corpus.sources.0"]
    assert "no.txt" in problem.message
    assert problem.line == 6
    found = mistakes(tmp_path, GOOD.replace("sample:python-questions", "sample:python-question"))
    assert "did you mean 'python-questions'" in found["stages.chat.data.0"].message


def test_paths_are_looked_up_beside_the_file_that_names_them(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a b.txt").write_text("hello\n")
    (tmp_path / "inner" / "base.yaml").write_text(
        GOOD.replace("sources: [sample:python-docs]\n", "sources: ['a b.txt']\n")
    )
    file = tmp_path / "p.yaml"
    file.write_text("extends: inner/base.yaml\nseed: 3\n")
    loaded = load_pipeline(file)
    assert loaded.graph.outside["corpus"]["a b.txt"] == tmp_path / "inner" / "a b.txt"
    assert loaded.pipeline.seed == 3


def test_extends_merges_and_a_circle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b.yaml\nname: a\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\nname: b\n")
    with pytest.raises(ConfigError, match="extends this file in turn"):
        load_pipeline(tmp_path / "a.yaml")
    (tmp_path / "c.yaml").write_text("extends: none.yaml\n")
    with pytest.raises(ConfigError, match="no such file"):
        load_pipeline(tmp_path / "c.yaml")


def test_stage_names_are_folder_names(tmp_path: Path) -> None:
    text = "name: t\nstages: {'a/b': {kind: train-tokenizer, sources: [sample:python-docs]}}\n"
    assert "lower-case letters" in mistakes(tmp_path, text)["stages.a/b"].message
    found = mistakes(
        tmp_path,
        "name: ../x\nstages: {a: {kind: train-tokenizer, sources: [sample:python-docs]}}\n",
    )
    assert "name" in found


def test_an_artifact_from_outside_must_be_of_the_right_type(tmp_path: Path) -> None:
    (tmp_path / "tok").mkdir()
    (tmp_path / "tok" / "tokenizer.json").write_text("{}")
    text = GOOD.replace("model: base-hf", "model: tok")
    assert "holds a tokenizer" in mistakes(tmp_path, text)["stages.chat.model"].message
    (tmp_path / "empty").mkdir()
    text = GOOD.replace("model: base-hf", "model: empty")
    assert "not an artifact" in mistakes(tmp_path, text)["stages.chat.model"].message


def test_an_unknown_preset_is_one_mistake(tmp_path: Path) -> None:
    found = mistakes(tmp_path, GOOD.replace("llama-mini", "lama-mini"))
    assert list(found) == ["stages.base.model.preset"]
    assert "did you mean 'llama-mini'" in found["stages.base.model.preset"].message


def test_references_of_a_stage_with_other_mistakes_are_checked_too(tmp_path: Path) -> None:
    text = GOOD.replace("tokenizer: vocabulary", "tokenizer: base\n    apend_eod: true")
    found = mistakes(tmp_path, text)
    assert set(found) == {"stages.corpus.tokenizer", "stages.corpus.apend_eod"}
    assert "makes a checkpoint" in found["stages.corpus.tokenizer"].message


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (GOOD.replace("kind: sft", "kind: [sft]"), "stages.chat.kind"),
        (GOOD.replace("kind: tokenize", "<<: foo\n    kind: tokenize"), "stages.corpus.<<"),
        (GOOD.replace("[sample:python-docs]\n", "['**a/x']\n"), "stages.corpus.sources.0"),
    ],
)
def test_odd_values_are_mistakes_and_no_crashes(tmp_path: Path, text: str, key: str) -> None:
    assert key in mistakes(tmp_path, text)


FILTERS = """\
name: test
stages:
  cleaned:
    kind: clean
    sources: [sample:python-docs]
    filters:
      - {filter: gopher-qualty}
      - {min_words: 3}
      - {filter: length, min_word: 3}
"""


def test_a_filter_that_is_none_is_named_with_the_valid_ones(tmp_path: Path) -> None:
    found = mistakes(tmp_path, FILTERS)
    wrong = found["stages.cleaned.filters.0.filter"]
    assert wrong.message.startswith("unknown filter 'gopher-qualty'; did you mean 'gopher-quality'")
    assert wrong.message.endswith("function)")  # the value is not told twice
    assert wrong.line == 7
    missing = found["stages.cleaned.filters.1"]
    assert missing.message.startswith("has no key 'filter'")
    assert "length" in missing.message


def test_an_unknown_key_of_a_filter_gets_that_filters_keys_alone(tmp_path: Path) -> None:
    message = mistakes(tmp_path, FILTERS)["stages.cleaned.filters.2.min_word"].message
    assert "(valid: filter, name, min_characters, max_characters, min_words, max_words)" in message


def test_a_weighted_source_is_not_asked_to_be_a_string(tmp_path: Path) -> None:
    text = GOOD.replace(
        "sources: [sample:python-docs]\n    tokenizer",
        "sources: [{source: sample:python-docs, wieght: 1}]\n    tokenizer",
    )
    found = mistakes(tmp_path, text)
    assert "did you mean 'weight'" in found["stages.corpus.sources.0.wieght"].message
    assert "stages.corpus.sources.0" not in found


def test_an_empty_list_says_how_many_there_must_be(tmp_path: Path) -> None:
    text = FILTERS.replace("[sample:python-docs]", "[]")
    found = mistakes(tmp_path, text)
    assert found["stages.cleaned.sources"].message == "must have at least 1, but has 0"
