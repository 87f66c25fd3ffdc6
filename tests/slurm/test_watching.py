"""Watching a run on a Slurm without accounting that forgets ended jobs at once, and ending it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs import TOOLKIT, slurm, stages, status, toolkit, until
from lab import lab

from toolkit.launch.submissions import sent_jobs

pytestmark = pytest.mark.slurm
FIVE = """\
  more: {kind: tokenize, sources: [a.jsonl], tokenizer: vocabulary, resources: *one}
  last: {kind: tokenize, sources: [b.jsonl], tokenizer: vocabulary, resources: *one}
""".replace("*one", "{nodes: 1, ntasks_per_node: 1}")
HELD = """\
#!/bin/bash
# runs the worker as soon as it is let go
echo "waits for leave"
while [[ ! -e {leave} ]]; do sleep 0.1; done
exec {python} "$@"
"""
FORGETFUL = "MinJobAge=2"


@pytest.fixture(scope="module", autouse=True)
def forgetful() -> Iterator[Path]:
    with lab(conf=FORGETFUL) as folder:
        yield folder


@pytest.fixture
def held(folder: Path) -> Path:
    """The file that lets the workers of this test's run go on; five jobs wait for them."""
    leave = folder / "leave"
    waiting = folder / "python"
    waiting.write_text(HELD.format(leave=leave, python=sys.executable))
    waiting.chmod(0o755)
    with (folder / "c.yaml").open("a") as stream:
        stream.write(f"python: {waiting}\n")
    with (folder / "p.yaml").open("a") as stream:
        stream.write(FIVE)
    return leave


def forgotten(numbers: list[str]) -> bool:
    return not slurm("squeue", "-h", "--states=all", "-o", "%A", f"--jobs=1,{','.join(numbers)}")


def test_a_run_is_watched_cancelled_and_goes_on_though_slurm_forgets(
    folder: Path, held: Path
) -> None:
    toolkit("submit", "p.yaml", "--cluster", "c.yaml")
    run = folder / "runs" / "data"
    ids = {name: job["id"] for name, job in sent_jobs(run).items()}
    follow = subprocess.Popen(
        [*TOOLKIT, "logs", str(run), "vocabulary", "-f"], stdout=subprocess.PIPE, text=True
    )
    until(lambda: stages(run)["vocabulary"]["state"] == "running", "the first job", 30)
    first = stages(run)["vocabulary"]
    assert first["job"] == ids["vocabulary"] and first["slurm"] == "RUNNING"
    assert str(first["nodes"]).startswith("node")
    assert isinstance(first["seconds_left"], int) and first["seconds_left"] > 1000
    elsewhere = {"HOME": "/nonexistent", "COLUMNS": "80"}  # another login, another folder
    shown = status(run, **elsewhere)
    assert "4 PENDING (Dependency)" in shown and "   PENDING (Dependency)" in shown
    assert max(len(line) for line in shown.splitlines() if line[0] != "!") <= 80

    assert toolkit("cancel", str(run), "more") == "cancelled: more\n"
    until(lambda: forgotten([ids["more"]]), "the end of the cancelled job", 60)
    assert stages(run)["more"]["lost"]
    assert f"toolkit resubmit {run}" in status(run)
    sent = toolkit("resubmit", str(run))
    assert sent_jobs(run)["more"]["id"] != ids["more"]
    assert [name for name in ids if sent_jobs(run)[name]["id"] != ids[name]] == ["more"], sent

    held.touch()
    told, _ = follow.communicate(timeout=120)
    assert follow.returncode == 0
    assert "waits for leave" in told and "rank 0 of 1" in told
    until(lambda: not slurm("squeue", "-h"), "the end of all jobs", 120)
    until(lambda: forgotten([job["id"] for job in sent_jobs(run).values()]), "no memory", 60)
    rows = stages(run)
    assert {row["state"] for row in rows.values()} == {"complete"}
    assert all(row["slurm"] is None and row["elapsed_seconds"] for row in rows.values())
    assert "nothing to send" in toolkit("resubmit", str(run))


def test_a_failed_stage_says_why_and_what_to_do(folder: Path) -> None:
    (folder / "b.jsonl").write_text('{"text": 1}\n')
    toolkit("submit", "p.yaml", "--cluster", "c.yaml")
    run = folder / "runs" / "data"
    until(lambda: not slurm("squeue", "-h"), "the end of the jobs", 60)
    shown = status(run, COLUMNS="120")
    assert "FAILED" in shown and "b.jsonl" in shown
    assert f"toolkit logs {run} vocabulary" in shown and f"toolkit resubmit {run}" in shown
    rows = stages(run)
    assert rows["vocabulary"]["state"] == "failed" and rows["corpus"]["state"] != "complete"
    assert "exit code" not in toolkit("logs", str(run), "vocabulary")
    assert toolkit("logs", str(run), "vocabulary", "--job") is not None


