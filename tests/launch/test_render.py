"""What Slurm gets: golden files, what bash and shellcheck say, and the traps of a batch script.

``TOOLKIT_GOLDEN=write pytest tests/launch/test_render.py`` writes the golden files anew.
"""

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles import CPU, GPU, IMAGE, TEXT, profile, rendered

from toolkit import __version__
from toolkit.launch.cluster import Cluster
from toolkit.launch.render import _directive, _quote, render_submit

GOLDEN = Path(__file__).parent / "golden"
CLUSTERS: dict[str, Cluster] = {
    "cpu": profile(CPU, max_tasks=3, modules=["python/3.11"], run_root="/shared/runs"),
    "srun": profile(GPU, secrets=["WANDB_API_KEY"], environment={"NCCL_IB_HCA": "=mlx5_0"}),
    "chain": profile(GPU, chain=3),
    "torchrun": profile(GPU, launch="torchrun", requeue=False),
    "pyxis": profile(
        GPU, container={"runtime": "pyxis", **IMAGE}, secret_files={"HF_TOKEN": "/keys/hf"}
    ),
    "apptainer": profile(GPU, container={"runtime": "apptainer", **IMAGE}),
    "podman": profile(GPU, container={"runtime": "podman", **IMAGE}, network="efa"),
}
CHOSEN = [
    *(("cpu", job) for job in ("vocabulary", "corpus.shards", "corpus.finish", "base")),
    *((cluster, "base") for cluster in ("srun", "torchrun", "pyxis", "apptainer", "podman")),
    ("pyxis", "corpus.shards"),
    *(("chain", f"base.{link}") for link in (1, 2, 3)),
]
SUBMITS = {"submit.sh": "cpu", "submit.chain.sh": "chain"}
AFTER = """\
  base-hf: {kind: export, checkpoint: base}
  other: {kind: train-tokenizer, sources: [sample:python-docs], vocab_size: 300}
  more:
    kind: tokenize
    sources: [sample:python-docs]
    tokenizer: other
  again:
    kind: pretrain
    data: more
    load: base
    model: {preset: llama-mini}
    train_iters: 20
    resources: {chain: 2}
"""
"""What follows a chain: one stage that needs it alone, and one that needs another stage, too."""


