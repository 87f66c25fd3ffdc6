"""Stages sent from Python, by sbatch and by submitit alike, on a real Slurm without accounting."""

import hashlib
import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest
from jobs import files, slurm, step, toolkit, until, wait, worker_of

import toolkit as api
from toolkit.errors import StageError, ToolkitError
from toolkit.launch.submissions import sent_jobs

submitit = pytest.importorskip("submitit", reason="needs submitit, which is not installed here")

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.usefixtures("slurm")]
BOTH = pytest.mark.parametrize("submit_with", ["sbatch", "submitit"])


def profile(folder: Path, **settings: object) -> str:
    """The lab's profile with more settings."""
    with (folder / "c.yaml").open("a") as stream:
        stream.writelines(f"{name}: {json.dumps(value)}\n" for name, value in settings.items())
    return "c.yaml"


def worker_first(folder: Path, *lines: str) -> str:
    """A Python that runs lines of bash in each worker first, and not where submitit runs."""
    python = folder / "python"
    own = "\n".join(lines)
    python.write_text(
        "#!/bin/bash\nif [[ $* == *toolkit.worker* ]]; then\n"
        f'{own}\nfi\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    return str(python)


def submitit_job(run: Path, number: str) -> "submitit.SlurmJob":
    """A job as submitit itself sees it."""
    return submitit.SlurmJob(run / "slurm" / "submitit", number)


def sent_script(run: Path, number: str) -> str:
    """What submitit sent to Slurm as a job."""
    return (run / "slurm" / "submitit" / f"{number}_submission.sh").read_text()


@BOTH
def test_stages_sent_from_python_give_their_artifacts(folder: Path, submit_with: str) -> None:
    cluster = profile(folder, submit_with=submit_with)
    stages = api.submit("p.yaml", cluster, run_dir="runs/from python")
    run = folder / "runs" / "from python"
    corpus = stages["corpus"].result(timeout=120)
    assert corpus.type == "dataset" and corpus.folder == run / "corpus" / "artifact"
    assert stages["vocabulary"].done() and stages["vocabulary"].result().type == "tokenizer"
    assert stages["corpus"].status().state.status == "complete"
    assert toolkit("status", str(run)).count("complete") == 2
    shards, finish = stages["corpus"].job_ids
    states = slurm("squeue", "-h", "-r", "--states=all", "-o", "%i %T", "-j", shards).splitlines()
    assert sorted(states) == [f"{shards}_{i} COMPLETED" for i in range(4)]
    assert "rank 3 of 4" in toolkit("logs", str(run), "corpus", "--rank", "3")
    if submit_with == "submitit":  # test_submitting.py does the same with sbatch
        toolkit("run", "p.yaml", "--run-dir", "runs/local")
        names = ("*.bin", "*.idx")
        here = files(folder / "runs" / "local" / "corpus" / "artifact", names)
        assert here and files(corpus.folder, names) == here
    again = api.submit("p.yaml", cluster, run_dir=run)  # complete: nothing is sent
    assert again["corpus"].job_ids == [shards, finish]


def test_what_render_shows_is_what_submitit_sends_and_holds_no_secret(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANTED_KEY", "swordfish-0451")
    asking = worker_first(folder, 'printf "%s" "$PLANTED_KEY" | sha256sum')
    cluster = profile(folder, submit_with="submitit", secrets=["PLANTED_KEY"], python=asking)
    toolkit("render", "p.yaml", "--cluster", cluster, "-o", "out")
    toolkit("submit", "p.yaml", "--cluster", cluster)
    run = folder / "runs" / "data"
    jobs = {name: job["id"] for name, job in sent_jobs(run).items()}
    shown = "".join(slurm("scontrol", "show", "job", "-d", number) for number in jobs.values())
    wait(run)
    assert toolkit("status", str(run)).count("complete") == 2
    for name, number in jobs.items():
        sent = sent_script(run, number).splitlines()
        waits = [line for line in sent if re.match("#SBATCH --(dependency|kill-on-invalid)", line)]
        assert [line for line in sent if line not in waits] == (
            (folder / "out" / f"{name}.sh").read_text().splitlines()
        )
    assert f"#SBATCH --dependency=afterok:{jobs['corpus.shards']}" in waits
    result = submitit_job(run, jobs["corpus.finish"]).result()
    assert Path(result) == run / "corpus" / "artifact"
    read = [p.read_bytes() for p in run.rglob("*") if p.is_file() and "code" not in p.parts]
    everything = b"".join(read) + shown.encode()
    assert b"swordfish" not in everything
    assert hashlib.sha256(b"swordfish-0451").hexdigest().encode() in everything


@BOTH
def test_why_a_stage_failed_comes_out_of_result(folder: Path, submit_with: str) -> None:
    with (folder / "a.jsonl").open("a") as stream:
        stream.write("\nno JSON\n")
    stages = api.submit("p.yaml", profile(folder, submit_with=submit_with))
    number = stages["vocabulary"].job_ids[0]
    with pytest.raises(StageError, match=rf"job {number}\) failed: .*JSON") as caught:
        stages["vocabulary"].result(timeout=120)
    assert str(caught.value.where).endswith("a.jsonl:401")
    with pytest.raises(StageError, match=r"it waits for 'vocabulary', which failed: .*JSON"):
        stages["corpus"].result(timeout=60)
    assert stages["corpus"].done()
    if submit_with == "submitit":
        with pytest.raises(submitit.core.utils.FailedJobError, match=r"a.jsonl:401: .*JSON"):
            submitit_job(stages["vocabulary"].run, number).result()


@BOTH
def test_a_cancelled_stage_ends_its_result_and_can_be_sent_again(
    folder: Path, submit_with: str
) -> None:
    (folder / "held").touch()
    held = worker_first(folder, f"[[ ! -e {folder}/held ]] || exec sleep 600")
    stages = api.submit("p.yaml", profile(folder, submit_with=submit_with, python=held))
    run, vocabulary = stages["vocabulary"].run, stages["vocabulary"]
    until(lambda: vocabulary.status().state.status == "running", "a start", 60)
    with pytest.raises(TimeoutError, match="'vocabulary' has not ended within 1 s"):
        vocabulary.result(timeout=1)
    with pytest.raises(ToolkitError, match="has jobs under way"):
        api.submit("p.yaml", "c.yaml")
    assert vocabulary.cancel() == ["vocabulary", "corpus.shards", "corpus.finish"]
    for stage in stages.values():
        with pytest.raises(StageError, match=r"did not end: .*cancelled"):
            stage.result(timeout=60)
    (folder / "held").unlink()
    toolkit("resubmit", str(run))
    assert stages["corpus"].result(timeout=120).type == "dataset"


def test_training_goes_on_after_its_time_limit_and_ends_the_same(
    folder: Path, trained: dict[str, str]
) -> None:
    limit = ["stages.base.resources.time_limit=0:01:00"]
    stages = api.submit("p.yaml", profile(folder, submit_with="submitit"), overrides=limit)
    base, run = stages["base"], stages["base"].run
    [number] = base.job_ids
    # A minute leaves between 0 and 30 s before the signal: too few to start in on busy cores.
    slurm("scontrol", "update", f"JobId={number}", "TimeLimit=20")
    log = run / "slurm" / "submitit" / f"{number}_0_log.out"
    until(lambda: step(run) >= 15, "the fifteenth step")
    os.kill(worker_of(run), signal.SIGSTOP)  # until Slurm's signal: it must not be done before
    slurm("scontrol", "update", f"JobId={number}", "TimeLimit=1")
    until(lambda: "this job is timed-out" in log.read_text(), "the time limit's signal", 90)
    until(lambda: "PENDING" in slurm("squeue", "-h", "-o", "%T", "-j", number), "a requeue", 90)
    slurm("scontrol", "update", f"JobId={number}", "TimeLimit=20")
    assert files(base.result(timeout=200).folder, ("*.distcp",)) == trained
    assert "Restarts=1" in slurm("scontrol", "show", "job", number)
    assert f"Requeued job {number} (9 remaining timeouts)" in log.read_text()
    note = json.loads((run / "base" / "going-on" / "base.json").read_text())
    assert note["restarts"] == 1 and note["step"] >= 15
    said = toolkit("logs", str(run), "base", "-n", "1000")
    assert said.index("stopped by SIGUSR1") < said.index("resumed from iteration")
    assert submitit_job(run, number).task(0).result() == str(run / "base" / "artifact")


CONTAINER = """\
#!/bin/bash
# a stand-in for {name}: notes what it was told, and runs the command behind the image here
echo "$*" >> {told}
while [[ $1 != docker:toolkit ]]; do shift; done
shift
exec "$@"
"""


@pytest.mark.parametrize(
    ("runtime", "flags"),
    [
        ("apptainer", ["exec --bind={run}:{run} --bind=/data:/data:ro docker:toolkit "]),
        ("podman", ["run --rm", "--volume={run}:{run}", "--env=RANK ", "--env=OMP_WAIT_POLICY "]),
        (
            "pyxis",
            ["CONTAINER_IMAGE=docker:toolkit", "CONTAINER_MOUNTS={run}:{run},/data:/data:ro"],
        ),
    ],
)
def test_a_rank_runs_in_its_container(
    folder: Path, monkeypatch: pytest.MonkeyPatch, runtime: str, flags: list[str]
) -> None:
    if runtime == "pyxis" and "--container-image" not in slurm("srun", "--help"):
        pytest.skip("this Slurm has neither Pyxis nor the lab's stand-in for it")
    (folder / "bin").mkdir()
    command = folder / "bin" / runtime
    command.write_text(CONTAINER.format(name=runtime, told=folder / "told"))
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    python = worker_first(folder, f"env | grep PYXIS_SHIM >> {folder}/told")
    mounts = ["/data:/data:ro"]
    stages = api.submit(
        "p.yaml",
        profile(
            folder,
            submit_with="submitit",
            container={"runtime": runtime, "image": "docker:toolkit", "mounts": mounts},
            python=python,
        ),
        only=["vocabulary"],
    )
    assert list(stages) == ["vocabulary"]
    assert stages["vocabulary"].result(timeout=120).type == "tokenizer"
    told = (folder / "told").read_text()
    for flag in flags:
        assert flag.format(run=stages["vocabulary"].run) in told
