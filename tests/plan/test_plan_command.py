"""``toolkit plan``, as it is typed; and finished runs, as they are read back."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from plan_shapes import H100
from typer.testing import CliRunner

from toolkit.cli import app
from toolkit.errors import ToolkitError
from toolkit.megatron.config import PretrainConfig
from toolkit.plan.config import Planning
from toolkit.plan.cost import cost_of, parse_tokens
from toolkit.plan.measured import read_measured
from toolkit.plan.memory import GIB, largest, memory_by_stage
from toolkit.plan.sizing import hardware_of
from toolkit.plan.throughput import Estimator
from toolkit.view.plan import PARTS

PIPELINE = """\
name: big
stages:
  vocabulary: {kind: train-tokenizer, sources: [sample:python-docs], vocab_size: 128256}
  corpus: {kind: tokenize, sources: [sample:python-docs], tokenizer: vocabulary}
  base:
    kind: pretrain
    data: corpus
    train_iters: 1000
    micro_batch_size: 1
    global_batch_size: 256
    seq_length: 8192
    model: {preset: llama-3-70b}
    parallel:
      tensor_model_parallel_size: 4
      pipeline_model_parallel_size: 8
      virtual_pipeline_model_parallel_size: 5
      sequence_parallel: true
    fp8: hybrid
    fp8_recipe: tensorwise
    fp8_param: true
    grad_reduce_in_fp32: false
    resources: {nodes: 8, ntasks_per_node: 8}
