"""Waiting from Python for what a stage makes, with stand-ins for Slurm's commands."""

import json
import logging
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from stand_ins import PIPELINE, lay_out

import toolkit
from toolkit.artifacts import publish
from toolkit.errors import StageError, ToolkitError
from toolkit.launch import handles
from toolkit.launch.handles import Handle


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(handles, "POLL", 0.01)
    monkeypatch.setattr(handles, "ASK", (0.05, 0.05))
    return lay_out(tmp_path, monkeypatch)


@pytest.fixture
def stages(folder: Path) -> dict[str, Handle]:
    return toolkit.submit("p.yaml", "c.yaml")


CHAIN = """\
  base:
    kind: pretrain
    data: corpus
    model: {preset: llama-mini}
    train_iters: 2
    global_batch_size: 4
    resources: {chain: 2}
  weights: {kind: export, checkpoint: base}
"""


def make(stage: Handle) -> None:
    """What the stage's job would leave."""
    built = stage.folder / "built"
    built.mkdir()
    (built / "tokenizer.json").write_text("{}")
    publish(
        built,
        stage.folder / "artifact",
        artifact_type="tokenizer",
        stage=stage.stage,
        kind="train-tokenizer",
        fingerprint="0" * 64,
        parents=[],
        versions={},
    )


def queue(folder: Path, **states: str) -> None:
    """The jobs that Slurm has: 101 and what it says of it."""
    lines = [f"{name.removeprefix('_')} {state}\n" for name, state in states.items()]
    (folder / "next").write_text("".join(lines))
    (folder / "next").rename(folder / "queue")  # squeue may be reading


def test_there_is_a_handle_for_each_stage_also_later(
    folder: Path, stages: dict[str, Handle]
) -> None:
    run = folder / "runs" / "two"
    assert {name: stage.job_ids for name, stage in stages.items()} == {
        "vocabulary": ["101"],
        "corpus": ["102", "103"],
    }
    assert toolkit.handles("runs/two") == stages == toolkit.handles(run)
    assert stages["corpus"].folder == run / "corpus"
    status = stages["corpus"].status()
    assert (status.job, status.slurm, status.state.status) == ("102", "PENDING", "pending")
    assert not stages["vocabulary"].done()


def test_a_run_under_way_is_refused_or_left_to_its_jobs(
    folder: Path, stages: dict[str, Handle]
) -> None:
    with pytest.raises(ToolkitError, match="has jobs under way"):
        toolkit.submit(folder / "p.yaml", folder / "c.yaml")
    again = toolkit.submit("p.yaml", "c.yaml", again=True, only=["vocabulary"])
    assert list(again) == ["vocabulary"] and again["vocabulary"].job_ids == ["101"]


def test_result_waits_for_the_artifact(folder: Path, stages: dict[str, Handle]) -> None:
    stage = stages["vocabulary"]
    timer = threading.Timer(0.3, make, [stage])
    timer.start()
    artifact = stage.result(timeout=20)
    timer.join()
    assert artifact.folder == stage.folder / "artifact" and artifact.type == "tokenizer"
    queue(folder)  # forgotten by Slurm, and there is no accounting
    assert stage.done() and stage.result(timeout=0) == artifact


def test_result_ends_when_its_time_is_over(stages: dict[str, Handle]) -> None:
    with pytest.raises(TimeoutError, match="'corpus' has not ended within 0 s"):
        stages["corpus"].result(timeout=0.2)


def test_a_failure_s_reason_comes_out_of_what_needs_the_stage_too(
    folder: Path, stages: dict[str, Handle]
) -> None:
    errors = stages["vocabulary"].folder / "errors"
    errors.mkdir()
    record = {"message": "invalid JSON", "where": "a.txt:7", "hint": "mend it"}
    (errors / "rank-0.json").write_text(json.dumps({"time": time.time(), **record}))
    queue(folder, _101="FAILED", _102="CANCELLED", _103="CANCELLED")
    with pytest.raises(StageError) as caught:
        stages["vocabulary"].result(timeout=20)
    assert str(caught.value) == (
        "a.txt:7: stage 'vocabulary' (job 101) failed: invalid JSON\n  mend it"
    )
    with pytest.raises(StageError, match="'vocabulary', which failed: invalid JSON"):
        stages["corpus"].result(timeout=20)


