import subprocess
import sys

import pytest
from pydantic import ValidationError

from toolkit.evaluate.config import STAGES, EvaluateConfig
from toolkit.stage import references

TEXTS = {"sources": ["sample:python-docs/held-out"]}


def test_something_must_be_measured() -> None:
    with pytest.raises(ValidationError, match="set at least one of perplexity, answer_loss"):
        EvaluateConfig(models=["base"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"models": ["base", "base"]}, "models lists base more than once"),
        ({"models": ["untrained"], "untrained_baseline": True}, "no model may be called untrained"),
        ({"models": ["base"], "seq_length": 8, "stride": 9}, "stride 9 leaves tokens out"),
        ({"models": []}, "at least 1 item"),
        ({"models": ["base"], "generations": {"prompts": []}}, "at least 1 item"),
        ({"models": ["base"], "perplexities": TEXTS}, "Extra inputs are not permitted"),
    ],
)
def test_mistakes_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EvaluateConfig(**{"perplexity": TEXTS, **settings})


def test_models_and_data_are_references() -> None:
    config = EvaluateConfig(
        models=["base", "chat"],
        perplexity=TEXTS,
        preferences={"data": ["pairs.jsonl"]},
        lm_eval={"tasks": ["mine"], "include_path": ["tasks"]},
    )
    found = {value: (mark.types, mark.files) for _, value, mark in references(config)}
    assert found["base"] == (("model", "adapter"), False)
    assert found["sample:python-docs/held-out"] == ((), True)
    assert found["tasks"] == ((), True)
    assert "mine" not in found
    assert config.artifact_type() == "scores"
    assert STAGES[0].config is EvaluateConfig


def test_the_settings_and_the_table_need_no_torch() -> None:
    code = (
        "import sys, toolkit.evaluate.config, toolkit.evaluate.table, toolkit.report.build\n"
        "sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
