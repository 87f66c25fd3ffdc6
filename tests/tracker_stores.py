"""What the trackers have of a stage, read back from their own files."""

import json
import struct
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from toolkit.artifacts import write_json
from toolkit.tracking import Tracker
from toolkit.tracking.job import Job

Points = list[tuple[int, float]]
BLOCK = 32 * 1024


def job(folder: Path, sink: Any, **settings: Any) -> Job:
    """A job of a stage called base, in a run called by the folder above it."""
    config = {"lr": 0.001, "model": {"num_layers": 2}}
    return Job(sink, folder, "run1", "base", "pretrain", settings=settings, config=config)


def log(folder: Path, steps: range, validate_at: int = 0) -> None:
    """Rows of these steps; and a second one, of held-out loss, where it is asked for."""
    tracker = Tracker(folder)
    for step in steps:
        tracker.log(step, {"loss": 1 / step, "note": "text", "bad": float("nan")})
        if step == validate_at:
            tracker.log(step, {"validation_loss": 2 / step})


def finish_artifact(folder: Path, **info: Any) -> None:
    """An artifact with this ``info``, as a finished stage leaves it."""
    (folder / "artifact").mkdir()
    manifest = {"type": "checkpoint", "fingerprint": "f", "stage": "base", "kind": "pretrain"}
    more = {"parents": [], "versions": {}, "files": [], "created": "now", "host": "h"}
    write_json(folder / "artifact" / "artifact.json", manifest | more | {"info": info})


def tensorboard_points(folder: Path) -> dict[str, Points]:
    """Every scalar that TensorBoard shows of a stage."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(folder / "tensorboard"))
    shown.Reload()
    return {
        tag: [(e.step, round(e.value, 5)) for e in shown.Scalars(tag)]
        for tag in shown.Tags()["scalars"]
    }


def mlflow_run(store: str, experiment: str, stage: str = "base") -> tuple[Any, dict[str, Points]]:
    """The one run of a stage, and all the values of its metrics."""
    from mlflow.tracking import MlflowClient

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        client = MlflowClient(tracking_uri=store)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    query = f"attributes.run_name = '{stage}'"
    (run,) = client.search_runs([found.experiment_id], query)
    points = {
        key: [(m.step, round(m.value, 5)) for m in client.get_metric_history(run.info.run_id, key)]
        for key in run.data.metrics
    }
    return run, points


def wandb_offline(folder: Path) -> tuple[list[Any], dict[str, Points]]:
    """The records of the one offline run of a stage, and the points of its curves."""
    (file,) = (folder / "tracking" / "wandb").glob("offline-run-*/run-*.wandb")
    records = list(_records(file.read_bytes()))
    points: dict[str, Points] = defaultdict(list)
    for record in records:
        if record.WhichOneof("record_type") == "history":
            for item in record.history.item:
                key = item.key or item.nested_key[0]
                if not key.startswith("_"):
                    value = round(json.loads(item.value_json), 5)
                    points[key].append((record.history.step.num, value))
    return records, dict(points)


def _records(data: bytes) -> Any:
    """W&B's file: LevelDB's log format, behind a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    position, whole = 7, b""
    while position + 7 <= len(data):
        if BLOCK - position % BLOCK < 7:  # no room for another header in this block
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        whole += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # the only piece of a record, or the last
            yield Record.FromString(whole)
            whole = b""
