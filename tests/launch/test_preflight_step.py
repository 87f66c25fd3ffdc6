"""The step that looks at nodes, and what a job's script makes of how it ended: with fakes of
Slurm's commands that write down how they were called."""

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import profiles
import pytest
from profiles import CPU, GPU, IMAGE, RUN, profile, rendered

from toolkit.cli.verbs import console
from toolkit.launch.preflight_table import preflight_table

ON = {"preflight": {"enabled": True, "timeout_seconds": 40, "min_shm": None}}
FAKES = {
    "srun": """\
echo "srun ${*//$'\\n'/ }" >> "$CALLS"
[[ $* == *toolkit.preflight* ]] || exit 0
folder=$(echo "$STAGE"/preflight/*)
eval "$FOUND"
""",
    "scontrol": """\
case "$1 $2" in
"show hostnames") printf 'n1\\nn2\\n' ;;
"show job")
    [[ -z ${SILENT-} ]] || exit 1
    echo "JobState=RUNNING ExcNodeList=${EXCLUDED:-(null)} Requeue=1" ;;
"write batch_script") echo '#!/bin/bash' ;;
*) echo "scontrol $*" >> "$CALLS" ;;
esac
""",
    "sbatch": "[[ $* != *--exclude* || ! ${TOO_FEW-} ]]",
    "squeue": "echo",
}
LOOKED = """echo '{"rank": %d, "node": "n%d", "looked": true}' > $folder/rank-%d.json; """
JUDGED = "echo '{}' > $folder/summary.json; "
BAD = JUDGED + "printf 'n2\\tdisk: full\\n' > $folder/unfit; exit 86"


def script(tmp_path: Path, **changes: Any) -> str:
    job = rendered(tmp_path, profile(CPU, **(ON | changes)))["base"]
    return job.text.replace(str(RUN), str(tmp_path))


