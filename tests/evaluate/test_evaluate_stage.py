"""The stage as a whole: several models, every measure, and what a crash leaves behind."""

import json
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from tiny_models import CONTEXT, make_model, make_tokenizer

from toolkit.errors import ToolkitError
from toolkit.evaluate import stage
from toolkit.evaluate.config import EvaluateConfig
from toolkit.evaluate.scores import read_generations, read_scores

PAIRS = [
    {"prompt": "the fox", "chosen": "jumps over the dog", "rejected": "owners watch 日本"},
    {"prompt": "the dog", "chosen": "quick brown", "rejected": "lazy"},
]
CHAT = [{"instruction": "the fox", "output": "jumps over"}, {"instruction": "a", "output": "dog"}]
TASK = """
task: my_questions
dataset_path: json
dataset_kwargs: {data_files: {test: questions.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_choice: "{{choices}}"
doc_to_target: gold
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
QUESTIONS = [
    {"q": "the", "choices": ["fox", "dog"], "gold": 0},
    {"q": "a", "choices": ["lazy", "quick"], "gold": 1},
    {"q": "an", "choices": ["owner", "café"], "gold": 0},
]


@pytest.fixture
def models(save, model, tokenizer, tmp_path: Path) -> dict[str, Path]:
    """A base, another one, and an adapter on the base."""
    base = save("base", model)
    other = save("other", make_model(len(tokenizer), seed=7))
    tuned = get_peft_model(
        make_model(len(tokenizer)),
        LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    tuned.peft_config["default"].base_model_name_or_path = str(base)
    adapter = tmp_path / "models" / "adapter"
    tuned.save_pretrained(adapter)
    return {"base": base, "other": other, "chat": adapter}


@pytest.fixture
def settings(write_rows, tmp_path: Path) -> dict:
    write_rows("tasks/questions.jsonl", *QUESTIONS)
    (tmp_path / "tasks" / "my_questions.yaml").write_text(TASK)
    texts = write_rows("texts.jsonl", {"text": "the quick brown fox"}, {"text": "over the dog"})
    return {
        "models": ["base", "other", "chat"],
        "untrained_baseline": True,
        "perplexity": {"sources": [str(texts)]},
        "answer_loss": {"data": [str(write_rows("chat.jsonl", *CHAT))]},
        "preferences": {"data": [str(write_rows("pairs.jsonl", *PAIRS))]},
        "lm_eval": {"tasks": ["my_questions"], "include_path": [str(tmp_path / "tasks")]},
        "generations": {"prompts": ["the fox", "a dog"], "max_new_tokens": 4},
    }


def test_models_side_by_side(models, settings, stage_context) -> None:
    context = stage_context("scores", "evaluate", **models)
    artifact = stage.run(EvaluateConfig(**settings), context)
    assert artifact.type == "scores"
    scores = read_scores(artifact.folder)
    names = [m.name for m in scores.models]
    assert names == ["untrained", "base", "other", "chat"]
    assert {m.parameters for m in scores.models} == {scores.models[0].parameters}
    rows = {row.figure: row for row in scores.rows}
    assert [r.measure for r in scores.rows if r.headline] == [
        *("perplexity", "perplexity", "answer_loss", "preferences", "lm_eval")
    ]
    for row in scores.rows:
        assert row.figure == "times_below_untrained" or None not in row.values
    untrained, base = rows["perplexity"].values[:2]
    ratio = rows["times_below_untrained"].values
    assert ratio[0] is None
    assert ratio[1].value == pytest.approx(untrained.value / base.value)
    assert rows["perplexity"].values[3].change.model == "other"
    different = {round(v.value, 6) for v in rows["perplexity"].values}
    assert len(different) == 4, "the adapter must be applied, and each model be its own"
    assert rows["acc"].values[1].n == 3
    assert scores.settings["seq_length"] == CONTEXT
    assert set(scores.notes) >= {"perplexity", "answer_loss", "preferences", "lm_eval"}
    texts = read_generations(artifact.folder)
    assert [(t.prompt, t.model) for t in texts] == [
        (prompt, name) for name in names[1:] for prompt in ("the fox", "a dog")
    ]
    assert all(t.chat for t in texts)
    headline = artifact.info["scores"][f"perplexity/{settings['perplexity']['sources'][0]}"]
    assert headline["base"] == base.value
    progress = json.loads((context.folder / "progress.json").read_text())
    assert progress["done"] == progress["total"] == 4 * 4 + 3


def test_what_was_measured_before_a_crash_is_kept(
    models, settings, stage_context, monkeypatch
) -> None:
    config = EvaluateConfig(**{k: v for k, v in settings.items() if k != "lm_eval"})
    whole = stage.run(config, stage_context("whole", "evaluate", **models))
    loaded: list[str] = []
    real = stage.load_model

    def load(folder: Path, **options):
        loaded.append(folder.name)
        if loaded == ["base", "other"]:
            raise KeyboardInterrupt
        return real(folder, **options)

    monkeypatch.setattr(stage, "load_model", load)
    context = stage_context("scores", "evaluate", **models)
    with pytest.raises(KeyboardInterrupt):
        stage.run(config, context)
    assert not (context.folder / "artifact").exists()
    again = stage.run(config, context)
    assert loaded == ["base", "other", "other", "adapter"]
    assert read_scores(again.folder) == read_scores(whole.folder)
    assert read_generations(again.folder) == read_generations(whole.folder)


def test_other_work_in_the_folder_is_not_taken_over(models, settings, stage_context) -> None:
    config = EvaluateConfig(models=["base"], perplexity=settings["perplexity"])
    context = stage_context("scores", "evaluate", **models)
    first = stage.Evaluation(config, context)
    first.work()
    kept = list(context.work.iterdir())
    context.fingerprint = "another"
    second = stage.Evaluation(config, context)
    second.work()
    assert len(kept) == 1
    assert len(list(context.work.iterdir())) == 2


def test_a_window_that_a_model_cannot_take_is_refused(models, settings, stage_context) -> None:
    config = EvaluateConfig(models=["base"], perplexity=settings["perplexity"], seq_length=64)
    with pytest.raises(ToolkitError, match="seq_length 64 is more than the 32 positions of base"):
        stage.run(config, stage_context("scores", "evaluate", **models))


def test_a_base_without_a_template_is_asked_in_the_chat_models(
    models, settings, stage_context, tokenizer
) -> None:
    make_tokenizer(template=None).save_pretrained(models["base"])
    (models["base"] / "chat_template.jinja").unlink()
    config = EvaluateConfig(
        models=["base", "other"],
        answer_loss=settings["answer_loss"],
        generations=settings["generations"],
    )
    artifact = stage.run(config, stage_context("scores", "evaluate", **models))
    row = read_scores(artifact.folder).rows[0]
    assert row.values[0].n == row.values[1].n
    assert [t.chat for t in read_generations(artifact.folder)] == [False, False, True, True]


def test_an_unknown_task_names_where_it_was_looked_for(
    models, settings, stage_context, monkeypatch
) -> None:
    indexed = stage.harness._indexed
    # lm_eval's own tasks take seconds to index.
    monkeypatch.setattr(
        stage.harness, "_indexed", lambda folders, defaults: indexed(folders, False)
    )
    harness = {**settings["lm_eval"], "tasks": ["my_question"]}
    config = EvaluateConfig(models=["base"], lm_eval=harness)
    with pytest.raises(ToolkitError, match=r"no task 'my_question'; near: my_questions"):
        stage.run(config, stage_context("scores", "evaluate", **models))


def test_a_task_that_does_not_fit_its_data_is_reported(models, settings, stage_context) -> None:
    folder = Path(settings["lm_eval"]["include_path"][0])
    (folder / "my_questions.yaml").write_text(TASK.replace("questions.jsonl", "gone.jsonl"))
    stage.harness._indexed.cache_clear()
    config = EvaluateConfig(models=["base"], lm_eval=settings["lm_eval"])
    with pytest.raises(ToolkitError, match="lm_eval can't run the task my_questions"):
        stage.run(config, stage_context("scores", "evaluate", **models))


def test_columns_have_the_shortest_names_that_differ() -> None:
    names = ["base", "/runs/a/chat/artifact", "/runs/b/chat/artifact", "/models/llama"]
    assert stage.column_names(names) == ["base", "a/chat", "b/chat", "llama"]
