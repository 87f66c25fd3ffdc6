"""``tracking:`` in a pipeline file, and on its way to the worker."""

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from tracker_stores import tensorboard_points
from typer.testing import CliRunner

from toolkit.cli import app
from toolkit.errors import ConfigError
from toolkit.launch.check import tracking_warnings
from toolkit.launch.cluster import Cluster
from toolkit.pipeline.loading import Loaded, load_pipeline
from toolkit.pipeline.run import fresh_tasks
from toolkit.pipeline.schema import json_schema
from toolkit.pipeline.state import StageFile, StageState, read_stage_file, write_state
from toolkit.pipeline.track import refuse_missing, tracking_jobs
from toolkit.tracking import Tracker, config
from toolkit.tracking.identity import run_id

STAGE = {"kind": "train-tokenizer", "sources": ["sample:python-docs"], "vocab_size": 300}


def load(folder: Path, tracking: Any, *overrides: str) -> Loaded:
    file = folder / "mini.yaml"
    content = {"name": "mini", "tracking": tracking, "stages": {"vocabulary": STAGE}}
    file.write_text(yaml.safe_dump(content))
    return load_pipeline(file, overrides)


def stage_file(folder: Path, tracking: Any, *overrides: str) -> StageFile:
    (task,) = fresh_tasks(load(folder, tracking, *overrides), folder / "run")
    task.folder.mkdir(parents=True, exist_ok=True)
    task.file.write(task.folder)
    found = read_stage_file(task.folder)
    assert found is not None
    return found


def test_the_worker_gets_it_and_the_fingerprint_does_not(tmp_path: Path) -> None:
    tracked = stage_file(tmp_path, {"wandb": {"tags": ["a"]}, "mlflow": {}})
    assert tracked.tracking["wandb"]["project"] == "mini"  # the pipeline's name
    assert tracked.tracking["mlflow"]["experiment_name"] == "mini"
    assert tracked.fingerprint == stage_file(tmp_path, {}).fingerprint
    named = stage_file(tmp_path, {"wandb": {}}, "tracking.wandb.project=x", "tracking.mlflow={}")
    assert (named.tracking["wandb"]["project"], named.tracking["mlflow"]["tags"]) == ("x", {})
    assert stage_file(tmp_path, {"wandb": {}}, "tracking.wandb=null").tracking["wandb"] is None


@pytest.mark.parametrize(
    ("tracking", "says"),
    [
        ({"wandb": {"mode": "of"}}, "tracking.wandb.mode"),
        ({"wandb": {"projekt": "x"}}, "did you mean 'project'"),
        ({"wandb": {"base_url": "https://me:secret@host"}}, "without name or password"),
        ({"mlflow": {"tracking_uri": "https://me:secret@host"}}, "holds a name or password"),
        ({"mlflow": {"tracking_uri": "mlruns"}}, "must begin with one of http:"),
    ],
)
def test_mistakes_are_said_with_their_key(tmp_path: Path, tracking: Any, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, tracking)
    assert says in str(caught.value)
    assert "mini.yaml:" in str(caught.value)


@pytest.mark.parametrize("uri", ["https://host/a", "file:///a", "databricks", "databricks://b"])
def test_addresses_that_mean_the_same_on_every_node_are_taken(tmp_path: Path, uri: str) -> None:
    tracking = load(tmp_path, {"mlflow": {"tracking_uri": uri}}).pipeline.tracking
    assert tracking.mlflow is not None
    assert tracking.mlflow.tracking_uri == uri