"""
CLUSTER = """\
scheduler: slurm
node: {cpus: 224, gpus: 8, gpu_type: h100}
time_limit: "4:00:00"
network: infiniband
planning: {gpu_hour: 2.5, watts: 1275, pue: 1.2}
"""


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "big.yaml").write_text(PIPELINE)
    (tmp_path / "dgx.yaml").write_text(CLUSTER)
    return str(tmp_path / "big.yaml"), str(tmp_path / "dgx.yaml")


def said(*command: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["plan", *command], env={"COLUMNS": "200"})
    assert done.exit_code == code, done.output
    return done.output


def test_the_table(files: tuple[str, str]) -> None:
    out = said(files[0], "--cluster", files[1], "--tokens", "15T")
    assert "70,553,706,496 parameters" in out
    assert "64 x h100: TP4 PP8 VPP5 DP2" in out
    rows = [line.split() for line in out.splitlines()]
    assert [row[0] for row in rows if row[1:2] in (["2.4B"], ["2.14B"])] == list("01234567")
    assert "79.6 GiB: fits" in out
    assert "tokens/s/GPU" in out
    assert "15T tokens (213 for each parameter): 7,152,558 steps" in out
    assert "USD" in out
    assert "MWh at 1,275 W a GPU" in out
    assert "Besiroglu" in out


def test_data_may_lie_elsewhere(files: tuple[str, str]) -> None:
    elsewhere = [
        files[0],
        "stages.base.data=/elsewhere/text",
        "stages.base.model.vocab_size=128256",
    ]
    assert "tokens/s/GPU" in said(*elsewhere, "--cluster", files[1])
    refused = CliRunner().invoke(app, ["check", *elsewhere])
    assert refused.exit_code == 2 and "looked for /elsewhere/text" in refused.output
    assert "did you mean 'corpus'" in said(
        files[0], "stages.base.data=corpsu", "--cluster", files[1], code=2
    )


def test_more_gpus_than_a_job_may_have(files: tuple[str, str]) -> None:
    limited = Path(files[1])
    limited.write_text(CLUSTER + "limits: {nodes: 8}\n")
    command = [files[0], "--cluster", str(limited), "--gpus"]
    assert "128 GPUs, where a job may have 64 (8 nodes of 8)" in said(*command, "128")
    assert "a job may have" not in said(*command, "64")


def test_what_does_not_fit_says_so(files: tuple[str, str]) -> None:
    layout = "stages.base.parallel={tensor_model_parallel_size: 4, sequence_parallel: true}"
    out = said(files[0], layout, "--cluster", files[1])
    assert "does not fit" in out
    assert "base: does not fit; with --search" in out
    assert "with --search" not in said(files[0], "--cluster", files[1])


def test_check_warns_of_what_will_not_fit(
    files: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolkit.launch.slurm.here", lambda: False)

    def warned(*overrides: str) -> str:
        command = ["check", files[0], "--cluster", files[1], *overrides]
        done = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
        assert done.exit_code == 0, done.output
        return done.output

    assert "needs about" not in warned()
    layout = "{tensor_model_parallel_size: 4, sequence_parallel: true}"
    assert "base: its fullest rank needs about" in warned(f"stages.base.parallel={layout}")
    profile = Path(files[1])
    profile.write_text(CLUSTER.replace("h100", "h1000"))
    assert "no constants for the GPU 'h1000': whether a training fits" in warned()
    profile.write_text(CLUSTER.replace(", gpu_type: h100", ""))
    assert "names no type of its GPUs" in warned()


@pytest.mark.parametrize(
    ("sbatch", "code"),
    [
        ("Could not establish a configuration source", 0),
        ("Unable to contact slurm controller (connect failure)", 0),
        ("invalid partition specified: batch", 2),
    ],
)
def test_check_holds_no_file_to_a_slurm_that_is_not_there(
    files: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sbatch: str, code: int
) -> None:
    script = tmp_path / "bin" / "sbatch"
    script.parent.mkdir()
    script.write_text(f"#!/bin/sh\necho 'sbatch: error: {sbatch}' >&2; exit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent), prepend=os.pathsep)
    profile = Path(files[1])
    profile.write_text(CLUSTER + f"run_root: {tmp_path}\n")
    done = CliRunner().invoke(app, ["check", files[0], "--cluster", files[1]])
    assert done.exit_code == code, done.output
    assert sbatch in done.output
    assert ("Slurm itself was not asked" in done.output) == (code == 0)


def test_the_search(files: tuple[str, str]) -> None:
    out = said(files[0], "--cluster", files[1], "--search")
    assert "TP4 PP8 VPP5 DP2, MBS 1" in out
    assert "would be faster, and needs" in out
    assert "% uneven stages" in out


OTHERS = {
    "as-it-is": {},
    "recomputes": {
        "recompute_granularity": "full",
        "recompute_method": "uniform",
        "recompute_num_layers": 1,
    },
    "gathers-beside-work": {
        "parallel": {
            "tensor_model_parallel_size": 8,
            "sequence_parallel": True,
            "overlap_grad_reduce": True,
            "overlap_param_gather": True,
            "tp_comm_overlap": True,
        }
    },
    "stages-of-its-own": {
        "parallel": {
            "tensor_model_parallel_size": 4,
            "pipeline_model_parallel_size": 8,
            "sequence_parallel": True,
            "pipeline_model_parallel_layout": "Et*10|(t*10|)*6t*10L",
        }
    },
    "experts": {
        "model": {"preset": "mixtral-8x7b"},
        "parallel": {"expert_model_parallel_size": 8, "moe_grouped_gemm": True},
    },
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_first_put_into_the_file_is_checked_and_planned_alike(
    name: str, files: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a search prints replaces the stage's own settings: ``check`` takes it, and ``plan`` says
    of it what the search said."""
    monkeypatch.setattr("toolkit.launch.slurm.here", lambda: False)
    settings = yaml.safe_load(PIPELINE)
    settings["stages"]["base"] |= OTHERS[name]
    file = tmp_path / "given.yaml"
    file.write_text(yaml.safe_dump(settings))
    out = said(str(file), "--cluster", files[1], "--search")
    again = yaml.safe_load(out.partition("the first, in the stage:")[2])
    found = json.loads(said(str(file), "--cluster", files[1], "--search", "--json"))
    first = found["stages"][0]["search"]["best"][0]
    assert again == first["settings"]

    settings["stages"]["base"] |= again
    file.write_text(yaml.safe_dump(settings))
    done = CliRunner().invoke(app, ["check", str(file), "--cluster", files[1]])
    assert done.exit_code == 0, done.output
    planned = json.loads(said(str(file), "--cluster", files[1], "--json"))["stages"][0]
    assert planned["layout"] == first["layout"]
    assert planned["speed"] == first["speed"]
    assert planned["fits"]


