"""Metrics and progress on disk."""

import json
from pathlib import Path

import pytest

from toolkit.tracking import METRICS, PROGRESS, Progress, Tracker, read_metrics


def test_rows_are_read_back_and_what_is_not_finite_is_null(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path)
    tracker.log(1, {"loss": 2.5, "tokens": 7})
    tracker.log(2, {"loss": float("nan")})
    rows = read_metrics(tmp_path)
    assert [(r["step"], r["loss"]) for r in rows] == [(1, 2.5), (2, None)]
    assert isinstance(rows[0]["tokens"], int)
    assert "NaN" not in (tmp_path / METRICS).read_text()


def test_rewind_drops_what_a_resumed_run_will_write_again(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path)
    for step in range(1, 6):
        tracker.log(step, {"loss": 1.0})
    tracker.rewind(3)
    tracker.log(4, {"loss": 0.5})
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2, 3, 4]


def test_a_row_cut_off_by_a_crash_is_left_out(tmp_path: Path) -> None:
    Tracker(tmp_path).log(1, {"loss": 1.0})
    with (tmp_path / METRICS).open("a") as stream:
        stream.write('{"step": 2, "lo')
    assert [r["step"] for r in read_metrics(tmp_path)] == [1]
    Tracker(tmp_path).log(2, {"loss": 0.5})
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2]


def test_progress_has_a_rate_and_the_time_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 0.0, 10.0, 10.05, 20.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    progress = Progress(tmp_path)
    progress(0, 100, unit="iterations")
    progress(20, 100, unit="iterations", loss=1.5)
    record = json.loads((tmp_path / PROGRESS).read_text())
    assert (record["rate"], record["seconds_left"]) == (2.0, 40.0)
    assert record["shown"] == {"loss": 1.5}
    progress(21, 100)  # too soon after the last one
    assert json.loads((tmp_path / PROGRESS).read_text())["done"] == 20
    progress(100, 100)
    assert json.loads((tmp_path / PROGRESS).read_text())["seconds_left"] == 0


def test_another_unit_begins_a_new_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.0, 10.0, 11.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    progress = Progress(tmp_path)
    progress(5000, unit="rows")
    progress(0, 100, unit="iterations")
    progress(2, 100, unit="iterations")
    assert json.loads((tmp_path / PROGRESS).read_text())["rate"] == 2.0
