"""The command line as a user meets it: messages, exit codes, and what is loaded for it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from toolkit.cli import app
from toolkit.pipeline.source import read_yaml
from toolkit.pipeline.state import locked

TOOLKIT = (sys.executable, "-c", "from toolkit.cli import main; main()")
ROOT = Path(__file__).resolve().parents[2]

TEXT = """\
name: test
stages:
  vocabulary: {kind: train-tokenizer, sources: [a.txt], vocab_size: 300}
  corpus: {kind: tokenize, sources: [a.txt], tokenizer: vocabulary}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text("many words, and then many more words\n" * 40)
    path = tmp_path / "p.yaml"
    path.write_text(TEXT)
    return path


def invoke(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return result.exit_code, result.output


def toolkit(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TOOLKIT, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_check_prints_the_plan(file: Path) -> None:
    code, output = invoke("check", file)
    assert code == 0
    assert "train-tokenizer" in output
    assert "dataset" in output


def test_check_reports_every_mistake_with_its_place_and_exits_2(file: Path) -> None:
    code, output = invoke(
        "check", file, "stages.corpus.tokeniser=x", "stages.vocabulary.vocab_size=a"
    )
    assert code == 2
    assert "did you mean 'tokenizer'" in output
    assert "stages.vocabulary.vocab_size" in output
    assert "Traceback" not in output


def test_a_missing_file_exits_2(tmp_path: Path) -> None:
    code, output = invoke("check", tmp_path / "none.yaml")
    assert code == 2
    assert "No such file" in output


def test_every_shipped_pipeline_is_valid() -> None:
    files = sorted((ROOT / "configs").glob("*.yaml"))
    assert files
    for path in files:
        code, output = invoke("check", path)
        assert code == 0, output


def test_every_shipped_config_names_its_schema_for_editors() -> None:
    for path in (ROOT / "configs").glob("*.yaml"):
        first = path.read_text().splitlines()[0]
        assert first == "# yaml-language-server: $schema=../toolkit.schema.json"


def test_check_loads_no_heavy_library(file: Path) -> None:
    program = (
        "import sys; from toolkit.cli import app\n"
        "app(['check', sys.argv[1]], standalone_mode=False)\n"
        "heavy = {'torch', 'numpy', 'megatron', 'transformers', 'trl', 'pyarrow', 'tokenizers'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(file)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_schema_accepts_what_is_shipped_and_refuses_a_typo() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    code, output = invoke("schema")
    assert code == 0
    schema = json.loads(output)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    pipeline = read_yaml(ROOT / "configs" / "mini.yaml").data
    assert list(validator.iter_errors(pipeline)) == []
    pipeline["stages"]["base"]["train_itres"] = 5
    (error,) = validator.iter_errors(pipeline)
    assert "train_itres" in error.message
    pipeline["stages"]["base"] = {"kind": "no-such-kind"}
    assert any("no-such-kind" in e.message for e in validator.iter_errors(pipeline))


def test_the_profiles_schema_accepts_what_is_shipped_and_refuses_a_typo() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    code, output = invoke("schema", "cluster")
    assert code == 0
    schema = json.loads(output)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for file in (ROOT / "configs" / "clusters").glob("*.yaml"):
        first = file.read_text().partition("\n")[0]
        assert first == "# yaml-language-server: $schema=../../cluster.schema.json"
        assert list(validator.iter_errors(read_yaml(file).data)) == []
    profile = read_yaml(ROOT / "configs" / "clusters" / "lab.yaml").data
    profile |= {"partitoin": "x", "resources": {"tokenise": {}}}
    messages = " ".join(e.message for e in validator.iter_errors(profile))
    assert "partitoin" in messages and "tokenise" in messages


def test_run_then_run_again_skips_and_a_change_is_refused(file: Path) -> None:
    first = toolkit("run", file, cwd=file.parent)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "runs/test/report.html" in first.stdout
    assert (file.parent / "runs/test/corpus/artifact/text_document.idx").exists()
    again = toolkit("run", file, cwd=file.parent)
    assert again.returncode == 0
    assert again.stdout.count("complete already") == 2
    changed = toolkit("run", file, "stages.corpus.append_eod=false", cwd=file.parent)
    assert changed.returncode == 2
    assert "append_eod: True -> False" in changed.stderr
    fresh = toolkit("run", file, "--fresh", "stages.corpus.append_eod=false", cwd=file.parent)
    assert fresh.returncode == 0
    assert fresh.stdout.count("complete already") == 1
    state = toolkit("status", "runs/test", cwd=file.parent)
    assert state.returncode == 0
    assert state.stdout.count("complete") == 2


def test_a_failed_stage_exits_1_with_its_reason_and_its_log(file: Path) -> None:
    data = file.parent / "b.jsonl"
    data.write_text('{"text": "fine"}\n{"text": broken}\n')
    done = toolkit("run", file, "stages.corpus.sources=[b.jsonl]", cwd=file.parent)
    assert done.returncode == 1
    assert "b.jsonl:2" in done.stdout
    assert "corpus/logs/rank-0.log" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert "failed" in toolkit("status", "runs/test", cwd=file.parent).stdout


def test_a_second_run_at_the_same_time_is_refused(file: Path) -> None:
    folder = file.parent / "runs" / "test"
    folder.mkdir(parents=True)
    with locked(folder, "run"):
        done = toolkit("run", file, cwd=file.parent)
    assert done.returncode == 2
    assert "in use by another process" in done.stderr


def test_a_run_folder_that_cannot_be_made(file: Path) -> None:
    (file.parent / "taken").write_text("a file")
    done = toolkit("run", file, "--run-dir", "taken/run", cwd=file.parent)
    assert done.returncode == 2
    assert "can't make the run's folder" in done.stderr


def test_other_verbs_say_what_they_need(tmp_path: Path) -> None:
    assert invoke("status", tmp_path)[0] == 2
    assert invoke("report", tmp_path)[0] == 2
    code, output = invoke("generate", tmp_path / "none", "--prompt", "x")
    assert code == 2
    assert "no such folder" in output


@pytest.mark.parametrize(
    "verb",
    [
        *("check", "run", "status", "report", "generate", "schema", "doctor"),
        *("render", "submit", "resubmit", "logs", "cancel"),
    ],
)
def test_every_verb_has_a_help_text_with_an_example(verb: str) -> None:
    code, output = invoke(verb, "--help")
    assert code == 0
    assert f"toolkit {verb}" in output
