"""How a job goes on: rendered scripts run by bash, with stand-ins for Slurm's commands.

tests/slurm does the same with a real Slurm; here are the answers that one can't be made to give.
"""

import json
import os
import signal
import stat
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import profiles
import pytest
from profiles import CPU, profile, rendered

from toolkit.launch.going_on import read_going_on

COMMANDS = {
    "srun": 'echo "srun $*" >> "$CALLS"; [[ -z ${SLEEP-} ]] || sleep "$SLEEP"\n'
    '[[ -z ${MISTAKE-} ]] || touch "$MISTAKE"; exit "$CODE"',
    "scancel": 'echo "scancel $*" >> "$CALLS"',
    "scontrol": """\
case $1 in
hostnames | show) [[ $2 == hostnames ]] && echo node1 || echo "PreemptTime=${PREEMPTED:-None}" ;;
requeue) echo "scontrol $*" >> "$CALLS"; [[ -z ${REFUSED-} ]] || { echo "$REFUSED" >&2; exit 1; } ;;
esac""",
    "squeue": """\
case "$*" in
*=%r) echo "${REASON:-None}" ;;
*'=%o') echo "$SCRIPTS/base.1.sh" ;;
*) printf '%s\\n' "11|$SCRIPTS/base.2.sh" "12|$SCRIPTS/base.3.sh" "13|/other/base.3.sh" ;;
esac""",
}


