import json
from pathlib import Path

import pytest

from toolkit.pipeline.state import STATE_FILE, locked, read_state, unfit_nodes
from toolkit.preflight.links import Links
from toolkit.preflight.record import (
    attempt_folder,
    leave_word,
    note_unfit,
    read_words,
    write_verdict,
)
from toolkit.preflight.report import Report
from toolkit.preflight.verdict import Verdict


def test_each_start_of_a_job_has_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    assert attempt_folder(tmp_path) == tmp_path / "preflight" / "12-3"
    monkeypatch.delenv("SLURM_JOB_ID")
    assert attempt_folder(tmp_path).name == "by-hand"


def test_words_that_were_cut_short_count_as_none(tmp_path: Path) -> None:
    for rank in (1, 0):
        leave_word(tmp_path, Report(rank, 0, f"n{rank}"))
    (tmp_path / "rank-2.json").write_text('{"rank": 2, "no')
    assert [word.rank for word in read_words(tmp_path)] == [0, 1]


def test_a_verdict_is_one_line_a_reason_and_reaches_the_state(tmp_path: Path) -> None:
    attempt = tmp_path / "preflight" / "7-0"
    attempt.mkdir(parents=True)
    verdict = Verdict({"b": ["disk: full\nof\tit", "ECC: bad"]})
    write_verdict(attempt, verdict, Links(), [Report(0, 0, "b")], {"b": 0.0})
    assert (attempt / "unfit").read_text() == "b\tdisk: full of it\nb\tECC: bad\n"
    note_unfit(tmp_path)
    written = json.loads((tmp_path / STATE_FILE).read_text())["unfit_nodes"]
    assert [(n["node"], n["reason"], n["job"]) for n in written] == [
        ("b", "disk: full of it", "7"),
        ("b", "ECC: bad", "7"),
    ]
    assert written == unfit_nodes(tmp_path)


def test_a_fit_verdict_names_nobody_and_writes_no_state(tmp_path: Path) -> None:
    write_verdict(tmp_path, Verdict(), Links(), [Report(0, 0, "a")], {})
    note_unfit(tmp_path)
    assert not (tmp_path / "unfit").exists() and not (tmp_path / STATE_FILE).exists()


def test_what_a_script_has_written_is_in_the_state_that_is_read(tmp_path: Path) -> None:
    attempt = tmp_path / "preflight" / "8-1"
    attempt.mkdir(parents=True)
    (attempt / "unfit").write_text("n3\tstart: no rank of it came\n")
    (named,) = read_state(tmp_path).unfit_nodes
    assert (named["node"], named["job"]) == ("n3", "8") and named["time"].endswith("+00:00")


def test_a_stage_that_is_still_held_changes_no_verdict(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "preflight" / "8-0"
    folder.mkdir(parents=True)
    (folder / "unfit").write_text("n3\tdisk: full\n")
    with locked(tmp_path, "stage"):
        note_unfit(tmp_path)
    assert "in use by another process" in caplog.text
    assert [entry["node"] for entry in read_state(tmp_path).unfit_nodes] == ["n3"]
