"""What submitit is told and makes of it, with stand-ins for Slurm's commands."""

import pickle
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from profiles import CPU, GPU, IMAGE, RUN, TEXT, profile
from pydantic import ValidationError
from stand_ins import lay_out
from typer.testing import CliRunner

from toolkit.cli import app
from toolkit.errors import ToolkitError
from toolkit.launch.cluster import Cluster
from toolkit.launch.render import Target
from toolkit.launch.render import render_job as by_sbatch
from toolkit.launch.rendered import RenderedJob
from toolkit.launch.spec import run_specs
from toolkit.launch.submissions import read_submissions
from toolkit.launch.with_submitit import render_job
from toolkit.pipeline.run import Run, fresh_tasks
from toolkit.plan.stages import load_checked

pytest.importorskip("submitit", reason="needs submitit, which is not installed here")
ROOT = Path(__file__).resolve().parents[2]
SUBMITIT = {"submit_with": "submitit"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    found = lay_out(tmp_path, monkeypatch)
    with (found / "c.yaml").open("a") as stream:
        stream.write("submit_with: submitit\n")
    return found


def jobs_of(folder: Path, cluster: Cluster, run: Path = RUN) -> dict[str, tuple[RenderedJob, ...]]:
    """Every job of a pipeline, as submitit has it and as sbatch has it."""
    file = folder / "pipeline.yaml"
    file.write_text(TEXT)
    loaded = load_checked(file)
    specs = run_specs(
        Run(run, tuple(fresh_tasks(loaded, run))), loaded.graph.needs, "/venv/bin/python"
    )
    target = Target(cluster, "there", "tiny", run / "code" / "0123456789abcdef")
    return {spec.name: (render_job(spec, target), by_sbatch(spec, target)) for spec in specs}


def options(job: RenderedJob) -> set[str]:
    lines = [line for line in job.text.splitlines() if line.startswith("#SBATCH ")]
    assert len({line.partition("=")[0] for line in lines}) == len(lines)  # each stands once
    return {line.removeprefix("#SBATCH ") for line in lines}


def exports(job: RenderedJob) -> set[str]:
    return {line for line in job.text.splitlines() if line.startswith("export ")}


def toolkit(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, words)
    return done.exit_code, done.output


def test_a_job_has_sbatch_s_options_but_for_the_signal(tmp_path: Path) -> None:
    cluster = profile(GPU, **SUBMITIT, max_tasks=3, qos="high", options=["--switches=1"])
    for submitit, sbatch in jobs_of(tmp_path, cluster).values():
        ours, theirs = options(submitit), options(sbatch)
        assert theirs - ours == {"--signal=USR1@300"}
        assert ours - theirs == {"--signal=USR2@300", "--wckey=submitit"}


def test_a_job_has_sbatch_s_environment_and_submitit_s_own(tmp_path: Path) -> None:
    cluster = profile(GPU, **SUBMITIT, environment={"NCCL_IB_HCA": "=mlx5_0"})
    for submitit, sbatch in jobs_of(tmp_path, cluster).values():
        more = exports(submitit) - exports(sbatch)
        assert more == {
            "export SUBMITIT_EXECUTOR=slurm",
            "export SUBMITIT_PREEMPT_SIGNAL=USR2",
        }
        assert exports(sbatch) <= exports(submitit)


@pytest.mark.parametrize("runtime", ["none", "pyxis", "apptainer", "podman"])
def test_who_runs_in_the_container(tmp_path: Path, runtime: str) -> None:
    container = {"runtime": runtime, **(IMAGE if runtime != "none" else {})}
    job, _ = jobs_of(tmp_path, profile(GPU, **SUBMITIT, container=container))["base"]
    srun = next(line for line in job.text.splitlines() if line.startswith("srun "))
    assert "--kill-on-bad-exit=1 --wait=0" in srun
    assert ("--container-image=/images/toolkit.img" in srun) == (runtime == "pyxis")
    assert (f"--container-mounts={RUN}:{RUN},/data:/data:ro" in srun) == (runtime == "pyxis")
    wrapped = runtime in ("apptainer", "podman")
    python = sys.executable if wrapped else "/venv/bin/python"
    assert f"{python} -u -m submitit.core._submit {RUN}/slurm/submitit" in srun
    command = list(job.rank.command)  # type: ignore[attr-defined]
    worker = ["/venv/bin/python", "-m", "toolkit.worker", f"{RUN}/base"]
    assert command[-4:] == worker and (command[0] == runtime) == wrapped
    if wrapped:
        assert "/images/toolkit.img" in command and any(f"={RUN}:{RUN}" in w for w in command)


def test_bash_and_shellcheck_have_nothing_to_say(tmp_path: Path) -> None:
    paths = []
    clusters = {
        "gpu": profile(GPU, **SUBMITIT, secrets=["WANDB_API_KEY"]),
        "cpu": profile(CPU, **SUBMITIT, modules=["python/3.11"], secret_files={"KEY": "/key"}),
        "pyxis": profile(GPU, **SUBMITIT, container={"runtime": "pyxis", **IMAGE}),
    }
    for name, cluster in clusters.items():
        for job, _ in jobs_of(tmp_path, cluster).values():
            path = tmp_path / f"{name}.{job.file}"
            path.write_text(job.text)
            paths.append(str(path))
            done = subprocess.run(["bash", "-n", path], capture_output=True, check=False)
            assert (done.returncode, done.stderr) == (0, b"")
    if shutil.which("shellcheck") is None:
        pytest.skip("needs shellcheck, which is not installed here (apt-get install shellcheck)")
    few = [path for path in paths if path.endswith(("base.sh", "shards.sh"))]
    done = subprocess.run(["shellcheck", *few], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_a_folder_that_submitit_would_take_for_its_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match="submitit takes '%' for its own"):
        jobs_of(tmp_path, profile(GPU, **SUBMITIT), tmp_path / "100%j")


def test_without_submitit_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ToolkitError, match="not installed here") as caught:
        jobs_of(tmp_path, profile(CPU, **SUBMITIT))
    extra = re.search(r"pip install 'megatron-toolkit\[(\w+)\]'", str(caught.value.hint))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert extra and "submitit" in project["optional-dependencies"][extra[1]][0]


