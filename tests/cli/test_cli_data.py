"""``toolkit data`` as a user meets it: what it prints, what it refuses, and its exit codes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from toolkit.cli import app

VERBS = ("inspect", "doctor", "merge", "verify", "sample", "stats")
PIPELINE = """\
name: test
stages:
  vocabulary: {kind: train-tokenizer, sources: [a.jsonl], vocab_size: 400}
  corpus: {kind: tokenize, sources: [a.jsonl], tokenizer: vocabulary}
  other: {kind: tokenize, sources: [b.jsonl], tokenizer: vocabulary}
"""


def invoke(*arguments: object, columns: int = 80) -> tuple[int, str]:
    settings = {"COLUMNS": str(columns), "NO_COLOR": "1"}
    result = CliRunner().invoke(app, ["data", *map(str, arguments)], env=settings)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a tokenizer and two datasets."""
    folder = tmp_path_factory.mktemp("data")
    for name, count in (("a", 40), ("b", 25)):
        texts = [{"text": f"{name}: number {i} of many words\n" * (1 + i)} for i in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(t) + "\n" for t in texts))
    (folder / "p.yaml").write_text(PIPELINE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = CliRunner().invoke(app, ["run", "p.yaml", "--run-dir", "run"])
    assert result.exit_code == 0, result.output
    return folder / "run"


@pytest.fixture
def run_dir(made: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def prefix(folder: Path) -> Path:
    (index,) = (folder / "artifact").glob("*.idx")
    return index.with_suffix("")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_help_text_with_an_example(verb: str) -> None:
    code, output = invoke(verb, "--help")
    assert code == 0
    assert f"toolkit data {verb}" in " ".join(output.split())
    assert "--json" in output


def test_the_verbs_are_listed() -> None:
    code, output = invoke("--help")
    assert code == 0
    assert all(verb in output for verb in VERBS)


def test_help_loads_no_heavy_library() -> None:
    program = (
        "import sys; from toolkit.cli import app\n"
        "app(['data', 'inspect', '--help'], standalone_mode=False)\n"
        "heavy = {'torch', 'numpy', 'tokenizers', 'pyarrow', 'orjson', 'xxhash'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.parametrize("columns", [80, 160])
def test_inspect_shows_counts_lengths_and_documents(made: Path, columns: int) -> None:
    code, output = invoke("inspect", made / "corpus", "--documents", 2, columns=columns)
    assert code == 0
    assert "uint16" in output and "median" in output
    assert "a: number 0 of many words" in output
    assert "<|endoftext|>" in output
    assert "100.0% of the 40 documents looked at end with 0" in " ".join(output.split())
    assert max(map(len, output.splitlines())) <= columns


def test_inspect_takes_every_name_of_a_dataset(made: Path) -> None:
    one = prefix(made / "corpus")
    names = [made / "corpus", made / "corpus" / "artifact", one]
    names += [one.with_name(f"{one.name}.{suffix}") for suffix in ("bin", "idx")]
    found = [json.loads(invoke("inspect", name, "--json")[1]) for name in names]
    assert all(f == found[0] for f in found)
    (part,) = found[0]["parts"]
    assert part["documents"] == 40 and part["dtype"] == "uint16"
    assert found[0]["lengths"]["documents"] == 40
    assert sum(b["documents"] for b in found[0]["lengths"]["bins"]) == 40
    assert sum(b["tokens"] for b in found[0]["lengths"]["bins"]) == part["tokens"]


def test_inspect_without_a_tokenizer_shows_ids_and_says_so(made: Path, tmp_path: Path) -> None:
    one = prefix(made / "corpus")
    for suffix in ("bin", "idx"):
        shutil.copy(one.with_name(f"{one.name}.{suffix}"), tmp_path / f"x.{suffix}")
    code, output = invoke("inspect", tmp_path / "x", "--documents", 1)
    assert code == 0
    assert "--tokenizer FOLDER shows the documents as text" in output
    code, output = invoke("inspect", tmp_path / "x", "--tokenizer", made / "vocabulary")
    assert code == 0
    assert "a: number 0 of many words" in output


def test_what_names_no_dataset(made: Path, tmp_path: Path) -> None:
    one = prefix(made / "corpus")
    for name in ("x", "y"):
        for suffix in ("bin", "idx"):
            shutil.copy(one.with_name(f"{one.name}.{suffix}"), tmp_path / f"{name}.{suffix}")
    cases = {
        tmp_path / "z": ("there is no z.bin and no z.idx", "datasets in this folder: x, y"),
        tmp_path: ("2 datasets, where one was expected", "name one of: x, y"),
        made / "vocabulary": ("a tokenizer artifact, where a dataset was expected",),
        made / "p.yaml": ("there is no p.yaml.bin",),
        made / "pipeline.yaml": ("neither a .bin nor an .idx",),
    }
    for given, said in cases.items():
        for verb in ("inspect", "doctor"):
            code, output = invoke(verb, given)
            assert code == 2, output
            assert all(text in output for text in said), output
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "stage.yaml").touch()
    code, output = invoke("inspect", tmp_path / "empty")
    assert code == 2
    assert "its stage has not finished" in output


def test_doctor_says_where_the_first_bad_byte_is_and_exits_1(run_dir: Path) -> None:
    code, output = invoke("doctor", run_dir / "corpus")
    assert code == 0, output
    assert "fail" not in output
    index = prefix(run_dir / "corpus").with_suffix(".idx")
    content = bytearray(index.read_bytes())
    content[34 + 4 * 7] ^= 2
    index.write_bytes(content)
    code, output = invoke("doctor", run_dir / "corpus")
    assert code == 1
    assert f"first bad: {index.name}, byte {34 + 4 * 7}, document 7: expected" in output
    code, output = invoke("doctor", run_dir / "corpus", "--json")
    assert code == 1
    (bad,) = [f for e in json.loads(output) for f in e["findings"] if f["status"] == "fail"]
    assert bad["place"]["offset"] == 34 + 4 * 7


def test_doctor_knows_the_artifact_that_a_prefix_lies_in(run_dir: Path) -> None:
    one = prefix(run_dir / "corpus")
    code, output = invoke("doctor", one)
    assert code == 0 and "sha256 as recorded" in output
    data = one.with_suffix(".bin")
    content = bytearray(data.read_bytes())
    content[100] ^= 1
    data.write_bytes(content)
    assert invoke("doctor", data)[0] == 1
    for suffix in ("bin", "idx"):
        shutil.copy(one.with_suffix(f".{suffix}"), run_dir / f"alone.{suffix}")
    code, output = invoke("doctor", run_dir / "alone")
    assert code == 0
    assert "no manifest: a token changed to another is not found" in output


def test_doctor_is_brief_about_many(run_dir: Path) -> None:
    one = prefix(run_dir / "corpus")
    names = []
    for number in range(6):
        names.append(run_dir / f"shard-{number}.idx")
        for suffix in ("bin", "idx"):
            shutil.copy(one.with_suffix(f".{suffix}"), run_dir / f"shard-{number}.{suffix}")
    code, output = invoke("doctor", *names)
    assert code == 0
    assert len(output.splitlines()) == 8 and "all 6 are sound" in output
    names[3].write_bytes(names[3].read_bytes()[:-1])
    code, output = invoke("doctor", *names)
    assert code == 1
    assert "1 of 6 damaged: shard-3" in output
    assert "first bad: shard-3.idx, byte" in output


def test_inspect_and_sample_refuse_what_doctor_calls_damaged(run_dir: Path) -> None:
    index = prefix(run_dir / "corpus").with_suffix(".idx")
    content = bytearray(index.read_bytes())
    content[-12] ^= 4
    index.write_bytes(content)
    for verb in ("inspect", "sample"):
        code, output = invoke(verb, run_dir / "corpus")
        assert code == 2
        assert f"{index.name}, byte" in output
        assert "Traceback" not in output


def test_merge_gives_the_documents_of_both(made: Path, tmp_path: Path) -> None:
    code, output = invoke(
        "merge", made / "corpus", made / "other", "--output", tmp_path / "both_document"
    )
    assert code == 0, output
    assert "65 documents" in output
    one, two, both = (
        json.loads(invoke("inspect", p, "--json")[1])
        for p in (made / "corpus", made / "other", tmp_path / "both_document")
    )
    total = one["lengths"]["tokens"] + two["lengths"]["tokens"]
    assert both["lengths"]["tokens"] == total
    assert invoke("doctor", tmp_path / "both_document", "--tokenizer", made / "vocabulary")[0] == 0
    code, output = invoke(
        "merge", made / "corpus", made / "other", "--output", tmp_path / "both_document"
    )
    assert code == 2
    assert "the output is there already" in output


def test_merge_refuses_what_does_not_belong_together(run_dir: Path, tmp_path: Path) -> None:
    manifest = run_dir / "other" / "artifact" / "artifact.json"
    record = json.loads(manifest.read_text())
    record["info"]["tokenizer_sha256"] = "0" * 64
    manifest.write_text(json.dumps(record))
    code, output = invoke(
        "merge", run_dir / "corpus", run_dir / "other", "--output", tmp_path / "x"
    )
    assert code == 2
    said = " ".join(output.split())
    assert str(prefix(run_dir / "corpus")) in said and str(prefix(run_dir / "other")) in said
    assert "have different tokenizers" in said
    twice = (run_dir / "corpus", prefix(run_dir / "corpus"))
    code, output = invoke("merge", *twice, "--output", tmp_path / "x")
    assert code == 2
    assert "named twice" in output
    code, output = invoke("merge", run_dir / "corpus", "--output", tmp_path / "x")
    assert code == 2
    assert "nothing to merge" in output
    assert list(tmp_path.glob("x*")) == []


def test_verify_names_every_file_that_is_wrong(run_dir: Path) -> None:
    code, output = invoke("verify", run_dir / "vocabulary")
    assert code == 0
    assert "files are as they were written" in " ".join(output.split())
    folder = run_dir / "vocabulary" / "artifact"
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").unlink()
    (folder / "notes.txt").write_text("mine")
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("e", "f", 1))
    code, output = invoke("verify", run_dir / "vocabulary", "--json")
    assert code == 1
    problems = {f["path"]: f["problem"] for f in json.loads(output)["files"] if f["problem"]}
    assert problems["tokenizer.json"].startswith("has 2 bytes, ")
    assert problems["tokenizer_config.json"] == "is missing"
    assert problems["notes.txt"] == "is not in the manifest"
    assert problems["chat_template.jinja"].startswith("has another content")
    assert len(problems) == 4
    code, output = invoke("verify", run_dir)
    assert code == 2
    assert "no artifact.json in this folder" in output
    assert "name one of its stages: corpus, other, vocabulary" in output


def test_a_sample_is_drawn_again_by_its_seed(made: Path) -> None:
    for source in (made.parent / "a.jsonl", made / "corpus"):
        one, two, three = (
            invoke("sample", source, "-n", 3, "--seed", seed, "--json")[1].splitlines()[1:]
            for seed in (5, 5, 6)
        )
        assert one == two != three
        assert len(one) == 3
        assert all("words" in json.loads(line)["text"] for line in one)
    code, output = invoke("sample", made.parent / "a.jsonl", "-n", 2)
    assert code == 0
    assert "2 of 40; --seed" in output


def test_what_cannot_be_sampled(made: Path) -> None:
    code, output = invoke("sample", made / "corpus", made.parent / "a.jsonl")
    assert code == 2
    assert "can't be sampled together" in output
    code, output = invoke("sample", made.parent / "a.jsonl", "--sample-by", "word")
    assert code == 2
    assert "document, paragraph or line" in output


def test_stats_shows_what_became_of_the_documents(made: Path) -> None:
    code, output = invoke("stats", made / "corpus")
    assert code == 0
    assert "written" in output and "40" in output
    sections = json.loads(invoke("stats", made / "corpus", "--json")[1])["sections"]
    (documents,) = [s for s in sections if s["title"] == "Documents"]
    counted = {row["label"]: row["values"][0] for row in documents["rows"]}
    assert counted["read"] == 40 == counted["written"]