@dataclass
class Cluster:
    """The rendered scripts of one run, and what stands in for Slurm."""

    folder: Path
    run: Path
    scripts: dict[str, Path]
    environment: dict[str, str]

    def start(self, job: str = "base", **environment: Any) -> subprocess.Popen[str]:
        (self.folder / "calls").write_text("")
        more = {name: str(value) for name, value in environment.items()}
        return subprocess.Popen(
            ["bash", str(self.scripts[job])],
            env={**self.environment, "SLURM_JOB_ID": "42", **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def ends(self, job: str = "base", **environment: Any) -> tuple[int, str]:
        """The exit code of a job's script, and what it printed."""
        script = self.start(job, **environment)
        output = script.communicate(timeout=30)[0]
        return script.returncode, output

    def calls(self, *commands: str) -> list[str]:
        lines = (self.folder / "calls").read_text().splitlines()
        return [line for line in lines if line.split()[0] in (commands or ("scontrol", "scancel"))]

    def reach(self, step: int) -> None:
        record = {"done": step, "total": 20, "unit": "iterations"}
        (self.run / "base" / "progress.json").write_text(json.dumps(record))


def make(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Cluster:
    run = folder / "run"
    monkeypatch.setattr(profiles, "RUN", run)
    scripts = {}
    for name, job in rendered(folder, profile(CPU, **changes)).items():
        scripts[name] = folder / job.file
        scripts[name].write_text(job.text)
    (folder / "bin").mkdir()
    for name, text in COMMANDS.items():
        (folder / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / "bin" / name).chmod(stat.S_IRWXU)
    for stage in ("vocabulary", "corpus"):
        (run / stage / "artifact").mkdir(parents=True)
        (run / stage / "artifact" / "artifact.json").touch()
    (run / "base").mkdir()
    environment = {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "CALLS": str(folder / "calls"),
        "SCRIPTS": str(folder),
        "SLURM_JOB_NODELIST": "node1",
        "SLURM_CPUS_PER_TASK": "1",
    }
    return Cluster(folder, run, scripts, environment)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return make(tmp_path, monkeypatch, max_restarts=2)


def test_a_crash_is_started_again_while_it_comes_further(cluster: Cluster) -> None:
    cluster.reach(7)
    code, output = cluster.ends(CODE=137)
    assert (code, cluster.calls()) == (137, ["scontrol requeue 42"])
    assert "ended with 137 at step 7: started again" in output
    noted = read_going_on(cluster.run / "base")["base"]
    assert (noted.job, noted.restarts, noted.max_restarts, noted.step) == ("42", 1, 2, 7)
    assert not noted.ended
    script = cluster.start(CODE=137, SLEEP=1, SLURM_RESTART_COUNT=1)
    while not cluster.calls("srun"):
        time.sleep(0.02)
    noted = read_going_on(cluster.run / "base")["base"]  # what is shown while it runs again
    assert (noted.restarts, noted.reason) == (1, "ended with 137 at step 7: started again")
    output = script.communicate(timeout=30)[0]
    assert (script.returncode, cluster.calls()) == (137, [])
    assert "at step 7, no further than before (step 7): not started again" in output
    assert read_going_on(cluster.run / "base")["base"].ended


def test_restarts_that_the_job_asked_for_are_counted_and_no_others(cluster: Cluster) -> None:
    for step, preempted in ((3, ""), (4, "2026-11-20T18:00:00"), (6, "")):
        cluster.reach(step)
        cluster.ends(CODE=85, PREEMPTED=preempted, SLURM_RESTART_COUNT=7)
        assert cluster.calls() == ["scontrol requeue 42"]
    assert read_going_on(cluster.run / "base")["base"].restarts == 2
    cluster.reach(9)
    code, output = cluster.ends(CODE=85)
    assert (code, cluster.calls()) == (85, [])
    assert "not started again, since that was done 2 times (max_restarts)" in output
    cluster.ends(CODE=85, SLURM_JOB_ID=43)  # another job begins to count anew
    assert cluster.calls() == ["scontrol requeue 43"]


def test_what_went_well_and_a_mistake_are_not_started_again(cluster: Cluster) -> None:
    code, output = cluster.ends(CODE=2)
    assert (code, cluster.calls()) == (2, [])
    assert "a mistake that starting again does not mend" in output
    (cluster.run / "base" / "artifact").mkdir()
    (cluster.run / "base" / "artifact" / "artifact.json").touch()
    assert cluster.ends(CODE=0) == (0, "")
    noted = read_going_on(cluster.run / "base")["base"]
    assert (noted.ended, noted.reason) == (True, "")


def test_one_rank_s_mistake_counts_if_it_is_of_this_start(cluster: Cluster) -> None:
    path = cluster.run / "base" / "errors" / "rank-1.json"
    path.parent.mkdir()
    path.write_text('{\n  "time": 1.0,\n  "exit_code": 2,\n  "message": "x"\n}\n')
    cluster.reach(3)
    assert cluster.ends(CODE=143)[0] == 143  # srun ended a rank; the mistake is an old one
    assert cluster.calls() == ["scontrol requeue 42"]
    cluster.reach(5)
    code, output = cluster.ends(CODE=143, MISTAKE=str(path))
    assert (code, cluster.calls()) == (2, [])
    assert "a mistake that starting again does not mend" in output


def test_ranks_that_were_stopped_quietly_are_not_taken_for_done(cluster: Cluster) -> None:
    assert cluster.ends(CODE=0)[0] == 85
    assert cluster.calls() == ["scontrol requeue 42"]


def test_a_requeue_that_is_refused_is_told(cluster: Cluster) -> None:
    refusal = 'Requested operation is "presently" disabled'
    code, output = cluster.ends(CODE=85, REFUSED=refusal)
    assert code == 85
    assert f"scontrol requeue was refused ({refusal})" in output
    noted = read_going_on(cluster.run / "base")["base"]
    assert noted.ended and "presently" in noted.reason


def test_what_can_not_be_counted_is_not_started_again(cluster: Cluster) -> None:
    cluster.reach(7)
    cluster.ends(CODE=1)
    record = cluster.run / "base" / "going-on" / "base.json"
    before = record.read_text()
    record.with_name("base.json.new").mkdir()  # as on a full disk: nothing new can be written
    cluster.reach(9)
    code, output = cluster.ends(CODE=1)
    assert (code, cluster.calls(), record.read_text()) == (1, [], before)
    assert "not started again, since that can't be noted" in output
    cluster.ends(CODE=85, PREEMPTED="2026-11-20T18:00:00")
    assert cluster.calls() == ["scontrol requeue 42"]  # which is Slurm's own, and not counted


def test_a_stage_of_one_process_goes_on_when_stopped_and_not_when_it_fails(
    cluster: Cluster,
) -> None:
    assert cluster.ends("vocabulary", CODE=130)[0] == 130
    assert cluster.calls() == ["scontrol requeue 42"]
    code, output = cluster.ends("vocabulary", CODE=1)
    assert (code, cluster.calls()) == (1, [])
    assert "vocabulary: ended with 1" in output


def test_a_task_of_an_array_asks_for_itself_alone(cluster: Cluster) -> None:
    ids = {"SLURM_ARRAY_JOB_ID": "42", "SLURM_ARRAY_TASK_ID": "7"}
    assert cluster.ends("corpus.shards", CODE=130, **ids)[0] == 130
    assert cluster.calls() == ["scontrol requeue 42_7"]
    assert list(read_going_on(cluster.run / "corpus")) == ["corpus.shards-7"]


def told_to_end(cluster: Cluster, job: str, **environment: Any) -> tuple[int, str]:
    script = cluster.start(job, CODE=0, SLEEP=5, **environment)
    deadline = time.monotonic() + 20
    while not cluster.calls("srun"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    script.send_signal(signal.SIGTERM)
    output = script.communicate(timeout=30)[0]
    return script.returncode, output


def test_at_its_time_limit_a_job_that_has_not_saved_goes_on(cluster: Cluster) -> None:
    cluster.reach(7)
    assert told_to_end(cluster, "base")[0] == 143
    assert cluster.calls() == []
    code, output = told_to_end(cluster, "base", REASON="TimeLimit")
    assert (code, cluster.calls()) == (143, ["scontrol requeue 42"])
    assert "the time limit came before the save was done at step 7: started again" in output


def test_a_chain_goes_on_by_its_links_and_ends_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = make(tmp_path, monkeypatch, chain=3)
    cluster.reach(7)
    code, output = cluster.ends("base.1", CODE=85)
    assert (code, cluster.calls()) == (85, [])
    assert "stopped at step 7: goes on in link 2 of 3" in output
    code, output = told_to_end(cluster, "base.2", SLURM_JOB_ID=11, REASON="TimeLimit")
    assert (code, cluster.calls()) == (143, ["scancel 12"])
    assert "at step 7, no further than before (step 7): not started again" in output
    code, output = cluster.ends("base.3", CODE=0, SLURM_JOB_ID=12)
    assert (code, cluster.calls("srun")) == (1, [])
    assert "not started: the time limit came before the save was done at step 7, no" in output


def test_the_last_link_and_a_link_that_has_nothing_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = make(tmp_path, monkeypatch, chain=3)
    code, output = cluster.ends("base.2", CODE=0)
    assert (code, cluster.calls()) == (1, ["scancel 12"])
    assert "not started: the link before this one never ran" in output
    cluster.reach(7)
    cluster.ends("base.1", CODE=85)
    cluster.reach(9)
    code, output = cluster.ends("base.3", CODE=85)
    assert code == 85
    assert "stopped at step 9: this was the last of 3 links" in output
    (cluster.run / "base" / "artifact").mkdir()
    (cluster.run / "base" / "artifact" / "artifact.json").touch()
    code, output = cluster.ends("base.1", CODE=1)
    assert (code, cluster.calls("srun", "scancel")) == (0, ["scancel 11 12"])


def test_what_a_job_takes_must_be_there(cluster: Cluster) -> None:
    (cluster.run / "corpus" / "artifact" / "artifact.json").unlink()
    code, output = cluster.ends(CODE=0)
    assert (code, cluster.calls("srun")) == (2, [])
    assert f"what it takes is not there: {cluster.run}/corpus/artifact" in output


def test_without_requeue_and_chain_a_job_says_that_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = make(tmp_path, monkeypatch, requeue=False)
    code, output = cluster.ends(CODE=85)
    assert (code, cluster.calls()) == (85, [])
    assert "since the profile has requeue: false and no chain" in output


def test_a_note_that_is_not_whole_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "going-on").mkdir()
    (tmp_path / "going-on" / "base.json").write_text('{"job": "1", "li')
    assert read_going_on(tmp_path) == {}