def run(
    tmp_path: Path, found: str, code: int, environment: dict[str, str] | None = None, **changes: Any
) -> tuple[list[str], str, str]:
    """Run a job's script; returns the calls, what it said, and the file of unfit nodes."""
    bin_folder, calls, stage = tmp_path / "bin", tmp_path / "calls", tmp_path / "base"
    bin_folder.mkdir()
    for name, text in FAKES.items():
        (bin_folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (bin_folder / name).chmod(0o755)
    (stage / "artifact").mkdir(parents=True)
    (stage / "artifact" / "artifact.json").touch()
    for need in ("corpus", "vocabulary"):
        (tmp_path / need / "artifact").mkdir(parents=True)
        (tmp_path / need / "artifact" / "artifact.json").touch()
    calls.touch()
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_CPUS_PER_TASK": "1"}
    own = {"PATH": f"{bin_folder}:{os.environ['PATH']}", "CALLS": str(calls), "STAGE": str(stage)}
    done = subprocess.run(
        ["bash", "-c", script(tmp_path, **changes)],
        env={**slurm, **own, "FOUND": found, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    (attempt,) = (stage / "preflight").iterdir()
    assert (attempt.name, (attempt / "nodes").read_text()) == ("7-0", "n1\nn2\n")
    unfit = attempt / "unfit"
    text = unfit.read_text() if unfit.is_file() else ""
    lines = [line for line in calls.read_text().splitlines() if line.startswith(("srun", "scont"))]
    return lines, done.stderr, text


def worked(calls: list[str]) -> bool:
    return any("toolkit.worker" in call for call in calls)


def test_fit_nodes_work(tmp_path: Path) -> None:
    calls, _, _ = run(tmp_path, JUDGED, 0)
    assert worked(calls) and not any("requeue" in call for call in calls)


@pytest.mark.parametrize(("had", "has"), [("(null)", "n2"), ("n[8-9]", "n[8-9],n2")])
def test_a_node_that_is_named_is_excluded_and_the_job_started_again(
    tmp_path: Path, had: str, has: str
) -> None:
    calls, said, _ = run(tmp_path, BAD, 86, {"EXCLUDED": had})
    assert calls[-2:] == ["scontrol requeue 7", f"scontrol update JobId=7 ExcNodeList={has}"]
    assert not worked(calls) and "unfit: n2\tdisk: full" in said
    record = json.loads((tmp_path / "base" / "going-on" / "base.json").read_text())
    assert (record["restarts"], record["ended"]) == (1, False)
    assert record["reason"] == "unfit: n2: started again"


def test_without_enough_other_nodes_the_job_ends_with_the_reason(tmp_path: Path) -> None:
    calls, said, _ = run(tmp_path, BAD, 86, {"TOO_FEW": "1"})
    assert not any(call.startswith("scontrol") for call in calls) and not worked(calls)
    assert "without n2 there are too few nodes for this job" in said


def test_a_job_that_may_not_be_started_again_is_not_and_excludes_nothing(tmp_path: Path) -> None:
    calls, said, _ = run(tmp_path, BAD, 86, requeue=False)
    assert not any(call.startswith("scontrol") for call in calls) and "requeue: false" in said


def test_the_node_that_left_no_word_is_named(tmp_path: Path) -> None:
    calls, _, unfit = run(tmp_path, LOOKED % (0, 1, 0) + "exit 77", 86)
    assert unfit.startswith("n2\tstart: no rank of it came to look")
    assert "scontrol update JobId=7 ExcNodeList=n2" in calls


def test_rank_0_s_node_is_named_when_it_comes_to_no_verdict(tmp_path: Path) -> None:
    words = LOOKED % (0, 1, 0) + LOOKED % (1, 2, 1)
    _, _, unfit = run(tmp_path, words + "exit 137", 86)
    assert unfit == "n1\trank 0: it came to no verdict (exit code 137)\n"


def test_a_preflight_that_starts_nowhere_names_nobody(tmp_path: Path) -> None:
    calls, said, unfit = run(tmp_path, "exit 127", 1)
    assert (len(calls), unfit) == (1, "") and "did not start on any node" in said


def test_what_is_no_node_s_fault_ends_the_job(tmp_path: Path) -> None:
    calls, said, _ = run(tmp_path, JUDGED + "exit 2", 2)
    assert len(calls) == 1 and "no node's own fault" in said


def test_a_verdict_without_a_name_stands_whoever_ended_badly_behind_it(tmp_path: Path) -> None:
    verdict = "echo '{\"fit\": true}' > $folder/summary.json; exit 124"
    assert worked(run(tmp_path, verdict, 0)[0])


def test_what_all_nodes_have_wrong_is_told_also_when_a_rank_heard_nothing(tmp_path: Path) -> None:
    calls, said, _ = run(tmp_path, JUDGED + "exit 86", 2)
    assert len(calls) == 1 and "no node's own fault" in said


def test_a_silent_controller_does_not_end_the_script_unheard(tmp_path: Path) -> None:
    calls, _, _ = run(tmp_path, BAD, 86, {"SILENT": "1"})
    assert calls[-2:] == ["scontrol requeue 7", "scontrol update JobId=7 ExcNodeList=n2"]


def test_a_folder_of_any_name_is_named_and_not_expanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tmp_path / 'a $(echo expanded) `echo expanded` "b'
    odd.mkdir()
    monkeypatch.setattr(profiles, "RUN", odd)
    _, said, _ = run(odd, "exit 127", 1)
    assert f"see {odd}/base/logs/preflight-0.log" in said


def test_a_stop_before_the_work_starts_the_job_again(tmp_path: Path) -> None:
    calls, _, _ = run(tmp_path, "exit 85", 85)
    assert calls[-1] == "scontrol requeue 7" and not worked(calls)


def commands(text: str) -> list[list[str]]:
    """Every srun of a script, in words."""
    joined = text.replace("\\\n", " ")
    lines = [line for line in joined.splitlines() if "srun --" in line]
    return [shlex.split(line[line.index("srun --") :]) for line in lines]


def test_gpus_of_several_ranks_are_looked_at_unless_the_profile_says_otherwise(
    tmp_path: Path,
) -> None:
    def looks(cluster: Any, job: str = "base") -> bool:
        return "toolkit.preflight" in rendered(tmp_path, cluster)[job].text

    assert looks(profile(GPU)) and looks(profile(CPU, **ON))
    assert not looks(profile(CPU)) and not looks(profile(GPU, preflight={"enabled": False}))
    assert not looks(profile(CPU, **ON), "vocabulary")


def test_the_ranks_are_srun_s_also_where_torchrun_starts_the_work(tmp_path: Path) -> None:
    for launch in ("srun", "torchrun"):
        look, work = commands(rendered(tmp_path, profile(GPU, launch=launch))["base"].text)
        assert {"--kill-on-bad-exit=0", "--wait=0"} <= set(look)
        assert ("--ntasks-per-node=8" in look) == (launch == "torchrun")
        assert "torch.distributed.run" not in look
        assert ("torch.distributed.run" in work) == (launch == "torchrun")


@pytest.mark.parametrize("runtime", ["pyxis", "podman", "apptainer"])
def test_it_runs_in_the_work_s_container_and_knows_its_place(tmp_path: Path, runtime: str) -> None:
    cluster = profile(GPU, container={"runtime": runtime, **IMAGE})
    look, work = commands(rendered(tmp_path, cluster)["base"].text)
    assert any(IMAGE["image"] in word for word in look)
    if runtime != "apptainer":
        assert all(
            any(name in word for word in look)
            for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURMD_NODENAME", "MASTER_ADDR")
        )
    assert len(work) > 5


def test_it_is_told_the_floors_and_how_many_gpus(tmp_path: Path) -> None:
    floors = {"min_busbw_within": 300, "min_shm": "64G"}
    (look, _) = commands(rendered(tmp_path, profile(GPU, preflight=floors))["base"].text)
    told = json.loads(look[look.index("toolkit.preflight") + 2])
    assert told == {"gpus": 8, "min_busbw_within": 300, "min_shm": "64G"}


def test_the_table_shows_figures_and_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    finding = {"check": "disk", "detail": "9 MiB free", "failed": False}
    nodes = {
        "a": {"ranks": 2, "findings": [finding], "versions": {"torch": "1"}},
        "b": {"ranks": 2, "findings": [finding | {"failed": True}], "versions": {"torch": "2"}},
    }
    summary = {"nodes": nodes, "busbw_across": {"a": 1.25}, "unfit": {"b": ["bad"]}, "common": []}
    console().print(preflight_table(summary))
    said = capsys.readouterr().out
    for text in ("9 MiB free", "failed", "1.25 GB/s", "a: torch 1", "b: torch 2", "unfit: b: bad"):
        assert text in said