def test_without_an_answer_the_run_folder_s_word_is_shown(
    folder: Path, held: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toolkit("submit", "p.yaml", "--cluster", "c.yaml")
    run = folder / "runs" / "data"
    until(lambda: stages(run)["vocabulary"]["state"] == "running", "the first job", 30)
    conf = Path(os.environ["SLURM_CONF"])
    away = folder / "slurm.conf"
    lines = [line for line in conf.read_text().splitlines() if "SlurmctldPort" not in line]
    away.write_text("\n".join([*lines, "SlurmctldPort=1", "MessageTimeout=2"]))
    with monkeypatch.context() as patch:
        patch.setenv("SLURM_CONF", str(away))
        shown = status(run)
        assert "the run folder's word" in shown and "vocabulary" in shown
        assert "scontrol ping" in toolkit("resubmit", str(run), code=2)
    assert stages(run)["vocabulary"]["state"] == "running"
    toolkit("cancel", str(run))


SHIM = """\
#!/bin/bash
# stands before sbatch; {what} at the third job
if [[ "$*" == *--parsable*corpus.finish.sh ]]; then
    {action}
fi
exec {real} "$@"
"""


def meddle(folder: Path, patch: pytest.MonkeyPatch, what: str, action: str) -> None:
    real = slurm("which", "sbatch").strip()
    (folder / "bin").mkdir()
    shim = folder / "bin" / "sbatch"
    shim.write_text(SHIM.format(what=what, action=action.format(real=real), real=real))
    shim.chmod(0o755)
    patch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("action", "code", "told"),
    [
        ('set -- --no-such-option "$@"', 2, "'corpus.finish' (3 of 5)"),
        ("kill -INT $PPID", 130, "interrupted"),
        ("kill -TERM $PPID", 130, "interrupted"),
    ],
)
def test_what_ends_a_submission_half_way_leaves_nothing_queued(
    folder: Path,
    held: Path,
    monkeypatch: pytest.MonkeyPatch,
    action: str,
    code: int,
    told: str,
) -> None:
    meddle(folder, monkeypatch, "is refused or interrupts", action)
    output = toolkit("submit", "p.yaml", "--cluster", "c.yaml", code=code)
    assert told in output and "nothing is queued" in output
    until(lambda: not slurm("squeue", "-h"), "an empty queue", 20)
    monkeypatch.undo()


def test_a_submission_that_is_killed_is_told_of_and_goes_on(
    folder: Path, held: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        meddle(folder, patch, "kills", '{real} "$@"; kill -KILL $PPID; exit 1')
        toolkit("submit", "p.yaml", "--cluster", "c.yaml", code=-signal.SIGKILL)
    run = folder / "runs" / "data"
    record = json.loads((run / "slurm/0001/submission.json").read_text())
    assert sum(job["id"] is not None for job in record["jobs"]) == 2
    queued = slurm("squeue", "-h", "-o", "%F").split()
    assert len(set(queued)) == 3
    assert "cut off after 3 of 5 jobs" in status(run)  # the third, whose id was not noted, too
    assert "jobs under way" in toolkit("submit", "p.yaml", "--cluster", "c.yaml", code=2)
    toolkit("resubmit", str(run))
    jobs = sent_jobs(run)
    assert {jobs[n]["id"] for n in ("vocabulary", "corpus.shards", "corpus.finish")} == set(queued)
    assert len(set(slurm("squeue", "-h", "-o", "%F").split())) == 5
    assert "cut off" not in status(run)
    assert len(toolkit("cancel", str(run)).split()) == 1 + 5


def test_two_submissions_at_once_are_one(folder: Path, held: Path) -> None:
    command = [*TOOLKIT, "submit", "p.yaml", "--cluster", "c.yaml"]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [one.communicate(timeout=60) for one in both]
    assert sorted(one.returncode for one in both) == [0, 2], said
    assert len(set(slurm("squeue", "-h", "-o", "%F").split())) == 5
    toolkit("cancel", "runs/data")
    until(lambda: not slurm("squeue", "-h"), "an empty queue", 20)
