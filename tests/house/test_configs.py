"""The data pipeline of configs/ runs."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from toolkit.artifacts import read_artifact
from toolkit.cli import app

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.mark.slow
def test_from_raw_text_to_what_training_reads(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ["run", str(CONFIGS / "corpus.yaml"), "--run-dir", str(run)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    cleaned = read_artifact(run / "cleaned" / "artifact").info
    counts = cleaned["counts"]
    assert counts["read"] == counts["written"] + counts["removed"]
    assert counts["removed"] == sum(cleaned["drops"].values())
    assert {"near_duplicate", "contaminated", "length/too_few_words"} <= cleaned["drops"].keys()
    tokens = read_artifact(run / "tokens" / "artifact").info
    assert tokens["counts"]["read"] == counts["written"]
    for stage in ("tokens", "parts", "chats"):
        checked = CliRunner().invoke(app, ["data", "doctor", str(run / stage)])
        assert checked.exit_code == 0, checked.output
    assert CliRunner().invoke(app, command).output.count("complete already") == 5