@pytest.mark.parametrize(("cluster", "job"), CHOSEN)
def test_a_script_is_the_golden_one(tmp_path: Path, cluster: str, job: str) -> None:
    text = rendered(tmp_path, CLUSTERS[cluster])[job].text.replace(__version__, "VERSION")
    path = GOLDEN / f"{cluster}.{job}.sh"
    if os.environ.get("TOOLKIT_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()


def test_no_golden_file_is_left_over() -> None:
    assert {p.name for p in GOLDEN.iterdir()} == {f"{c}.{j}.sh" for c, j in CHOSEN} | set(SUBMITS)


@pytest.mark.parametrize("file", SUBMITS)
def test_the_commands_are_the_golden_ones(tmp_path: Path, file: str) -> None:
    jobs = rendered(tmp_path, CLUSTERS[SUBMITS[file]], TEXT + AFTER)
    text = render_submit(list(jobs.values()), Path("/shared/runs/tiny"))
    if os.environ.get("TOOLKIT_GOLDEN") == "write":
        (GOLDEN / file).write_text(text)
    assert text == (GOLDEN / file).read_text()


def write_all(folder: Path) -> list[str]:
    """Every script of every cluster, written; returns the paths."""
    paths = []
    for name, cluster in CLUSTERS.items():
        jobs = rendered(folder, cluster, TEXT + AFTER)
        texts = {job.file: job.text for job in jobs.values()}
        texts["submit.sh"] = render_submit(list(jobs.values()), Path("/shared/runs/tiny"))
        for file, text in texts.items():
            path = folder / f"{name}.{file}"
            path.write_text(text)
            paths.append(str(path))
    return paths


def test_bash_reads_every_script(tmp_path: Path) -> None:
    for path in write_all(tmp_path):
        done = subprocess.run(["bash", "-n", path], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), path


def test_shellcheck_has_nothing_to_say(tmp_path: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("needs shellcheck, which is not installed here (apt-get install shellcheck)")
    done = subprocess.run(
        ["shellcheck", *write_all(tmp_path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def options(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if "#SBATCH" in line]


def test_an_array_has_a_task_for_each_rank_and_a_limit(tmp_path: Path) -> None:
    jobs = rendered(tmp_path, CLUSTERS["cpu"])
    shards = jobs["corpus.shards"]
    assert "--array=0-7%3" in options(shards.text)
    assert "--nodes=1" in options(shards.text) and "--ntasks-per-node=1" in options(shards.text)
    assert "RANK=$SLURM_ARRAY_TASK_ID WORLD_SIZE=8" in shards.text
    assert "export TOOLKIT_PHASE=shards\n" in shards.text
    assert not any("array" in option for option in options(jobs["corpus.finish"].text))
    assert jobs["corpus.finish"].dependencies == ("corpus.shards",)
    assert jobs["base"].dependencies == ("corpus.finish",)


def test_a_rank_gets_its_share_of_a_node(tmp_path: Path) -> None:
    jobs = rendered(tmp_path, profile(CPU))
    assert {"--cpus-per-task=16", "--mem=64000M"} <= set(options(jobs["corpus.shards"].text))
    assert {"--cpus-per-task=64", "--mem=256000M"} <= set(options(jobs["vocabulary"].text))
    half = TEXT.replace("nodes: 2, ntasks_per_node: 8", "nodes: 1, ntasks_per_node: 4")
    base = rendered(tmp_path, profile(GPU, exclusive=False), half)["base"]
    expected = {"--gpus-per-node=h100:4", "--cpus-per-task=28", "--mem=1024000M"}
    assert expected <= set(options(base.text))


def test_a_stage_s_resources_win_over_the_profile(tmp_path: Path) -> None:
    own = "resources: {partition: debug, qos: high, memory_per_node: 8G, time_limit: '0:10:00'}"
    text = TEXT.replace("vocab_size: 300}", f"vocab_size: 300, {own}}}")
    found = options(rendered(tmp_path, profile(GPU), text)["vocabulary"].text)
    assert {"--partition=debug", "--qos=high", "--mem=8192M", "--time=00:10:00"} <= set(found)


@pytest.mark.parametrize("launch", ["srun", "torchrun"])
def test_the_two_launch_modes_are_never_mixed(tmp_path: Path, launch: str) -> None:
    text = rendered(tmp_path, profile(GPU, launch=launch))["base"].text
    by_srun = launch == "srun"
    assert ("--ntasks-per-node=8" in options(text)) == by_srun
    assert ("torch.distributed.run" in text) == (not by_srun)
    assert ("--nproc-per-node=8" in text) == (not by_srun)
    cores = next(o for o in options(text) if o.startswith("--cpus-per-task"))
    assert cores == f"--cpus-per-task={28 if by_srun else 224}"
    assert "OMP_NUM_THREADS=28" in text


def test_a_rank_that_ends_well_ends_no_other(tmp_path: Path) -> None:
    """Rank 0 hashes the artifact for minutes after the others are done."""
    for launch in ("srun", "torchrun"):
        text = rendered(tmp_path, profile(GPU, launch=launch))["base"].text
        work = next(li for li in text.splitlines() if li.startswith("srun --kill-on-bad-exit=1"))
        assert " --wait=0 " in work


def test_podman_gets_the_job_s_gpus_and_the_fabric(tmp_path: Path) -> None:
    podman = {"runtime": "podman", **IMAGE}
    text = rendered(tmp_path, profile(GPU, container=podman))["base"].text
    assert text.count("--env=CUDA_VISIBLE_DEVICES") == 2  # the preflight's, and the work's
    assert text.count("--device=/dev/infiniband") == 2
    for cluster in (profile(GPU, container=podman, network="none"), profile(CPU, container=podman)):
        assert "/dev/infiniband" not in rendered(tmp_path, cluster)["base"].text


def test_the_profile_s_threads_win_over_the_cores(tmp_path: Path) -> None:
    for threads, environment in ((28, {}), (4, {"OMP_NUM_THREADS": 4})):
        text = rendered(tmp_path, profile(GPU, environment=environment))["base"].text
        set_to = [line for line in text.splitlines() if "OMP_NUM_THREADS=" in line]
        assert set_to == [f"export OMP_NUM_THREADS={threads}"]


def test_cuda_connections_follow_the_layout(tmp_path: Path) -> None:
    line = "export CUDA_DEVICE_MAX_CONNECTIONS=1\n"
    assert line in rendered(tmp_path, profile(GPU))["base"].text
    degrees = {
        "tensor_model_parallel_size: 1": False,
        "context_parallel_size: 2": True,
        "context_parallel_size: 2, use_megatron_fsdp: true": False,
        "pipeline_model_parallel_size: 2": False,
    }
    for degree, one in degrees.items():
        text = TEXT.replace("tensor_model_parallel_size: 2", degree)
        assert (line in rendered(tmp_path, profile(GPU), text)["base"].text) is one


def test_the_value_of_a_secret_is_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "swordfish")
    for job in rendered(tmp_path, CLUSTERS["srun"]).values():
        assert "swordfish" not in job.text
        assert any(o.startswith("--export=") and "WANDB_API_KEY" in o for o in options(job.text))
        assert "set -x" not in job.text


def test_requeue_or_not_and_never_both(tmp_path: Path) -> None:
    for requeue, option in ((True, "--requeue"), (False, "--no-requeue")):
        text = rendered(tmp_path, profile(GPU, requeue=requeue))["base"].text
        assert option in options(text)
        assert ("scontrol requeue" in text) == requeue


def test_a_chain_is_sent_in_place_of_a_requeue(tmp_path: Path) -> None:
    jobs = rendered(tmp_path, CLUSTERS["chain"], TEXT + AFTER)
    for name in ("base.1", "base.2", "base.3"):
        assert "--no-requeue" in options(jobs[name].text)
        assert "scontrol requeue" not in jobs[name].text
    assert "--requeue" in options(jobs["vocabulary"].text)  # one process: no chain by the profile
    own = TEXT.replace("nodes: 2, ntasks_per_node: 8", "nodes: 2, ntasks_per_node: 8, chain: 1")
    assert "--requeue" in options(rendered(tmp_path, CLUSTERS["chain"], own)["base"].text)


def test_what_needs_a_chain_waits_for_any_link_or_for_its_end(tmp_path: Path) -> None:
    jobs = rendered(tmp_path, CLUSTERS["chain"], TEXT + AFTER)
    ids = {"corpus.finish": "9", "base.1": "11", "base.2": "12", "base.3": "13", "more": "20"}

    def after(name: str, known: dict[str, str]) -> str:
        [word] = [w for w in jobs[name].command(known, "x.sh") if w.startswith("--dependency")]
        return word.removeprefix("--dependency=")

    assert after("base.1", ids) == "afterok:9"
    assert after("base.2", ids) == "afterok:9,afterany:11"
    assert after("base-hf", ids) == "afterok:11?afterok:12?afterok:13"
    left = {"base.2": "12", "base.3": "13"}  # of a chain that is under way
    assert after("base-hf", left) == "afterok:12?afterok:13"
    assert after("again.1", ids) == "afterok:20,afterany:13"
    assert after("again.2", ids | {"again.1": "21"}) == "afterok:20,afterany:13:21"
    with pytest.raises(AssertionError, match="no id of base"):
        jobs["base-hf"].command({}, "x.sh")


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_a_quoted_value_reaches_bash_as_it_is(value: str) -> None:
    script = f"printf %s {_quote(value)}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    assert done.stdout.decode() == value


def test_a_directive_with_blanks_is_quoted() -> None:
    assert _directive("--output=/a/%j.log") == "--output=/a/%j.log"
    assert _directive('--output=/a b/"c".log') == '--output="/a b/\\"c\\".log"'
    assert _directive("--requeue") == "--requeue"


def test_fifty_stages_render_within_a_second(tmp_path: Path) -> None:
    stages = "".join(
        f"  s{i}: {{kind: train-tokenizer, sources: [sample:python-docs], vocab_size: 300}}\n"
        for i in range(50)
    )
    started = time.perf_counter()
    jobs = rendered(tmp_path, CLUSTERS["cpu"], f"name: many\nstages:\n{stages}")
    assert len(jobs) == 50
    assert time.perf_counter() - started < 1.0


def test_what_is_exported_reaches_a_container(tmp_path: Path) -> None:
    def exported(text: str) -> set[str]:
        return {
            line.removeprefix("export ").partition("=")[0]
            for line in text.splitlines()
            if line.startswith("export ") and "SLURM_EXPORT" not in line and "SRUN_" not in line
        }

    for runtime in ("pyxis", "podman"):
        text: Any = rendered(tmp_path, CLUSTERS[runtime])["base"].text
        named = text.partition("--container-env=" if runtime == "pyxis" else "podman run")[2]
        assert not {name for name in exported(text) if name not in named.splitlines()[0]}