def test_a_failure_ahead_of_a_chain_is_told_behind_it(folder: Path) -> None:
    (folder / "p.yaml").write_text(PIPELINE + CHAIN)
    toolkit.submit("p.yaml", "c.yaml")
    stage = toolkit.handles("runs/two")["weights"]
    (folder / "queue").write_text(
        "101 FAILED\n" + "".join(f"{n} CANCELLED\n" for n in range(102, 107))
    )
    assert stage.job_ids == ["106"]
    with pytest.raises(StageError, match="it waits for 'vocabulary', which failed"):
        stage.result(timeout=20)


def test_why_a_job_was_not_started_again_is_told(folder: Path, stages: dict[str, Handle]) -> None:
    note = {"job": "101", "link": 1, "links": 1, "restarts": 2, "max_restarts": 2, "step": 7}
    note |= {"ended": True, "reason": "ended with 1 at step 7, no further than before", "time": ""}
    (stages["vocabulary"].folder / "going-on").mkdir()
    (stages["vocabulary"].folder / "going-on" / "vocabulary.json").write_text(json.dumps(note))
    queue(folder, _101="FAILED")
    with pytest.raises(StageError, match="no further than before"):
        stages["vocabulary"].result(timeout=20)


def test_a_cancelled_job_does_not_hang_its_result(folder: Path, stages: dict[str, Handle]) -> None:
    assert stages["vocabulary"].cancel() == ["vocabulary", "corpus.shards", "corpus.finish"]
    assert "scancel --quiet 101 102 103" in (folder / "calls").read_text()
    with pytest.raises(StageError, match=r"\(job 101\) did not end: cancelled"):
        stages["vocabulary"].result(timeout=20)


def test_a_job_that_slurm_has_forgotten_does_not_hang_its_result(
    folder: Path, stages: dict[str, Handle]
) -> None:
    queue(folder)
    with pytest.raises(StageError, match=r"\(job 101\) did not end: Slurm has forgotten it"):
        stages["vocabulary"].result(timeout=20)


def test_a_job_between_its_end_and_its_requeue_is_waited_for(
    folder: Path, stages: dict[str, Handle], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stages["vocabulary"]
    looks = iter([False, True, False, True, False])

    def active(run: Path) -> dict[str, dict[str, str]]:
        there = next(looks, None)
        if there is None:
            make(stage)
        return {"vocabulary": {"stage": "vocabulary"}} if there else {}

    monkeypatch.setattr(handles, "active_jobs", active)
    assert stage.result(timeout=20).type == "tokenizer"


def test_a_slurm_that_is_silent_is_waited_for(
    folder: Path, stages: dict[str, Handle], caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "silent").touch()
    with caplog.at_level(logging.WARNING), pytest.raises(TimeoutError):
        stages["vocabulary"].result(timeout=0.5)
    assert "Unable to contact slurm controller" in caplog.text
    with pytest.raises(ToolkitError, match="Unable to contact slurm controller"):
        stages["vocabulary"].done()


def test_a_stage_without_a_job_says_so(folder: Path) -> None:
    toolkit.submit("p.yaml", "c.yaml", only=["vocabulary"])
    others = toolkit.handles("runs/two")
    with pytest.raises(StageError, match="'corpus' has no job"):
        others["corpus"].result(timeout=20)


def test_importing_the_toolkit_loads_nothing() -> None:
    look = "import sys, toolkit; print([m for m in sys.modules if m.startswith('toolkit.')])"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    with pytest.raises(AttributeError, match="no attribute 'sbumit'"):
        toolkit.sbumit  # noqa: B018
