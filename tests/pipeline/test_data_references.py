"""Sources that a pipeline file may name: hf: names, URLs, documents; what is refused at check."""

import json
from pathlib import Path

import pytest

from toolkit.artifacts import publish
from toolkit.context import Input, StageContext
from toolkit.data.inputs import expand_inputs
from toolkit.errors import ConfigError, DataError
from toolkit.pipeline.loading import Loaded, load_pipeline
from toolkit.pipeline.run import Run, plan_run, write_run
from toolkit.pipeline.state import read_stage_file
from toolkit.stage import StageConfig
from toolkit.worker import make_context


def load(folder: Path, *sources: str, tokenizer: str = "vocabulary") -> Loaded:
    file = folder / "p.yaml"
    file.write_text(
        "name: test\nstages:\n"
        "  vocabulary: {kind: train-tokenizer, sources: [sample:python-docs], vocab_size: 512}\n"
        f"  corpus: {{kind: tokenize, sources: {json.dumps(sources)}, tokenizer: '{tokenizer}'}}\n"
    )
    return load_pipeline(file, ())


def plan(folder: Path, *sources: str) -> Run:
    return plan_run(load(folder, *sources), folder / "run")


def sources_of(config: StageConfig) -> list[str]:
    return list(config.model_dump()["sources"])


def mistake(folder: Path, *sources: str, **options: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, *sources, **options)
    [problem] = caught.value.problems
    assert problem.key.startswith("stages.corpus.")
    assert problem.line == 4
    return problem.message


NAMES = ["hf:owner/name#train", "hf:owner/name:en#train", "s3://bucket/corpus", "https://h/a.jsonl"]


def test_names_of_remote_data_are_kept_as_they_are(tmp_path: Path) -> None:
    task = plan(tmp_path, *NAMES).tasks[1]
    assert sources_of(task.config) == NAMES
    assert {n: task.file.inputs[n]["type"] for n in NAMES} == dict.fromkeys(NAMES, "remote")
    again = plan(tmp_path, *NAMES).tasks[1]
    assert again.file.fingerprint == task.file.fingerprint
    other = plan(tmp_path, *NAMES[:-1], "https://h/b.jsonl").tasks[1]
    assert other.file.fingerprint != task.file.fingerprint


def test_a_worker_gets_names_and_not_folders(tmp_path: Path) -> None:
    loaded = load(tmp_path, *NAMES)
    run = plan_run(loaded, tmp_path / "run")
    folder = tmp_path / "run" / "corpus"
    folder.mkdir(parents=True)
    write_run(loaded, run)
    run.tasks[1].file.write(folder)
    file = read_stage_file(folder)
    assert file is not None
    assert list(make_context(folder, file, StageContext("", "", folder, "").stop).inputs) == [
        "vocabulary"
    ]


def test_a_datasets_folder_is_found_beside_the_file(tmp_path: Path) -> None:
    data = tmp_path / "saved" / "train"
    data.mkdir(parents=True)
    (data / "0.arrow").write_bytes(b"x")
    task = plan(tmp_path, "hf:saved/train").tasks[1]
    name = f"hf:{data}"
    # the stage's own settings stay as written; the worker's have the path
    assert task.file.config["sources"] == [name]
    assert task.file.inputs[name]["folder"] == str(data)
    assert plan(tmp_path, "hf:saved#train").tasks[1].file.config["sources"] == [
        f"hf:{tmp_path}/saved#train"
    ]
    (data / "0.arrow").write_bytes(b"xy")
    assert plan(tmp_path, "hf:saved/train").tasks[1].file.fingerprint != task.file.fingerprint


