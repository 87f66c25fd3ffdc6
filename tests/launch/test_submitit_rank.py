"""What submitit calls in a task, in submitit's own runner, with stand-ins for Slurm and the worker.

tests/slurm/test_submitit_jobs.py does the same on a real Slurm; here is what that can't be made to
do at will: which signal comes when, and what the worker answers.
"""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from toolkit.launch.going_on import GoingOn, read_going_on
from toolkit.launch.submitit_rank import Rank

pytest.importorskip("submitit", reason="needs submitit, which is not installed here")
from submitit.core.utils import DelayedSubmission, pickle_load

ROOT = Path(__file__).resolve().parents[2]
SAVING = """\
told() { echo told; echo '{"done": 12, "unit": "iterations"}' > progress.json; exit CODE; }
trap told USR1
trap 'echo asked to end; exit 130' TERM
touch started
while :; do sleep 0.05; done"""


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "base"
    (folder / "logs").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    for name in ("bash", "date", "hostname", "mkdir", "sleep", "touch"):
        found = shutil.which(name)
        assert found
        (tmp_path / "bin" / name).symlink_to(found)
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text(f'#!/bin/bash\necho "$*" >> {tmp_path}/calls\n')
    scontrol.chmod(stat.S_IRWXU)
    return folder


def rank_of(stage: Path, worker: str, **settings: Any) -> Rank:
    """A rank whose worker is a script of bash, run in the stage's folder."""
    found = Rank(
        folder=str(stage),
        command=["bash", "-c", f"cd {stage}\n{worker}"],
        rendezvous=True,
        array=False,
        requeue=True,
        max_restarts=2,
        time_limit=60,
        name="base",
    )
    return replace(found, **settings)


class Task:
    """One start of a task, as submitit's script starts it."""

    def __init__(self, stage: Path, rank: Rank | None, *numbers: int, **slurm: object) -> None:
        self.folder = stage.parent / "submitit"
        self.folder.mkdir(exist_ok=True)
        slurm = {"JOB_ID": 7, "NTASKS": 1, "PROCID": 0, **slurm}
        array = f"{slurm.get('ARRAY_JOB_ID')}_{slurm.get('ARRAY_TASK_ID')}"
        name = array if "ARRAY_JOB_ID" in slurm else str(slurm["JOB_ID"])
        self.result = self.folder / f"{name}_{slurm['PROCID']}_result.pkl"
        if rank is not None:
            call = DelayedSubmission(rank, *numbers)
            call.set_timeout(60, 2)
            call.dump(self.folder / f"{name}_submitted.pkl")
        path = str(stage.parent.parent / "bin")  # and no scontrol that may be installed here
        environment = {"PATH": path, "PYTHONPATH": str(ROOT), "SUBMITIT_EXECUTOR": "slurm"}
        environment |= {f"SLURM_{name}": str(value) for name, value in slurm.items()}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "submitit.core._submit", str(self.folder)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def code(self) -> int:
        return self.process.wait(30)

    def tell(self, number: signal.Signals, stage: Path) -> int:
        """Signal the task and all that it started, once the worker works; its exit code."""
        deadline = time.monotonic() + 30
        while not (stage / "started").exists():
            assert time.monotonic() < deadline and self.process.poll() is None
            time.sleep(0.02)
        (stage / "started").unlink()
        os.killpg(self.process.pid, number)
        return self.code()


def calls(stage: Path) -> list[str]:
    path = stage.parent.parent / "calls"
    return path.read_text().splitlines() if path.exists() else []


def finish(stage: Path) -> None:
    (stage / "artifact").mkdir()
    (stage / "artifact" / "artifact.json").write_text("{}")


def test_the_worker_learns_its_place_and_writes_its_rank_s_log(stage: Path) -> None:
    finish(stage)
    worker = 'echo "$RANK/$WORLD_SIZE $LOCAL_RANK/$LOCAL_WORLD_SIZE"'
    place = {"NTASKS": 4, "PROCID": 3, "LOCALID": 1, "JOB_NUM_NODES": 2}
    assert Task(stage, rank_of(stage, worker), **place).code() == 0
    log = (stage / "logs" / "rank-3.log").read_text()
    assert "rank 3 of 4" in log and log.endswith("\n3/4 1/2\n")
    task = Task(stage, rank_of(stage, "exit 0"))
    assert task.code() == 0
    assert pickle_load(task.result) == ("success", str(stage / "artifact"))


def test_a_task_of_an_array_is_the_rank_that_it_is_called_with(stage: Path) -> None:
    rank = rank_of(stage, "true", rendezvous=False, array=True)
    task = Task(stage, rank, 3, ARRAY_JOB_ID=7, ARRAY_TASK_ID=3)
    assert task.code() == 0 and task.result.name == "7_3_0_result.pkl"
    assert (stage / "logs" / "rank-3.log").is_file()