def test_json_has_the_whole_tables(files: tuple[str, str]) -> None:
    command = (files[0], "--cluster", files[1], "--tokens", "15T", "--search", "--json")
    found = json.loads(said(*command))
    stage = found["stages"][0]
    assert stage["parameters"] == 70_553_706_496
    assert [row["stage"] for row in stage["memory"]] == list(range(8))
    for row in stage["memory"]:
        parts = [row[f"{name}_bytes"] for name, _, _ in PARTS]
        assert sum(parts) == pytest.approx(row["total_bytes"], abs=len(parts))
    spent = stage["speed"]["spent_seconds"]
    assert sum(spent.values()) == pytest.approx(stage["speed"]["step_seconds"])
    cost = stage["cost"]
    assert cost["gpu_hours"] == pytest.approx(cost["days"] * 24 * 64)
    assert cost["price"] == pytest.approx(2.5 * cost["gpu_hours"])
    best = stage["search"]["best"]
    assert best[0]["why"] == ""
    assert all(row["slower"] > 0 and row["why"] for row in best[1:])
    refused = json.loads(said(files[0], "--cluster", files[1], "--gpus", "48", "--json", code=2))
    assert refused["stages"][0].keys() == {"name", "violations", "notes"}


def test_a_layout_of_its_own(files: tuple[str, str]) -> None:
    """Megatron's notation: which rank has what, its memory, and that the search does without."""
    changes = (
        "stages.base.parallel.virtual_pipeline_model_parallel_size=null",
        'stages.base.parallel.pipeline_model_parallel_layout="Et*9|(t*10|)*3t*14|t*6|t*10|t*11L"',
    )
    out = said(files[0], *changes, "--cluster", files[1])
    assert "layout Et*9|(t*10|)*3t*14|t*6|t*10|t*11L" in out
    told = "rank 0: embedding + 9; ranks 1 to 3: 10; rank 4: 14; rank 5: 6; rank 6: 10; rank 7: 11"
    assert f"layers: {told} + output" in " ".join(out.split())
    found = json.loads(said(files[0], *changes, "--cluster", files[1], "--search", "--json"))
    stage = found["stages"][0]
    assert stage["layers"] == [[9], [10], [10], [10], [14], [6], [10], [11]]
    weights = [row["weights_bytes"] for row in stage["memory"]]
    assert weights[4] - weights[3] == 4 * weights[3] / 10
    best = stage["search"]["best"][0]["settings"]["parallel"]
    assert "pipeline_model_parallel_layout" not in best


def test_why_nothing_was_found(files: tuple[str, str]) -> None:
    out = said(files[0], "--cluster", files[1], "--gpus", "8", "--search", code=2)
    assert re.search(r"no layout fits: the smallest, TP\d .*, needs \d+\.\d GiB of the 79\.6", out)
    out = said(files[0], "--cluster", files[1], "--gpus", "7", "--search", code=2)
    assert "no layout of 7 GPUs is valid" in out
    assert "256 is not a multiple of 7" in out
    longer = ("stages.base.seq_length=131072", "--gpus", "1024", "--search")
    out = said(files[0], "--cluster", files[1], *longer, code=2)
    assert "131072 is longer than the model's max_position_embeddings" in out.partition("search")[2]


