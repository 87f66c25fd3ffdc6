"""The processes that pass metrics on, with the trackers' real libraries."""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tracker_stores import (
    finish_artifact,
    job,
    log,
    mlflow_run,
    tensorboard_points,
    wandb_offline,
)
from wandb_server import Server, wandb_server

from toolkit.tracking import Tracker
from toolkit.tracking.identity import links
from toolkit.tracking.job import Job
from toolkit.tracking.senders import Senders

LOSSES = [(step, round(1 / step, 5)) for step in range(1, 11)]
ALL = 60.0
"""Seconds for a sender to end when nothing is wrong: imports are slow on a busy machine."""


def wait_for(condition: Callable[[], object], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def processes(senders: Senders) -> list[psutil.Process]:
    """The senders' processes, with all that these have started (wandb-core)."""
    own = [psutil.Process(sender._process.pid) for sender in senders._senders]
    return [p for one in own for p in (one, *one.children(recursive=True))]


def kill(senders: Senders) -> None:
    """End them as Slurm ends a step: every process at once."""
    for process in processes(senders):
        process.kill()
    for sender in senders._senders:
        sender.close()


def written_in(folder: Path) -> str:
    """All that stands in a stage's files, the library's own logs among them."""
    return "".join(p.read_text(errors="replace") for p in folder.rglob("*") if p.is_file())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a stage that was begun."""
    path = tmp_path / "mini" / "base"
    (path / "tracking").mkdir(parents=True)
    return path


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))  # no key of the developer's own
    with wandb_server() as found:
        monkeypatch.setenv("WANDB_API_KEY", found.key)
        monkeypatch.setenv("WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL", "1")
        yield found


@pytest.mark.slow
def test_a_curve_has_no_gaps_and_no_duplicates_after_a_kill(tmp_path: Path, folder: Path) -> None:
    for package in ("wandb", "mlflow", "tensorboard"):
        pytest.importorskip(package)
    store = f"file://{tmp_path}/mlruns"
    jobs = [
        job(folder, "wandb", mode="offline", project="p", tags=["t"]),
        job(folder, "mlflow", tracking_uri=store, experiment_name="e", tags={"team": "us"}),
        job(folder, "tensorboard"),
    ]
    log(folder, range(1, 9), validate_at=8)
    senders = Senders(jobs)
    wait_for(lambda: list(tmp_path.glob("mlruns/*/*/metrics/loss")) and mlflow_run(store, "e")[1])
    wait_for(lambda: (folder / "tensorboard").exists() and "loss" in tensorboard_points(folder))
    wait_for(lambda: (folder / "tracking" / "wandb.json").exists())
    assert mlflow_run(store, "e")[1]["loss"] == LOSSES[:7]  # 8 may be incomplete: it is held back
    kill(senders)

    senders = Senders(jobs)
    Tracker(folder).rewind(4)
    log(folder, range(5, 11), validate_at=8)
    finish_artifact(folder, parameters=53_408, layout={"world_size": 2}, dtype="fp32", parts=[1])
    assert senders.end("complete", patience=ALL) == []

    curves = {"loss": LOSSES, "validation_loss": [(8, 0.25)]}
    results = {"parameters": 53_408.0, "layout.world_size": 2.0}
    assert tensorboard_points(folder) == {
        **curves,
        **{f"results/{name}": [(10, value)] for name, value in results.items()},
    }
    check_mlflow(store, curves, results)
    check_wandb(folder, curves)


def check_mlflow(store: str, curves: dict[str, Any], results: dict[str, float]) -> None:
    run, points = mlflow_run(store, "e")
    assert points == curves | {name: [(10, value)] for name, value in results.items()}
    assert (run.info.status, run.info.run_name) == ("FINISHED", "base")
    assert run.data.params == {"lr": "0.001", "model.num_layers": "2"}
    expected = {"team": "us", "toolkit.run": "mini", "toolkit.kind": "pretrain", "dtype": "fp32"}
    assert expected.items() <= run.data.tags.items()


def check_wandb(folder: Path, curves: dict[str, Any]) -> None:
    records, points = wandb_offline(folder)
    assert points == curves
    (begun,) = [r.run for r in records if r.WhichOneof("record_type") == "run"]
    assert (begun.run_id, begun.project, begun.display_name) == ("run1", "p", "base")
    assert (begun.run_group, begun.job_type, list(begun.tags)) == ("mini", "pretrain", ["t"])
    summary = {i.key: i.value_json for r in records for i in r.summary.update}
    assert (summary["parameters"], summary["layout.world_size"]) == ("53408", "2")
    (config,) = [r.config for r in records if r.WhichOneof("record_type") == "config"]
    assert {i.key or i.nested_key[0] for i in config.update} >= {"lr", "model"}


@pytest.mark.slow
def test_a_server_is_sent_each_step_once_and_all_of_them(server: Server, folder: Path) -> None:
    online = job(folder, "wandb", project="p", base_url=server.url)
    log(folder, range(1, 9))
    senders = Senders([online])
    wait_for(lambda: server.steps("run1"))  # the others are on their way, and get lost
    kill(senders)
    had = list(server.steps("run1"))

    Tracker(folder).rewind(4)
    senders = Senders([online])
    log(folder, range(5, 10))
    wait_for(lambda: len(processes(senders)) > 1)
    for process in processes(senders):
        process.send_signal(signal.SIGTERM)  # scancel and preemption: wandb-core dies of it
    log(folder, range(10, 11))
    assert senders.end("interrupted", patience=ALL) == []

    assert had == list(range(1, len(had) + 1))
    assert [(r["_step"], round(r["loss"], 5)) for r in server.histories["run1"]] == LOSSES
    assert links(folder) == {"wandb": f"{server.url}/us/p/runs/run1"}
    first, last = server.upserts["run1"][0], server.streams["run1"][-1]
    assert (first["groupName"], first["jobType"]) == ("mini", "pretrain")
    assert last["exitcode"] == 85
    assert any(message.get("preempting") for message in server.streams["run1"])
    assert server.key not in written_in(folder)


@contextlib.contextmanager
def mute_server() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


SECRET = "swordfish" * 4 + "abcd"


def hopeless(folder: Path, address: str) -> list[Job]:
    return [
        job(folder, "wandb", project="p", base_url=address),
        job(folder, "mlflow", experiment_name="e"),
    ]


def test_a_server_that_hangs_delays_nothing_for_long(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for package in ("wandb", "mlflow"):
        pytest.importorskip(package)
    log(folder, range(1, 3))
    with mute_server() as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        monkeypatch.setenv("WANDB_API_KEY", SECRET)
        senders = Senders(hopeless(folder, address))
        wait_for(lambda: len(processes(senders)) > 2)  # wandb-core is there, and waits
        running = processes(senders)
        began = time.monotonic()
        assert senders.end("complete", hurry=lambda: True, patience=2) == ["wandb", "mlflow"]
    assert time.monotonic() - began < 45  # the libraries themselves would wait for minutes
    wait_for(lambda: not any(p.is_running() and p.status() != "zombie" for p in running))
    assert caplog.text.count("was not sent in time") == 2


def test_a_server_that_refuses_is_told_of_once_without_secrets(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for package in ("wandb", "mlflow"):
        pytest.importorskip(package)
    caplog.set_level(logging.INFO)
    log(folder, range(1, 3))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{SECRET}@127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", SECRET)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    senders = Senders(hopeless(folder, "http://127.0.0.1:1"))
    wait_for(lambda: caplog.text.count("fails:") == 2)
    assert senders.end("complete", patience=ALL) == ["wandb", "mlflow"]
    assert caplog.text.count("tracking.wandb fails: UsageError") == 1
    assert caplog.text.count("tracking.mlflow fails: MlflowException") == 1
    assert "its rows stay in metrics.jsonl" in caplog.text
    assert SECRET not in caplog.text + written_in(folder)


def test_a_sender_whose_stage_dies_ends_itself_and_makes_way(folder: Path) -> None:
    pytest.importorskip("tensorboard")
    log(folder, range(1, 4))
    first = Senders([job(folder, "tensorboard")])
    wait_for(lambda: (folder / "tensorboard").exists() and tensorboard_points(folder))
    second = Senders([job(folder, "tensorboard")])  # the next attempt waits for its turn
    process = first._senders[0]._process
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=30) == 0
    assert tensorboard_points(folder)["loss"] == LOSSES[:2]  # the last one may be incomplete
    wait_for(lambda: len(tensorboard_points(folder)["loss"]) >= 2)
    assert second.end("failed", patience=ALL) == []
    assert tensorboard_points(folder)["loss"] == LOSSES[:3]


def test_stop_signals_do_not_reach_a_sender(folder: Path) -> None:
    pytest.importorskip("tensorboard")
    senders = Senders([job(folder, "tensorboard")])
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):  # at once: before its imports
        os.kill(senders._senders[0]._process.pid, number)
    log(folder, range(1, 11))
    assert senders.end("complete", patience=ALL) == []
    assert tensorboard_points(folder)["loss"] == LOSSES


def test_a_sender_that_cannot_start_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from toolkit.pipeline.state import StageFile
    from toolkit.pipeline.track import start_senders

    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    file = StageFile("base", "pretrain", "f", 1, {}, {}, {"tensorboard": True})
    assert start_senders(tmp_path, file, {}).end("complete") == []
    assert "metrics are not passed on" in caplog.text
    caplog.clear()
    of_another_version = StageFile("base", "pretrain", "f", 1, {}, {}, {"neptune": {}})
    assert start_senders(tmp_path, of_another_version, {}).end("complete") == []
    assert "metrics are not passed on" in caplog.text and "neptune" in caplog.text