def test_a_worker_s_reason_and_exit_code_are_the_task_s(stage: Path) -> None:
    record = json.dumps({"message": "no such file", "where": "a.jsonl", "hint": "make it"})
    worker = f"mkdir errors; echo '{record}' > errors/rank-0.json; exit 3"
    task = Task(stage, rank_of(stage, worker))
    assert task.code() == 3
    outcome, trace = pickle_load(task.result)
    assert outcome == "error" and trace.endswith("StageError: a.jsonl: no such file\n  make it\n")


@pytest.mark.parametrize(
    ("worker", "code", "message"),
    [
        ("kill -KILL $$", 137, "rank 0 was killed by SIGKILL"),
        ("no-such-command", 127, "rank 0 ended with 127"),
    ],
)
def test_what_a_worker_could_not_say_is_said_for_it(
    stage: Path, worker: str, code: int, message: str
) -> None:
    task = Task(stage, rank_of(stage, worker))
    assert task.code() == code
    assert json.loads((stage / "errors" / "rank-0.json").read_text())["message"] == message
    assert message in pickle_load(task.result)[1]


def test_a_time_limit_has_the_worker_save_and_the_job_requeued_and_counted(stage: Path) -> None:
    rank = rank_of(stage, SAVING.replace("CODE", "0"))
    task = Task(stage, rank)
    assert task.tell(signal.SIGUSR2, stage) == 255
    assert "told" in (stage / "logs" / "rank-0.log").read_text()
    assert calls(stage) == ["requeue 7"] and not task.result.exists()
    note = read_going_on(stage)["base"]
    assert (note.job, note.restarts, note.max_restarts, note.step) == ("7", 1, 2, 12)
    assert note.reason == "stopped ahead of the time limit at step 12: started again"
    again = pickle_load(task.folder / "7_submitted.pkl")
    assert again.function == rank and again._timeout_countdown == 2  # early: not its limit
    finish(stage)
    started = Task(stage, None)  # from the pickle that the checkpoint wrote
    assert started.tell(signal.SIGUSR2, stage) == 0  # it was done by then
    assert calls(stage) == ["requeue 7"]
    assert pickle_load(started.result)[0] == "success"


def test_a_time_limit_that_came_no_further_is_left_to_the_script(stage: Path) -> None:
    (stage / "going-on").mkdir()
    before = {"job": "7", "link": 1, "links": 1, "restarts": 1, "max_restarts": 2, "step": 12}
    note = GoingOn(**before, ended=False, reason="", time="")  # type: ignore[arg-type]
    (stage / "going-on" / "base.json").write_text(json.dumps(note.__dict__))
    rank = rank_of(stage, SAVING.replace("CODE", "0"), time_limit=0)
    assert Task(stage, rank).tell(signal.SIGUSR2, stage) == 0  # without its artifact: saved
    assert calls(stage) == []
    other = Task(stage, rank, JOB_ID=8)  # another job's steps are not held against it
    assert other.tell(signal.SIGUSR2, stage) == 255


@pytest.mark.parametrize("why", ["no requeue", "max_restarts", "no scontrol"])
def test_what_submitit_is_not_to_requeue_ends_with_the_worker_s_code(stage: Path, why: str) -> None:
    if why == "no scontrol":  # as in a container
        (stage.parent.parent / "bin" / "scontrol").unlink()
    rank = rank_of(
        stage,
        SAVING.replace("CODE", "85"),
        requeue=why != "no requeue",
        max_restarts=0 if why == "max_restarts" else 2,
    )
    task = Task(stage, rank)
    assert task.tell(signal.SIGUSR2, stage) == 85
    assert calls(stage) == [] and not task.result.exists()


def test_a_worker_that_could_not_listen_yet_was_stopped_all_the_same(stage: Path) -> None:
    rank = rank_of(stage, "touch started; exec sleep 60")
    assert Task(stage, rank).tell(signal.SIGUSR2, stage) == 255
    assert calls(stage) == ["requeue 7"] and read_going_on(stage)["base"].step == 0


def test_a_signal_before_there_is_a_worker_has_the_job_requeued(
    stage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(stage.parent.parent / "bin"))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    rank = rank_of(stage, "true")
    for restarts in (1, 2):  # not a time limit's: it is not held against the job
        assert rank.checkpoint().function == rank
        assert read_going_on(stage)["base"].restarts == restarts
    with pytest.raises(SystemExit) as caught:
        rank.checkpoint()
    assert caught.value.code == 130


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGUSR1, 85, "told"),
        (signal.SIGTERM, 130, "asked to end"),
        (signal.SIGUSR2, 85, "told"),
    ],
)
def test_signals_are_passed_on_by_ranks_that_submitit_takes_for_slaves(
    stage: Path, number: signal.Signals, code: int, said: str
) -> None:
    task = Task(stage, rank_of(stage, SAVING.replace("CODE", "85")), NTASKS=2, PROCID=1)
    assert task.tell(number, stage) == code
    assert said in (stage / "logs" / "rank-1.log").read_text()
    assert calls(stage) == []
