import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from toolkit.posttrain.config import STAGES, DpoConfig, MergeConfig, SftConfig
from toolkit.stage import StageConfig, references

LORA = {"method": "lora", "r": 8}


def sft(**values: Any) -> SftConfig:
    return SftConfig.model_validate({"kind": "sft", "model": "base", "data": ["a.jsonl"], **values})


def dpo(**values: Any) -> DpoConfig:
    return DpoConfig.model_validate({"kind": "dpo", "model": "base", "data": ["a.jsonl"], **values})


def test_the_learning_rate_goes_with_what_is_trained() -> None:
    assert sft().learning_rate == 2e-5
    assert sft(peft=LORA).learning_rate == 2e-4
    assert sft(peft=LORA, learning_rate=1e-3).learning_rate == 1e-3
    assert dpo().learning_rate == 1e-6
    assert dpo(peft=LORA).learning_rate == 1e-5


def test_resolved_settings_read_back_the_same() -> None:
    config = sft(peft=LORA, columns={"prompt": "question", "completion": "answer"})
    assert SftConfig.model_validate(config.model_dump()) == config


def test_artifact_types() -> None:
    assert sft().artifact_type() == "model"
    assert sft(peft=LORA).artifact_type() == "adapter"
    assert MergeConfig(adapter="chat").artifact_type() == "model"


def test_references_are_found() -> None:
    config = sft(held_out=["sample:python-questions/held-out"], chat_template_path="t.jinja")
    found = {value: mark for _, value, mark in references(config)}
    assert set(found) == {"base", "a.jsonl", "sample:python-questions/held-out", "t.jinja"}
    assert found["base"].types == ("model", "adapter")
    assert found["a.jsonl"].samples


@pytest.mark.parametrize(
    ("make", "values", "message"),
    [
        (sft, {"columns": {"question": "q"}}, "unknown field question"),
        (dpo, {"columns": {"completion": "q"}}, "fields are prompt, chosen, rejected"),
        (sft, {"peft": {"method": "lora", "target_modules": ["q_proj", "lm_head"]}}, "lm_head"),
        (sft, {"peft": {"method": "prefix"}}, "lora"),
        (sft, {"format": "chat"}, "alpaca"),
        (sft, {"chat_template": "plain", "chat_template_path": "t.jinja"}, "set one of them"),
        (sft, {"data": []}, "at least 1"),
        (sft, {"learning_rate": 0.0}, "greater than 0"),
        (sft, {"warmup_ratio": 0.1}, "Extra"),
        (dpo, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0]}, "1 values for the 2"),
        (dpo, {"loss_type": ["exo_pair"]}, "label_smoothing"),
        (dpo, {"loss_type": []}, "at least 1"),
        (dpo, {"label_smoothing": 0.5}, "less than 0.5"),
    ],
)
def test_mistakes_are_named(make: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make(**values)


def test_every_setting_has_a_description() -> None:
    for stage in STAGES:
        for name, field in stage.config.model_fields.items():
            if name not in StageConfig.model_fields:
                assert field.description, f"{stage.name}.{name}"
                assert field.description.endswith("."), f"{stage.name}.{name}"


def test_the_settings_load_without_heavy_libraries() -> None:
    code = (
        "import sys, toolkit.posttrain.config;"
        "print([m for m in ('torch', 'numpy', 'transformers', 'orjson') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
