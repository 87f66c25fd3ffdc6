"""The worker: one attempt, its state, its exit code, and what a failure leaves behind."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from toolkit.errors import ExitCode
from toolkit.pipeline.state import StageFile, locked, read_state

WORKER = (sys.executable, "-m", "toolkit.worker")


def stage(folder: Path, source: str, **config: object) -> Path:
    settings = {"kind": "train-tokenizer", "sources": [source], "vocab_size": 400, **config}
    folder.mkdir(parents=True)
    StageFile("vocabulary", "train-tokenizer", "f1", 7, settings, {}).write(folder)
    return folder


def work(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*WORKER, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def test_a_good_stage_is_complete_with_versions_and_attempts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some words that come again, some words\n" * 50)
    folder = stage(tmp_path / "s", str(tmp_path / "a.txt"), vocab_size=300)
    done = work(folder)
    assert done.returncode == ExitCode.OK, done.stdout
    state = read_state(folder)
    assert state.status == "complete"
    assert state.versions["tokenizers"]
    assert state.attempts[0]["status"] == "complete"
    raw = json.loads((folder / "state.json").read_text())
    assert raw["seconds"] > 0
    manifest = json.loads((folder / "artifact" / "artifact.json").read_text())
    assert (manifest["type"], manifest["fingerprint"]) == ("tokenizer", "f1")


def test_a_users_mistake_has_no_traceback_and_publishes_nothing(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n{"text": broken}\n')
    folder = stage(tmp_path / "s", str(tmp_path / "bad.jsonl"))
    done = work(folder)
    assert done.returncode == ExitCode.STAGE_FAILED
    assert "Traceback" not in done.stdout + done.stderr
    state = read_state(folder)
    assert state.status == "failed"
    assert state.error is not None
    assert "bad.jsonl:2" in f"{state.error['where']} {state.error['message']}"
    assert not (folder / "artifact").exists()
    left = json.loads((folder / "errors" / "rank-0.json").read_text())
    assert left["exit_code"] == ExitCode.USER_ERROR  # so that no job starts it again


def test_a_second_attempt_clears_the_first_ones_error(tmp_path: Path) -> None:
    data = tmp_path / "a.jsonl"
    data.write_text("nonsense\n")
    folder = stage(tmp_path / "s", str(data), vocab_size=300)
    assert work(folder).returncode == ExitCode.STAGE_FAILED
    data.write_text('{"text": "many words, many more words, and words again"}\n' * 50)
    assert work(folder).returncode == ExitCode.OK
    state = read_state(folder)
    assert [a["status"] for a in state.attempts] == ["failed", "complete"]
    assert state.error is None
    assert not (folder / "errors").exists()


def test_two_workers_never_share_a_stage(tmp_path: Path) -> None:
    folder = stage(tmp_path / "s", "sample:python-docs")
    with locked(folder, "stage"):
        done = work(folder)
    assert done.returncode == ExitCode.USER_ERROR
    assert f"pid {os.getpid()}" in done.stdout
    assert not (folder / "state.json").exists()


def test_a_signal_ends_a_stage_that_cannot_save(tmp_path: Path) -> None:
    folder = stage(tmp_path / "s", "sample:python-docs", vocab_size=30_000)
    with subprocess.Popen([*WORKER, str(folder)], stdout=subprocess.DEVNULL) as worker:
        wait_for(lambda: read_state(folder).status == "running")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(timeout=30) == ExitCode.INTERRUPTED
    state = read_state(folder)
    assert state.status == "interrupted"
    assert "SIGTERM" in str(state.error)
    assert not (folder / "artifact").exists()


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_full_disk_is_said_and_nothing_half_made_is_published(tmp_path: Path) -> None:
    folder = stage(tmp_path / "s", "sample:python-docs", vocab_size=2000)
    # A limit on file sizes (8 KiB) fails a write as a full disk does, and needs no root.
    command = f"ulimit -f 8; exec {shlex.join([*WORKER, str(folder)])} > /dev/null"
    done = subprocess.run(["bash", "-c", command], check=False)
    assert done.returncode == ExitCode.STAGE_FAILED
    state = read_state(folder)
    assert state.error is not None
    assert "too large" in state.error["message"]
    assert "nothing half-made was published" in state.error["hint"]
    assert not (folder / "artifact").exists()


def test_an_input_that_was_cut_short_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("many words, and then many more words\n" * 40)
    vocabulary = stage(tmp_path / "run" / "vocabulary", str(tmp_path / "a.txt"), vocab_size=300)
    assert work(vocabulary).returncode == ExitCode.OK
    file = vocabulary / "artifact" / "tokenizer.json"
    file.write_bytes(file.read_bytes()[:-10])
    folder = tmp_path / "run" / "corpus"
    folder.mkdir()
    inputs = {
        "vocabulary": {
            "folder": "../vocabulary/artifact",
            "type": "tokenizer",
            "fingerprint": "f1",
        }
    }
    config = {"kind": "tokenize", "sources": [str(tmp_path / "a.txt")], "tokenizer": "vocabulary"}
    StageFile("corpus", "tokenize", "f2", 7, config, inputs).write(folder)
    done = work(folder)
    assert done.returncode == ExitCode.STAGE_FAILED
    assert "tokenizer.json: file has" in done.stdout


def array_stage(tmp_path: Path) -> Path:
    """A tokenize stage of two files, one of which is bad: each is a shard."""
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n')
    (tmp_path / "b.jsonl").write_text("bad\n")
    vocabulary = stage(tmp_path / "v", str(tmp_path / "a.jsonl"), vocab_size=300)
    assert work(vocabulary).returncode == ExitCode.OK
    inputs = {"v": {"folder": "../v/artifact", "type": "tokenizer", "fingerprint": "f1"}}
    sources = [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl")]
    settings = {"kind": "tokenize", "sources": sources, "tokenizer": "v", "shard_bytes": 17}
    folder = tmp_path / "s"
    folder.mkdir()
    StageFile("corpus", "tokenize", "f2", 7, settings, inputs).write(folder)
    return folder


def test_a_rank_of_an_array_keeps_the_reasons_of_the_others(tmp_path: Path) -> None:
    folder = array_stage(tmp_path)
    ranks = {"WORLD_SIZE": "2", "TOOLKIT_PHASE": "shards"}
    assert work(folder, RANK="1", **ranks).returncode == ExitCode.STAGE_FAILED
    assert work(folder, RANK="0", **ranks).returncode == ExitCode.OK
    reason = folder / "errors" / "rank-1.json"
    assert "b.jsonl:1" in reason.read_text()


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"TOOLKIT_PHASE": "shard"}, "TOOLKIT_PHASE is 'shard'; the phases of tokenize are shards"),
        ({"WORLD_SIZE": "2"}, "2 ranks on every phase"),
        ({"RANK": "2", "WORLD_SIZE": "2", "TOOLKIT_PHASE": "shards"}, "are 0 to 1"),
        ({"RANK": "x"}, "RANK must be a whole number from 0 on; got 'x'"),
        ({"WORLD_SIZE": "2", "TOOLKIT_PHASE": "finish"}, "2 ranks on finish"),
    ],
)
def test_an_array_that_is_wrongly_set_up_does_nothing(
    tmp_path: Path, environment: dict[str, str], message: str
) -> None:
    folder = array_stage(tmp_path)
    done = work(folder, **environment)
    assert done.returncode == ExitCode.USER_ERROR
    assert message in done.stdout
    assert not (folder / "work").exists()


def test_a_folder_without_a_stage(tmp_path: Path) -> None:
    done = work(tmp_path)
    assert done.returncode == ExitCode.USER_ERROR
    assert "no stage.yaml" in done.stdout


def test_a_signal_before_or_after_the_work_leaves_a_whole_state(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some words that come again, some words\n" * 50)
    signalled = (
        "import os, signal, sys\nfrom toolkit import worker\n"
        "function = getattr(worker, sys.argv[2])\n"
        "def mean(*arguments):\n"
        "    found = function(*arguments)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return found\n"
        "setattr(worker, sys.argv[2], mean)\n"
        "sys.exit(worker.main([sys.argv[1]]))\n"
    )
    moments = {"_begin": ExitCode.INTERRUPTED, "record_error": ExitCode.OK}
    for moment, code in moments.items():
        folder = stage(tmp_path / moment, str(tmp_path / "a.txt"), vocab_size=300)
        command = [sys.executable, "-c", signalled, str(folder), moment]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        status = json.loads((folder / "state.json").read_text())["status"]
        assert status == ("complete" if code == ExitCode.OK else "interrupted")