@pytest.mark.parametrize("setting", [{"launch": "torchrun"}, {"chain": 3, "requeue": False}])
def test_what_submitit_can_t_do_is_refused_in_a_profile(setting: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=r"submitit (starts every rank itself|requeues)"):
        profile(GPU, **SUBMITIT, **setting)


def test_a_stage_s_own_chain_is_refused(folder: Path) -> None:
    text = (folder / "p.yaml").read_text()
    (folder / "p.yaml").write_text(text.replace("nodes: 2,", "chain: 3, nodes: 2,"))
    code, output = toolkit("check", "p.yaml", "--cluster", "c.yaml")
    assert code == 2 and "stages.corpus.resources.chain: submitit requeues" in output


def test_every_job_is_sent_with_its_pickles_and_no_secret(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANTED_KEY", "swordfish")
    with (folder / "c.yaml").open("a") as stream:
        stream.write("secrets: [PLANTED_KEY]\nmax_tasks: 1\n")
    code, output = toolkit("submit", "p.yaml", "--cluster", "c.yaml")
    assert code == 0, output
    run = folder / "runs" / "two"
    [submission] = read_submissions(run)
    assert {job["name"]: job["id"] for job in submission.jobs} == {
        "vocabulary": "101",
        "corpus.shards": "102",
        "corpus.finish": "103",
    }
    sent = {n: (folder / "sent" / f"{n}.sh").read_text() for n in (101, 102, 103)}
    assert "--dependency" not in sent[101]
    assert "#SBATCH --dependency=afterok:101\n" in sent[102]
    assert "#SBATCH --kill-on-invalid-dep=yes\n" in sent[102]
    assert "#SBATCH --array=0-1%1\n" in sent[102]
    assert "#SBATCH --dependency=afterok:102\n" in sent[103]
    pickles = {p.name: p.read_bytes() for p in (run / "slurm" / "submitit").glob("*.pkl")}
    assert set(pickles) == {f"{n}_submitted.pkl" for n in ("101", "102_0", "102_1", "103")}
    assert pickle.loads(pickles["102_1_submitted.pkl"]).args == (1,)
    assert not any(b"swordfish" in data for data in pickles.values())
    assert "swordfish" not in "".join(sent.values())
    assert not (run / "slurm" / "0001" / "submit.sh").exists()
    assert (run / "slurm" / "0001" / "corpus.shards.sh").read_text() in sent[102].replace(
        "#SBATCH --dependency=afterok:101\n", ""
    ).replace("#SBATCH --kill-on-invalid-dep=yes\n", "")


def test_a_refusal_half_way_takes_everything_back(folder: Path) -> None:
    (folder / "refused").write_text("job-name=two.corpus.finish\n")
    code, output = toolkit("submit", "p.yaml", "--cluster", "c.yaml")
    assert code == 2
    assert "'corpus.finish' (3 of 3): sbatch refused: no more jobs for you" in output
    assert "scancel --quiet 101 102" in (folder / "calls").read_text()
    assert read_submissions(folder / "runs" / "two")[0].withdrawn


def test_render_writes_what_submitit_alone_can_send(folder: Path) -> None:
    code, output = toolkit("render", "p.yaml", "--cluster", "c.yaml", "-o", "out")
    assert code == 0 and "submitit sends them" in output
    names = {path.name for path in (folder / "out").iterdir()}
    assert names == {"vocabulary.sh", "corpus.shards.sh", "corpus.finish.sh"}
    assert "submitit.core._submit" in (folder / "out" / "vocabulary.sh").read_text()
    assert "submit.sh" not in toolkit("render", "p.yaml", "--cluster", "c.yaml")[1]
