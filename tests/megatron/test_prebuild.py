"""The index of a pretraining stage, built ahead of its run and found by it."""

from pathlib import Path

import pytest
import yaml
from pretrain_runs import LLAMA, QUICK, make_dataset

from toolkit.errors import ToolkitError
from toolkit.launch.prebuild import prebuild_index
from toolkit.pipeline.run import plan_run
from toolkit.plan.stages import load_checked


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    make_dataset(tmp_path / "corpus")
    base = {"kind": "pretrain", "data": str(tmp_path / "corpus"), "model": LLAMA, **QUICK,
            "train_iters": 3}  # fmt: skip
    vocabulary = {
        "kind": "train-tokenizer", "sources": ["sample:python-docs"], "vocab_size": 512
    }  # fmt: skip
    stages = {"vocabulary": vocabulary, "base": base, "more": {**base, "load": "base"}}
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump({"name": "ahead", "seed": 7, "stages": stages}))
    return path


def test_the_run_finds_the_index(pipeline: Path, tmp_path: Path) -> None:
    from toolkit.megatron.train import run
    from toolkit.worker import StopRequest, make_context

    loaded, folder = load_checked(pipeline, ()), tmp_path / "run"
    parts = prebuild_index(loaded, folder, "base")
    assert parts["split_by"] == "documents" and parts["tokens"]["train"] > 30_000
    (task,) = plan_run(loaded, folder, only=["base"]).tasks
    assert task.action == "resume"
    made = {p: p.stat().st_mtime_ns for p in (folder / "base/work/index").glob("*.npy")}
    published = run(task.config, make_context(task.folder, task.file, StopRequest()))
    assert published is not None and published.info["data"] == parts
    assert made == {p: p.stat().st_mtime_ns for p in (folder / "base/work/index").glob("*.npy")}
    with pytest.raises(ToolkitError, match="complete: it needs no index"):
        prebuild_index(loaded, folder, "base")


def test_what_has_no_index(pipeline: Path, tmp_path: Path) -> None:
    loaded = load_checked(pipeline, ())
    with pytest.raises(ToolkitError, match="'vocabulary' is of kind train-tokenizer"):
        prebuild_index(loaded, tmp_path / "run", "vocabulary")
    with pytest.raises(ToolkitError, match="'more' needs 'base', which is pending"):
        prebuild_index(loaded, tmp_path / "run", "more")
    with pytest.raises(ToolkitError, match=r"'bsae'.*did you mean 'base'"):
        prebuild_index(loaded, tmp_path / "run", "bsae")
    assert not list((tmp_path / "run").glob("*/work"))
