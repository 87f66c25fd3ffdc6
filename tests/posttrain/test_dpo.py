import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_llama import EOS, make_model

from toolkit.context import StageContext
from toolkit.errors import DataError, StageError
from toolkit.hf import base_folder, load_model
from toolkit.posttrain import dpo, sft
from toolkit.posttrain.config import DpoConfig, SftConfig
from toolkit.tracking import read_metrics

Contexts = Callable[..., StageContext]
LORA = {"method": "lora", "r": 4, "lora_alpha": 8}
GOOD, BAD = ["seven eight nine", "eight nine ten"], ["one two three", "four five six"]
"""The untrained model likes the second ones better."""
PAIRS = [
    {"prompt": f"Name a number. {i}", "chosen": GOOD[i % 2], "rejected": BAD[i % 3 % 2]}
    for i in range(48)
]


def write(path: Path, rows: Iterable[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("base"))


@pytest.fixture
def align(tmp_path: Path, base: Path, stage_context: Contexts) -> Callable[..., Any]:
    """``align("name", pairs, **settings)`` runs a stage and returns its artifact."""

    def run(name: str, rows: Iterable[Any] = PAIRS, model: Path = base, **values: Any) -> Any:
        data = write(tmp_path / "pairs.jsonl", rows)
        given = {"kind": "dpo", "model": "base", "data": [data], "learning_rate": 1e-2}
        given |= {"max_steps": 12, "eval_fraction": 0.2, **values}
        config = DpoConfig.model_validate(given)
        return dpo.run(config, stage_context(name, "dpo", base=model))

    return run


@pytest.mark.parametrize("peft", [LORA, None], ids=["lora", "full"])
def test_held_out_preference_rises(
    align: Callable[..., Any], peft: dict[str, Any] | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    artifact = align("better", peft=peft, max_steps=30, learning_rate=1e-2)
    held = artifact.info["held_out"]
    assert held["rows"] == 10
    assert held["before"]["preference_accuracy"] < 0.5
    assert held["after"]["preference_accuracy"] == 1.0
    assert held["after"]["preference_accuracy_per_token"] == 1.0
    assert held["before"]["rewards/accuracies"] == 0.0  # the reference, against itself
    assert held["after"]["rewards/accuracies"] == 1.0
    assert held["after"]["loss"] < held["before"]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert artifact.type == ("adapter" if peft else "model")
    assert f"[[seven eight nine{EOS}]]\n    and, to be avoided:" in caplog.text
    assert f"[[one two three{EOS}]]" in caplog.text
    rows = [row for row in read_metrics(artifact.folder.parent) if "rewards/margins" in row]
    assert rows[-1]["rewards/margins"] > rows[0]["rewards/margins"] == 0


def test_the_accuracy_is_that_of_the_models_own_log_probabilities(
    align: Callable[..., Any], tmp_path: Path, base: Path
) -> None:
    """Against a sum over the logits of each answer alone, unbatched and unpadded."""
    artifact = align(
        "better", PAIRS[:10], held_out=[write(tmp_path / "h.jsonl", PAIRS)], max_steps=1
    )
    from toolkit.data.chat_tokens import ChatTokenizer
    from toolkit.data.conversations import read_preferences
    from toolkit.hf import load_tokenizer

    tokenizer = load_tokenizer(base)
    chat = ChatTokenizer(tokenizer, tokenizer.chat_template)
    model = load_model(base)

    def logp(prompt: list[int], answer: list[int]) -> float:
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        at = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
        return sum(float(logits[i, token]) for i, token in zip(at, answer, strict=True))

    wins = 0
    with torch.no_grad():
        for pair in read_preferences([tmp_path / "h.jsonl"]):
            ids = chat.preference(pair)
            chosen = logp(ids.prompt_ids, ids.chosen_ids)
            wins += chosen > logp(ids.prompt_ids, ids.rejected_ids)
    assert artifact.info["held_out"]["before"]["preference_accuracy"] == wins / len(PAIRS)


def test_it_starts_from_an_adapter_as_if_merged(
    align: Callable[..., Any], tmp_path: Path, base: Path, stage_context: Contexts
) -> None:
    """base -> chat (adapter) -> better (adapter on top of it), found again through the parents."""
    rows = [{"prompt": p["prompt"], "completion": p["chosen"]} for p in PAIRS]
    config = SftConfig.model_validate(
        {"kind": "sft", "model": "base", "data": [write(tmp_path / "sft.jsonl", rows)],
         "learning_rate": 1e-2, "max_steps": 10, "peft": LORA}
    )  # fmt: skip
    chat = sft.run(config, stage_context("chat", "sft", base=base))
    assert chat is not None
    values = {"kind": "dpo", "model": "chat", "data": [write(tmp_path / "p.jsonl", PAIRS)]}
    values |= {"learning_rate": 1e-2, "max_steps": 10, "peft": LORA}
    context = stage_context("better", "dpo", chat=chat.folder)
    better = dpo.run(DpoConfig.model_validate(values), context)
    assert better is not None
    assert better.info["base"] == "chat"
    assert base_folder(better.folder) == chat.folder.resolve()
    assert base_folder(chat.folder) == base
    merged = load_model(chat.folder)
    weight = "model.layers.0.mlp.up_proj.weight"
    adapter = load_file(better.path("adapter_model.safetensors"))
    a, b = (adapter[f"base_model.model.{weight[:-7]}.lora_{x}.weight"] for x in "AB")
    expected = merged.state_dict()[weight] + b @ a * 2  # lora_alpha / r
    torch.testing.assert_close(load_model(better.folder).state_dict()[weight], expected)
    assert not torch.allclose(merged.state_dict()[weight], load_model(base).state_dict()[weight])


def test_losses_are_mixed_by_their_weights(align: Callable[..., Any]) -> None:
    common = {"peft": LORA, "max_steps": 1, "eval_fraction": 0.0, "lr_scheduler_type": "constant"}
    first = {}
    for name, values in {
        "sigmoid": {"loss_type": ["sigmoid"]},
        "sft": {"loss_type": ["sft"]},
        "both": {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
    }.items():
        artifact = align(name, **common, **values)
        first[name] = read_metrics(artifact.folder.parent)[0]["loss"]
    assert first["both"] == pytest.approx(first["sigmoid"] + 0.5 * first["sft"], abs=1e-5)


# An answer that shares all but its end with the other: pushing that one down drags it along.
ALIKE = [
    {"prompt": f"Name a number. {i}", "chosen": "one two three four five six seven",
     "rejected": "one two three four five six seven eight"}
    for i in range(32)
]  # fmt: skip
HARD = {"learning_rate": 3e-2, "beta": 0.01, "max_steps": 40, "lr_scheduler_type": "constant"}


def test_the_alarm_goes_off_in_a_run_that_collapses_and_the_remedy_helps(
    align: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    artifact = align("worse", ALIKE, **HARD)
    found = artifact.info["collapse"]
    assert found["collapsed"]
    assert 5 <= found["at_step"] <= 40
    assert found["largest_fall"] > found["threshold"] == 0.5
    assert "the chosen answers become unlikely: by step" in caplog.text
    better = align("better", ALIKE, **HARD, loss_type=["sigmoid", "sft"])
    assert not better.info["collapse"]["collapsed"]


def test_an_alarm_may_end_the_stage(align: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(StageError, match="become unlikely") as caught:
        align("worse", ALIKE, **HARD, on_collapse="stop")
    assert "loss_type: [sigmoid, sft]" in str(caught.value)
    assert not (tmp_path / "run" / "worse" / "artifact").exists()


def test_pairs_that_teach_nothing_are_dropped_and_named(
    align: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        *PAIRS[:8],
        {"prompt": "x", "chosen": "same", "rejected": "same "},
        {"prompt": "x", "chosen": "", "rejected": "y"},
        {"prompt": "x" * 70, "chosen": "a", "rejected": "b"},
    ]
    artifact = align("better", rows, max_length=60, max_steps=1, peft=LORA)
    assert artifact.info["data"]["rows"] == 8
    assert artifact.info["data"]["dropped"] == {
        "chosen and rejected are the same": 1,
        "an empty answer": 1,
        "the prompt alone fills max_length": 1,
    }
    assert f"the prompt alone fills max_length ({tmp_path / 'pairs.jsonl'}:11)" in caplog.text
    with pytest.raises(DataError, match="no row of the train pairs is left: of 3"):
        align("none", rows[8:], max_length=60)


def test_a_resumed_run_ends_with_the_same_weights(
    align: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    values = {"peft": LORA, "save_steps": 3, "max_steps": 8}
    whole = align("whole", **values)
    from toolkit.posttrain.collapse import CollapseAlarm

    seen: list[int] = []
    look = CollapseAlarm.__call__

    def crash(self: CollapseAlarm, step: int, metrics: Any) -> None:
        seen.append(step)
        look(self, step, metrics)
        if step == 5 and "rewards/chosen" in metrics and seen.count(5) == 1:
            raise RuntimeError("crash")

    monkeypatch.setattr(CollapseAlarm, "__call__", crash)
    with pytest.raises(RuntimeError, match="crash"):
        align("cut", **values)
    del seen[:]
    seen.append(5)
    cut = align("cut", **values)
    assert seen[1:6] == [0, 1, 2, 3, 4]  # what was seen before the crash is seen again
    left, right = (load_file(a.path("adapter_model.safetensors")) for a in (whole, cut))
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert whole.info["held_out"] == cut.info["held_out"]
    assert whole.info["collapse"] == cut.info["collapse"]


def test_anthropic_transcripts_align(align: Callable[..., Any], shared_data: Path) -> None:
    source = shared_data / "hh_harmless_500.jsonl.gz"
    artifact = align("hh", data=[str(source)], max_steps=2, peft=LORA, max_length=256)
    data = artifact.info["data"]
    assert data["formats"] == {"transcripts": 499}
    assert data["read"] == 500
    assert data["rows"] == 500 - sum(data["dropped"].values())
    assert data["dropped"]["an empty answer"] == 1