def test_other_gpus_than_the_file_asks(files: tuple[str, str]) -> None:
    """The file's own layout is for 64: on 48 it is refused, and one is found in its place."""
    out = said(files[0], "--cluster", files[1], "--gpus", "48", "--search")
    assert "48" in out
    assert "! " in out
    assert "48 x h100: TP" in out
    out = said(files[0], "--cluster", files[1], "--gpus", "48", code=2)
    assert "! base: " in out
    assert "tokens/s" not in out
    assert "with --search" in out


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ([], "plan needs a cluster"),
        (["--cluster", "dgx-h100"], "plan needs its file"),
        (["--cluster", "cpu-partition"], "plan needs its file"),
        (["--scaling"], "which runs?"),
        (["no-such.yaml", "--cluster", "dgx-h100"], "no-such.yaml"),
        (["no-such.yaml", "--cluster", "dgx-h101"], "dgx-h100"),
        (["no-such.yaml", "--cluster", "dgx-h100", "--tokens", "many"], "no number of tokens"),
        (["--scaling", "no-such-run"], "no finished pretrain stage"),
    ],
)
def test_what_is_missing_is_named(command: list[str], words: str) -> None:
    assert words in said(*command, code=2)


def test_the_keys_of_a_profile_are_where_it_says(files: tuple[str, str]) -> None:
    Path(files[1]).write_text(CLUSTER + "zzz: 1\n")
    assert "`toolkit schema cluster` has them" in said(files[0], "--cluster", files[1], code=2)


def test_a_cluster_without_gpus(files: tuple[str, str]) -> None:
    assert "no GPUs" in said(files[0], "--cluster", "cpu-partition", code=2)