def test_the_schema_has_every_key_with_a_description() -> None:
    schema = json_schema()
    for name in ("Tracking", "WandbSettings", "MlflowSettings"):
        for key, value in schema["$defs"][name]["properties"].items():
            assert value.get("description"), f"{name}.{key}"
    pipeline = {"name": "mini", "stages": {"vocabulary": STAGE}}
    jsonschema.validate(pipeline | {"tracking": {"wandb": {"mode": "offline"}}}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(pipeline | {"tracking": {"wandb": {"mode": "of"}}}, schema)


def test_stages_that_train_have_events_where_tensorboard_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def sinks(kind: str, tracking: dict[str, Any]) -> list[str]:
        file = StageFile("base", kind, "f", 1, {}, {}, tracking)
        return [job.sink for job in tracking_jobs(tmp_path, file, {})]

    everything = {"wandb": {}, "mlflow": {}}
    monkeypatch.setattr(config, "installed", lambda _: True)
    assert sinks("pretrain", everything) == ["wandb", "mlflow", "tensorboard"]
    assert sinks("tokenize", {"wandb": {"mode": "disabled"}, "mlflow": None}) == []
    assert sinks("tokenize", everything) == ["wandb", "mlflow"]
    assert sinks("pretrain", {}) == []
    monkeypatch.setattr(config, "installed", lambda package: package == "mlflow")
    assert sinks("pretrain", everything) == ["mlflow"]
    assert "needs the package wandb, which is not installed here" in caplog.text
    assert "tensorboard" not in caplog.text  # nobody asked for it


def test_what_jobs_on_a_cluster_may_lack_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def notes(tracking: dict[str, Any], **profile: Any) -> list[str]:
        settings = {"scheduler": "slurm", "node": {"cpus": 4}, "time_limit": "1:00:00", **profile}
        return tracking_warnings(
            Cluster.model_validate(settings), load(tmp_path, tracking).pipeline.tracking
        )

    monkeypatch.setattr(config, "installed", lambda package: package != "wandb")
    both = {"wandb": {}, "mlflow": {}}
    assert [note.partition(":")[0] for note in notes(both)][1:] == [
        "tracking.wandb",
        "tracking.mlflow",
    ]
    assert "not installed here" in notes(both)[0]
    image = {"runtime": "pyxis", "image": "registry/image"}
    given = {"environment": {"MLFLOW_TRACKING_URI": "http://host"}, "container": image}
    assert notes(both, **given, secrets=["WANDB_API_KEY"]) == []
    assert notes({"wandb": {"mode": "offline"}}, container=image) == []


def run_folder(folder: Path, **tracking: Any) -> Path:
    """A run with one stage that was interrupted at step 3."""
    run, stage = folder / "runs" / "mini", folder / "runs" / "mini" / "base"
    stage.mkdir(parents=True)
    (run / "pipeline.yaml").write_text(yaml.safe_dump({"name": "mini", "stages": {"base": {}}}))
    StageFile("base", "pretrain", "f", 1, {}, {}, tracking).write(stage)
    write_state(stage, StageState(status="interrupted", fingerprint="f"))
    tracker = Tracker(stage)
    for step in (1, 2, 3):
        tracker.log(step, {"loss": 1.0})
    return run


def test_what_a_tracker_lacks_is_sent_afterwards(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = run_folder(tmp_path, tensorboard=True)
    done = CliRunner().invoke(app, ["track", str(run)])
    assert (done.exit_code, done.stdout) == (0, "base  tensorboard  tensorboard/\n")
    assert [step for step, _ in tensorboard_points(run / "base")["loss"]] == [1, 2, 3]
    assert CliRunner().invoke(app, ["track", str(run), "nonsense"]).exit_code == 2
    (run / "base" / "state.json").unlink()
    assert "nothing to send" in CliRunner().invoke(app, ["track", str(run)]).stderr


def test_a_tracker_that_still_lacks_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    nobody = {"tracking_uri": "http://127.0.0.1:1"}
    run = run_folder(tmp_path, mlflow=nobody, tensorboard=False)
    done = CliRunner().invoke(app, ["track", str(run)])
    assert done.exit_code == 1
    assert "base  mlflow  mlflow/  FAILED" in done.output


def test_a_pipeline_is_not_run_here_without_its_trackers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "installed", lambda _: False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError) as caught:
        refuse_missing(load(tmp_path, {"wandb": {}, "mlflow": {}}))
    assert "tracking.wandb" in str(caught.value)
    assert "MLFLOW_TRACKING_URI is not set" in str(caught.value)
    refuse_missing(load(tmp_path, {}))


def test_a_folder_that_wandb_left_is_not_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "left_by_wandb").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not config.installed("left_by_wandb")
    assert config.installed("yaml")


def test_a_run_id_lasts_as_long_as_the_folder(tmp_path: Path) -> None:
    first = run_id(tmp_path)
    assert run_id(tmp_path) == first
    (tmp_path / "other").mkdir()
    assert run_id(tmp_path / "other") != first
