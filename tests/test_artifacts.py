"""Artifacts appear whole and are verified; folders made elsewhere are adopted."""

import json
from pathlib import Path

import pytest

from toolkit.artifacts import (
    MANIFEST,
    Artifact,
    Parent,
    link_tree,
    publish,
    read_artifact,
    stat_fingerprint,
    write_text,
)
from toolkit.errors import ToolkitError


def make(folder: Path) -> Artifact:
    built = folder / "building"
    (built / "inner").mkdir(parents=True)
    (built / "a.txt").write_text("alpha")
    (built / "inner" / "b.bin").write_bytes(b"\x00\x01")
    return publish(
        built,
        folder / "artifact",
        artifact_type="dataset",
        stage="corpus",
        kind="tokenize",
        fingerprint="f" * 8,
        parents=[Parent("vocabulary", "tokenizer", "abc", "../../vocabulary/artifact")],
        info={"tokens": 3},
    )


def test_publish_renames_the_finished_folder_and_records_its_files(tmp_path: Path) -> None:
    made = make(tmp_path)
    assert not (tmp_path / "building").exists()
    read = read_artifact(tmp_path / "artifact")
    assert read == made
    assert {f.path: f.size for f in read.files} == {"a.txt": 5, "inner/b.bin": 2}
    assert read.info == {"tokens": 3}
    read.verify()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "a.txt").unlink(), "missing"),
        (lambda f: (f / "a.txt").write_text("alph"), r"4 bytes, 5 were written"),
        (lambda f: (f / "a.txt").write_text("alphA"), "checksum differs"),
    ],
)
def test_verify_names_what_is_wrong(tmp_path: Path, damage: object, message: str) -> None:
    made = make(tmp_path)
    damage(made.folder)  # type: ignore[operator]
    with pytest.raises(ToolkitError, match=message):
        made.verify()


def test_publish_never_replaces_an_artifact(tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(OSError, match="not empty"):
        make(tmp_path)
    read_artifact(tmp_path / "artifact").verify()


def test_a_parent_is_found_after_the_run_was_moved(tmp_path: Path) -> None:
    make(tmp_path / "run" / "corpus")
    (tmp_path / "run").rename(tmp_path / "moved")
    artifact = read_artifact(tmp_path / "moved" / "corpus" / "artifact")
    expected = tmp_path / "moved" / "vocabulary" / "artifact"
    assert artifact.parent_folder(artifact.parents[0]) == expected


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("config.json", "model"),
        ("adapter_config.json", "adapter"),
        ("tokenizer.json", "tokenizer"),
        ("latest_checkpointed_iteration.txt", "checkpoint"),
    ],
)
def test_folders_made_elsewhere_are_adopted(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).write_text("{}")
    assert read_artifact(tmp_path).type == kind


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tekken_240911.json", "tokenizer.model.v1", "cl100k.tiktoken"]
)
def test_a_file_that_is_a_tokenizer_is_adopted(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    assert read_artifact(tmp_path / name).type == "tokenizer"


def test_another_file_is_not_called_a_missing_folder(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("")
    with pytest.raises(ToolkitError, match=r"a file that is no tokenizer.*tekken"):
        read_artifact(tmp_path / "notes.md")


def test_what_is_no_artifact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match="no such folder"):
        read_artifact(tmp_path / "none")
    with pytest.raises(ToolkitError, match="not an artifact"):
        read_artifact(tmp_path)
    (tmp_path / MANIFEST).write_text(json.dumps({"type": "model"}))
    with pytest.raises(ToolkitError, match="not a readable artifact manifest"):
        read_artifact(tmp_path)


def test_the_fingerprint_of_outside_files_follows_their_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    first = stat_fingerprint([tmp_path])
    assert first == stat_fingerprint([tmp_path])
    (tmp_path / "a").write_text("12")
    assert first != stat_fingerprint([tmp_path])


def test_links_share_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "from" / "x").mkdir(parents=True)
    (tmp_path / "from" / "x" / "f").write_text("text")
    link_tree(tmp_path / "from", tmp_path / "to")
    assert (tmp_path / "to" / "x" / "f").samefile(tmp_path / "from" / "x" / "f")


def test_ranks_of_one_process_id_write_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in containers on several machines: one begins to write while another is at it."""
    path, hosts = tmp_path / "f", ["b", "a"]
    monkeypatch.setattr("os.getpid", lambda: 1)
    monkeypatch.setattr("socket.gethostname", lambda: hosts[-1])

    def another(_: int) -> None:
        if len(hosts) > 1:
            hosts.pop()
            write_text(path, "the other's")

    monkeypatch.setattr("os.fsync", another)
    write_text(path, "whole")
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    write_text(path, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "name", ["tokenizer.model", "mistral.model.v2", "x.tiktoken", "tekken_240911.json", "vocab.txt"]
)
def test_a_file_may_be_a_tokenizer_by_itself(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    assert read_artifact(tmp_path / name).type == "tokenizer"


def test_other_files_are_no_artifacts(tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text("{}")
    with pytest.raises(ToolkitError, match="a file that is no tokenizer"):
        read_artifact(tmp_path / "notes.json")