def test_a_vocabulary_that_nobody_knows(
    files: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolkit.launch.slurm.here", lambda: False)
    (tmp_path / "tokens.bin").touch()
    (tmp_path / "tokens.idx").touch()
    settings = yaml.safe_load(PIPELINE)
    settings["stages"] = {"base": settings["stages"]["base"] | {"data": str(tmp_path / "tokens")}}
    settings["stages"]["base"]["model"] = {
        "num_layers": 8,
        "hidden_size": 512,
        "num_attention_heads": 8,
        "max_position_embeddings": 8192,
    }
    settings["stages"]["base"]["parallel"] = {}
    file = tmp_path / "bare.yaml"
    file.write_text(yaml.safe_dump(settings))
    out = said(str(file), "--cluster", files[1], code=2)
    assert "the vocabulary's size is not known" in out
    checked = CliRunner().invoke(app, ["check", str(file), "--cluster", files[1]])
    assert checked.exit_code == 0 and "whether it fits was not looked at" in checked.output
    known = "stages.base.model.vocab_size=1000"
    assert "parameters" in said(str(file), known, "--cluster", files[1])


def test_neither_torch_nor_numpy_is_loaded(files: tuple[str, str]) -> None:
    code = f"""
import sys
from typer.testing import CliRunner
from toolkit.cli import app
done = CliRunner().invoke(app, ["plan", {files[0]!r}, "--cluster", {files[1]!r}, "--search"])
assert done.exit_code == 0, done.output
print(sorted({{"torch", "numpy", "transformers", "megatron.core"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Money and tokens --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("15T", 15 * 10**12),
        ("300B", 3 * 10**11),
        ("1.5e12", 1.5e12),
        ("15t", 15 * 10**12),
        ("2_000_000", 2_000_000),
    ],
)
def test_tokens_as_people_write_them(text: str, number: float) -> None:
    assert parse_tokens(text) == number


@pytest.mark.parametrize("text", ["", "0", "T", "-3B", "1.5.2", "3G", "nan", "1e400"])
def test_what_is_no_number_of_tokens(text: str) -> None:
    with pytest.raises(ToolkitError, match="no number of tokens"):
        parse_tokens(text)


def test_the_cost_of_a_budget(files: tuple[str, str]) -> None:
    from toolkit.plan.describe import run_of

    settings = yaml.safe_load(PIPELINE)["stages"]["base"]
    config = PretrainConfig.model_validate(settings | {"model": PETITE, "parallel": {}})
    run = run_of(config, 8, 1000)
    estimate = Estimator(run.model, run.precision, H100).estimate(run.layout)
    planning = Planning(gpu_hour=2.0, watts=1000.0, pue=1.5)
    step = 256 * 8192
    found = cost_of(estimate, 10 * step + 1, H100.gpu, planning)
    assert found.steps == 11
    assert found.gpu_hours == pytest.approx(11 * estimate.step_seconds * 8 / 3600)
    assert found.price == pytest.approx(2 * found.gpu_hours)
    assert found.megawatt_hours == pytest.approx(found.gpu_hours * 1000 * 1.5 / 1e6)
    assert cost_of(estimate, 1, H100.gpu, Planning()).price is None


def test_the_profile_says_what_the_network_does() -> None:
    usual = hardware_of("h100", 8, "infiniband", Planning())
    slow = hardware_of("h100", 8, "infiniband", Planning(network_gbps=100.0, sustained=0.5))
    assert usual.network == pytest.approx(45e9)
    assert slow.network == pytest.approx(usual.network / 4)
    assert slow.tuning.sustained == 0.5
    with pytest.raises(ToolkitError, match="no type of its GPUs"):
        hardware_of(None, 8, "none", Planning())
    with pytest.raises(ToolkitError, match="no constants for the GPU 'mi300x'"):
        hardware_of("mi300x", 8, "none", Planning())


# Finished runs -----------------------------------------------------------------------------------

PETITE = {
    "num_layers": 8,
    "hidden_size": 2048,
    "num_attention_heads": 16,
    "max_position_embeddings": 8192,
}


def finished(
    folder: Path,
    seconds: float,
    *,
    loss: float = 3.0,
    steps: int = 10,
    device: str = "cuda",
    reserved: float | None = None,
    **changes: Any,
) -> Path:
    """A run's folder as training leaves it, with a step of so many seconds."""
    settings = yaml.safe_load(PIPELINE)["stages"]["base"]
    settings |= {"model": PETITE, "parallel": {}, "train_iters": steps, "data": "corpus"}
    settings |= changes
    stage = folder / "base"
    (stage / "artifact").mkdir(parents=True)
    written = {"stage": "base", "kind": "pretrain", "fingerprint": "f", "seed": 1, "inputs": {}}
    (stage / "stage.yaml").write_text(yaml.safe_dump(written | {"config": settings}))
    attempt = {"status": "complete", "device": device, "world_size": 8}
    state = {"status": "complete", "fingerprint": "f", "attempts": [attempt]}
    (stage / "state.json").write_text(json.dumps(state))
    rows = [{"step": 1, "seconds_per_step": 9 * seconds, "memory_gib": 20.0, "loss": 9.0}]
    rows += [{"step": n, "seconds_per_step": seconds, "loss": loss} for n in range(2, steps)]
    if reserved is not None:
        rows[-1]["memory_reserved_gib"] = reserved
    (stage / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    info = {
        "parameters": 500_000_000,
        "consumed_samples": steps * 256,
        "validation_loss": loss,
        "layout": {"world_size": 8},
    }
    manifest = {"type": "checkpoint", "fingerprint": "f", "stage": "base", "kind": "pretrain"}
    manifest |= {"created": "", "parents": [], "files": [], "versions": {}, "info": info}
    (stage / "artifact" / "artifact.json").write_text(json.dumps(manifest))
    (stage / "artifact" / "model.json").write_text(json.dumps({"vocab_size": 32000}))
    return folder


def test_a_run_is_read_back(tmp_path: Path) -> None:
    folder = finished(tmp_path / "small", 4.0)
    found = read_measured(folder)[0]
    assert found.trained.name == "small/base"
    assert found.trained.tokens == 10 * 256 * 8192
    assert found.trained.loss == 3.0
    assert found.step_seconds == 4.0  # the first row, with its warm-up, is left out
    assert found.memory_gib == 20.0
    assert read_measured(folder / "base")[0].trained == found.trained


def test_several_runs_calibrate_a_profile_and_the_profile_plans_with_it(
    files: tuple[str, str], tmp_path: Path
) -> None:
    """What is printed for the profile makes the estimates those that were measured."""
    true = H100.calibrated(sustained=0.6, layer_floor=8e-4)
    narrow = {"model": PETITE | {"hidden_size": 512, "num_attention_heads": 8}, "seq_length": 1024}
    folders = []
    for name, changes in (("wide", {"micro_batch_size": 4}), ("narrow", narrow)):
        guess = read_measured(finished(tmp_path / f"{name}-guess", 1.0, **changes))[0].run
        fullest = largest(memory_by_stage(guess.model, guess.layout, guess.precision))
        reserved = 1.08 * (fullest.total - fullest.margin) / GIB
        step = Estimator(guess.model, guess.precision, true).estimate(guess.layout).step_seconds
        made = finished(tmp_path / name, step, reserved=reserved, **changes)
        folders.append(str(made))
    command = ["--cluster", files[1], "--calibrate", *folders]
    out = said(*command)
    block = yaml.safe_load(out[out.index("planning:") :])["planning"]
    assert block["gpu_hour"] == 2.5  # what the profile said already stays
    assert block["sustained"] == pytest.approx(0.6, rel=0.01)
    assert block["layer_floor"] == pytest.approx(8e-4, rel=0.01)
    assert block["fragmentation"] == pytest.approx(0.08, rel=0.01)
    profile = yaml.safe_load(CLUSTER) | {"planning": block}
    Path(files[1]).write_text(yaml.safe_dump(profile))
    again = json.loads(said(*command, "--json"))
    assert [run["run"] for run in again["runs"]] == ["wide/base", "narrow/base"]
    for run in again["runs"]:
        step = run["measured"]["step_seconds"]
        assert run["before"]["step_seconds"] == pytest.approx(step, rel=0.002)
    assert again["planning"]["fragmentation"] == block["fragmentation"]


def test_runs_on_cpus_say_nothing_of_gpus(files: tuple[str, str], tmp_path: Path) -> None:
    guess = read_measured(finished(tmp_path / "guess", 1.0))[0].run
    step = Estimator(guess.model, guess.precision, H100).estimate(guess.layout).step_seconds
    good, slow = finished(tmp_path / "good", step), finished(tmp_path / "cpu", 9.0, device="cpu")
    command = ["--cluster", files[1], "--calibrate"]
    out = said(*command, str(good), str(slow))
    assert "cpu/base: left out, for it ran on CPUs" in out
    assert "cpu/base" not in out.partition("constant")[0].partition("run ")[2]
    assert "ran on CPUs, and the constants are of GPUs" in said(*command, str(slow), code=2)


def test_calibrate_and_scaling_as_they_are_typed(tmp_path: Path) -> None:
    run = read_measured(finished(tmp_path / "guess", 1.0))[0].run
    seconds = Estimator(run.model, run.precision, H100).estimate(run.layout).step_seconds
    folder = finished(tmp_path / "good", seconds)
    out = said("--cluster", "dgx-h100", "--calibrate", str(folder))
    assert f"planning:\n  watts: 1275.0\n  sustained: {H100.tuning.sustained}" in out
    assert "left: no row of metrics has memory_reserved_gib" in out
    folders = [
        str(finished(tmp_path / f"run{n}", 1.0, steps=10 * 4**n, loss=3.5 - 0.3 * n))
        for n in range(4)
    ]
    out = said("--scaling", *folders)
    assert "run3/base" in out
    assert "loss = " in out
    assert out.count("o") > 4
    assert "10 x the largest" in out
    assert " ± " in out
    told = json.loads(said("--scaling", "--json", *folders))
    assert [run["name"] for run in told["runs"]] == [f"run{n}/base" for n in range(4)]
    assert told["law"]["exponent"] > 0
    told = json.loads(said("--cluster", "dgx-h100", "--json", "--calibrate", str(folder)))
    assert told["runs"][0]["measured"]["step_seconds"] == pytest.approx(seconds)
    assert told["runs"][0]["before"]["step_seconds"] == pytest.approx(seconds)


def test_a_diverged_run_is_named_and_left_out(tmp_path: Path) -> None:
    losses = (3.5, float("nan"), 3.2, 2.9)
    folders = [
        str(finished(tmp_path / f"run{n}", 1.0, steps=10 * 4**n, loss=loss))
        for n, loss in enumerate(losses)
    ]
    out = said("--scaling", *folders)
    assert "! run1/base: left out, for its loss is nan" in out
    assert "run1/base " not in out.partition("parameters")[2]