def test_a_file_that_a_url_names_is_known_by_its_time(tmp_path: Path) -> None:
    data = tmp_path / "a.jsonl"
    data.write_text('{"text": "a"}\n')
    first = plan(tmp_path, f"file://{data}").tasks[1].file
    data.write_text('{"text": "ab"}\n')
    assert plan(tmp_path, f"file://{data}").tasks[1].file.fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("s4://bucket/a.jsonl", "s4:// is no kind of URL that can be read; did you mean s3://"),
        ("https://host/a.csv", "suffix names no known format; known are: .txt, .jsonl"),
        ("file:///nowhere/a.jsonl", "no such file or folder; the folder / exists"),
        ("hf:owner/name", "which split? Name it as in hf:owner/name#train"),
        ("hf:a/b/c#train", "no such folder, nor a name of the hub; the forms are hf:owner/name"),
        ("a.csv", "'a.csv' has a suffix that names no known format; known are: .txt, .jsonl"),
        ("*.csv", "has a suffix that names no known format"),
        ("other", "holds a dataset; needed is a documents or files"),
    ],
)
def test_what_can_not_be_read_is_found_at_check(tmp_path: Path, source: str, message: str) -> None:
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("text\na\n")
    artifact(tmp_path / "other", "dataset")
    assert message in mistake(tmp_path, source)


def test_patterns_and_folders_with_other_files_are_left_to_the_reader(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\na\n")
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "folder").mkdir()
    assert load(tmp_path, "a.*", "folder").graph.outside["corpus"].keys() == {"a.*", "folder"}


def test_a_tokenizer_is_no_name_of_data(tmp_path: Path) -> None:
    found = mistake(tmp_path, "sample:python-docs", tokenizer="s3://bucket/tokenizer")
    assert "'s3://bucket/tokenizer' is a name of data; needed is a tokenizer or a model" in found


def artifact(folder: Path, kind: str) -> Path:
    built = folder.with_name("building")
    (built / "documents").mkdir(parents=True)
    (built / "removed").mkdir()
    (built / "documents" / "00000.jsonl").write_text('{"text": "kept"}\n')
    (built / "removed" / "00000.jsonl").write_text('{"text": "removed", "reason": "x"}\n')
    publish(built, folder, artifact_type=kind, stage="s", kind="k", fingerprint="f")  # type: ignore[arg-type]
    return folder


def test_documents_of_another_stage(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "cleaned", "documents")
    inputs = {"cleaned": Input("cleaned", folder, "documents", "f")}
    context = StageContext("corpus", "tokenize", tmp_path, "x", inputs)
    found = expand_inputs(["cleaned", "sample:python-docs"], context)
    assert [s.name for s in found] == [
        str(folder / "documents" / "00000.jsonl"),
        "sample:python-docs",
    ]
    assert load(tmp_path, "cleaned").graph.outside["corpus"]["cleaned"] == folder
    other = artifact(tmp_path / "shards", "dataset")
    with pytest.raises(DataError, match="artifact is of type dataset; sources are documents"):
        expand_inputs([str(other)], context)


def test_files_that_clean_takes_beside_its_sources(tmp_path: Path) -> None:
    for name in ("domains.txt", "secret", "lid.bin"):
        (tmp_path / name).write_text("long enough\n")
    file = tmp_path / "p.yaml"
    file.write_text(
        "name: test\nstages:\n  cleaned:\n    kind: clean\n    sources: [sample:python-docs]\n"
        "    filters:\n"
        "    - {filter: url, domain_files: [domains.txt]}\n"
        "    - {filter: language, model_path: lid.bin}\n"
        "    pii: {replace_with: surrogate, surrogate_key_file: secret}\n"
    )
    (tmp_path / "run").mkdir()
    run = plan_run(load_pipeline(file, ()), tmp_path / "run")
    write_run(load_pipeline(file, ()), run)
    [task] = run.tasks
    settings = task.file.config
    assert Path(settings["pii"]["surrogate_key_file"]) == tmp_path / "secret"
    assert Path(settings["filters"][0]["domain_files"][0]) == tmp_path / "domains.txt"
    assert Path(settings["filters"][1]["model_path"]) == tmp_path / "lid.bin"
    assert "long enough" not in (tmp_path / "run" / "pipeline.yaml").read_text()
