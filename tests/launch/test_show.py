"""What ``toolkit status`` shows of a submitted run: every state, at 80 and at 120 columns."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from toolkit.artifacts import MANIFEST
from toolkit.launch import slurm, submissions
from toolkit.launch.reasons import meaning
from toolkit.launch.show import ClusterView, clock
from toolkit.launch.slurm import Job
from toolkit.launch.watching import RunStatus, StageStatus, look_at
from toolkit.pipeline.run import PIPELINE_FILE


class Folder:
    """A run of stages, and what Slurm is made to say of its jobs."""

    def __init__(self, run: Path, patch: pytest.MonkeyPatch) -> None:
        self.run = run
        self.jobs: list[dict[str, Any]] = []
        self.known: list[Job] = []
        self.stages: list[str] = []
        self.trouble: str | None = None
        patch.setattr(slurm, "look", self._look)
        patch.setattr(submissions.slurm, "here", lambda: False)

    def _look(self, ids: list[str]) -> tuple[dict[str, list[Job]], str | None]:
        found = {i: [job for job in self.known if job.id.partition("_")[0] == i] for i in ids}
        return found, self.trouble

    def stage(
        self,
        name: str,
        jobs: dict[str, list[Job]],
        state: dict[str, Any] | None = None,
        progress: dict[str, Any] | None = None,
    ) -> Path:
        """A stage with jobs, by name, and what Slurm says of the tasks of each."""
        folder = self.run / name
        folder.mkdir(parents=True)
        self.stages.append(name)
        for job, tasks in jobs.items():
            number = str(100 + len(self.jobs))
            record = {"name": job, "stage": name, "file": f"{job}.sh", "dependencies": []}
            self.jobs.append(record | {"ranks": 1, "id": number})
            self.known += [Job(**(vars(task) | {"id": number})) for task in tasks]
        if state is not None:
            (folder / "state.json").write_text(json.dumps(state))
        if state is not None and state["status"] == "complete":
            (folder / "artifact").mkdir()
            (folder / "artifact" / MANIFEST).write_text("{}")
        if progress is not None:
            (folder / "progress.json").write_text(json.dumps(progress))
        return folder

    def look(self) -> RunStatus:
        names = "".join(f"  {name}: {{}}\n" for name in self.stages)
        (self.run / PIPELINE_FILE).write_text(f"stages:\n{names}")
        sent = self.run / "slurm" / "0001"
        sent.mkdir(parents=True, exist_ok=True)
        record = {"time": "", "cluster": "lab", "file": "p.yaml", "overrides": [], "only": []}
        record |= {"cwd": "", "code": None, "folder": "0001", "jobs": self.jobs}
        (sent / "submission.json").write_text(json.dumps(record))
        return look_at(self.run)

    def one(self) -> StageStatus:
        """The only stage."""
        [row] = self.look().stages
        return row

    def shown(self, width: int) -> list[str]:
        console = Console(width=width, color_system=None, record=True, highlight=False)
        with console.capture() as capture:
            console.print(ClusterView(self.run, self.look()), crop=False)
        return [line.rstrip() for line in capture.get().splitlines()]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    return Folder(tmp_path / "runs" / "r", monkeypatch)


def attempt(status: str, **more: Any) -> dict[str, Any]:
    return {"started": datetime.now(UTC).isoformat(), "status": status, **more}


STEPS = {
    "done": 12000,
    "total": 30000,
    "unit": "iterations",
    "rate": 6.06,
    "seconds_left": 2970.0,
    "shown": {"loss": 2.34567},
}
RUNNING = Job("", "RUNNING", nodes="dgx-[001-032]", elapsed=1870, left=12530)


def many(run: Folder) -> None:
    done = {"status": "complete", "attempts": [attempt("complete")]}
    run.stage("vocabulary", {"vocabulary": [Job("", "COMPLETED", nodes="n1", elapsed=61)]}, done)
    again = {"status": "running", "attempts": [attempt("interrupted"), attempt("running")]}
    run.stage("base", {"base": [RUNNING]}, again, STEPS)
    waiting = [Job("", "PENDING", "Dependency")]
    run.stage("a-stage-of-a-long-name", {"a-stage-of-a-long-name": waiting})
    run.stage("scores", {"scores": [Job("", "PENDING", "QOSMaxJobsPerUserLimit")]})


def test_at_120_columns_a_stage_is_a_line(run: Folder) -> None:
    many(run)
    lines = run.shown(120)
    assert max(map(len, lines)) <= 120
    assert [" ".join(line.split()) for line in lines[:5]] == [
        "stage state job attempt elapsed left step loss",
        "✓ vocabulary complete 100 1 1:01 on n1",
        "▸ base running 101 2 31:10 3:28:50 12000/30000 2.346",
        "6.060/s, 49:30 to go, on dgx-[001-032]",
        "· a-stage-of-a-long-name pending 102 PENDING (Dependency)",
    ]
    assert lines[0].index("left") == lines[2].index("3:28:50")


def test_at_80_columns_no_word_is_broken(run: Folder) -> None:
    many(run)
    lines = run.shown(80)
    assert max(map(len, lines)) <= 80
    assert lines[2:6] == [
        "▸  base                    running   101  2        31:10    3:28:50",
        "   step 12000/30000, loss 2.346, 6.060/s, 49:30 to go, on dgx-[001-032]",
        "·  a-stage-of-a-long-name  pending   102",
        "   PENDING (Dependency)",
    ]
    assert "   a limit of your account or QOS: sacctmgr show assoc, sacctmgr show qos" in lines


@pytest.mark.parametrize(
    ("state", "word"),
    [("OUT_OF_MEMORY", "memory_per_node"), ("TIMEOUT", "time_limit"), ("NODE_FAIL", "exclude")],
)
def test_what_slurm_ended_is_its_own_reason(run: Folder, state: str, word: str) -> None:
    died = {"status": "running", "attempts": [attempt("running")]}
    folder = run.stage("base", {"base": [Job("", state, nodes="n3", elapsed=5)]}, died)
    (folder / "errors").mkdir()  # what another rank makes of it is no reason
    error = {"time": datetime.now(UTC).timestamp(), "message": "connection reset by peer"}
    (folder / "errors/rank-1.json").write_text(json.dumps(error))
    row = run.one()
    assert row.state.status == "failed"
    assert row.state.error == {"message": f"Slurm ended it: {state} on n3"}
    assert word in row.advice
    lines = run.shown(100)
    assert f"!  to go on from what was saved: toolkit resubmit {run.run}" in lines


def test_a_rank_s_reason_is_that_of_the_last_attempt(run: Folder) -> None:
    failed = {"status": "failed", "attempts": [attempt("failed")], "error": {"message": "rank 0"}}
    folder = run.stage("base", {"base": [Job("", "FAILED", "NonZeroExitCode", "n3")]}, failed)
    (folder / "errors").mkdir()
    now = datetime.now(UTC).timestamp()
    for rank, (time, message) in enumerate(((now - 9999, "old"), (now + 2, "late"), (now, "why"))):
        record = json.dumps({"time": time, "message": message})
        (folder / f"errors/rank-{rank}.json").write_text(record)
    assert (run.one().state.error or {})["message"] == "why"


def test_a_job_that_ended_before_its_ranks_began_shows_its_log(run: Folder) -> None:
    folder = run.stage("base", {"base": [Job("", "FAILED", "NonZeroExitCode", "n3")]})
    (folder / "logs").mkdir()
    (folder / "logs/slurm-100.log").write_text("line 9: KEY: is not set\n")
    assert (run.one().state.error or {})["message"] == "FAILED on n3: line 9: KEY: is not set"


def test_of_a_chain_the_link_at_work_is_shown(run: Folder) -> None:
    links = {
        "base.1": [Job("", "FAILED", "NonZeroExitCode", "n1")],
        "base.2": [RUNNING],
        "base.3": [Job("", "PENDING", "Dependency")],
    }
    folder = run.stage("base", links, {"status": "running", "attempts": [attempt("running")]})
    (folder / "going-on").mkdir()
    note = {"job": "101", "link": 2, "links": 3, "restarts": 1, "max_restarts": 2, "step": 40}
    note |= {"ended": False, "reason": "saved at step 40: goes on in link 2 of 3", "time": ""}
    (folder / "going-on/base.json").write_text(json.dumps(note))
    row = run.one()
    assert (row.job, row.state.status, row.slurm) == ("101", "running", "RUNNING")
    assert any("link 2 of 3, on dgx-[001-032]" in line for line in run.shown(120))
    run.known = []
    assert run.one().job == "101"  # by what it noted itself


def test_a_complete_stage_was_its_last_job_s(run: Folder) -> None:
    done = {"status": "complete", "attempts": [attempt("complete")], "seconds": 4.0}
    run.stage("corpus", {"corpus.shards": [Job("", "COMPLETED")], "corpus.finish": []}, done)
    row = run.one()
    assert (row.job, row.elapsed, row.lost) == ("101", 4.0, False)


def test_unfit_nodes_are_named(run: Folder) -> None:
    bad = {"node": "n7", "reason": "all-reduce 3 GB/s", "time": "", "job": "100"}
    state = {"status": "pending", "attempts": [], "unfit_nodes": [bad]}
    run.stage("base", {"base": [Job("", "PENDING", "BeginTime")]}, state)
    assert "   unfit: n7 (all-reduce 3 GB/s)" in run.shown(100)


def test_a_task_of_an_array_that_failed_is_counted(run: Folder) -> None:
    tasks = [Job("", "COMPLETED"), Job("", "FAILED", nodes="n2"), Job("", "RUNNING", nodes="n3")]
    run.stage("corpus", {"corpus.shards": tasks, "corpus.finish": [Job("", "PENDING")]})
    row = run.one()
    assert (row.job, row.state.status) == ("100", "running")
    assert row.slurm == "1 COMPLETED, 1 FAILED, 1 RUNNING" and row.nodes == "n3"


def test_jobs_that_nobody_knows_are_told_once(run: Folder) -> None:
    for number in range(7):
        run.stage(f"s{number}", {f"s{number}": []})
    lines = run.shown(100)
    assert sum("unknown to Slurm" in line for line in lines) == 7
    assert "s0, s1, s2, s3, s4 and 2 more" in lines[-2] and run.look().ended
    run.trouble = "squeue gave no answer within 60 s"
    lines = run.shown(100)
    assert not any("unknown" in line for line in lines)
    assert lines[-1].startswith(f"!  {run.trouble}: what stands here is the run folder's word")
    assert not run.look().ended


def test_a_job_of_another_name_is_not_ours(run: Folder) -> None:
    run.stage("base", {"base": [Job("", "RUNNING", name="somebody.else")]})
    assert run.one().lost


@pytest.mark.parametrize(
    ("state", "reason", "word"),
    [
        ("PENDING", "launch failed requeued held", "scontrol release 7"),
        ("PENDING", "JobHeldUser", "scontrol release 7"),
        ("PENDING", "ReqNodeNotAvail, UnavailableNodes:n1", "sinfo -R"),
        ("PENDING", "AssocGrpNodeLimit", "sacctmgr"),
        ("PENDING", "user env retrieval failed requeued held", "scontrol release 7"),
        ("FAILED", "JobLaunchFailure", "mounted"),
        ("PENDING", "Priority", ""),
    ],
)
def test_what_a_reason_means(state: str, reason: str, word: str) -> None:
    assert word in meaning(state, reason, "7") and bool(word) == bool(meaning(state, reason, "7"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1-02:03:04", 93784),
        ("4:05", 245),
        ("00:00:18", 18),
        ("2-00:00:00", 172800),
        ("UNLIMITED", None),
        ("NOT_SET", None),
        ("", None),
    ],
)
def test_slurm_s_durations(text: str, expected: int | None) -> None:
    assert slurm.seconds(text) == expected
    assert expected is None or slurm.seconds(clock(expected)) == expected
