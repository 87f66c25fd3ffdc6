"""Which jobs a stage becomes."""

from dataclasses import replace
from pathlib import Path

from toolkit.errors import ExitCode
from toolkit.launch.run import execute
from toolkit.launch.spec import LaunchSpec, launch_specs, run_specs
from toolkit.pipeline.loading import load_pipeline
from toolkit.pipeline.run import Run, plan_run
from toolkit.pipeline.state import read_state
from toolkit.view.run import RunView

TEXT = """\
name: test
stages:
  vocabulary: {kind: train-tokenizer, sources: [a.txt], vocab_size: 300}
  corpus:
    kind: tokenize
    sources: [a.txt]
    sample_by: line
    shard_bytes: 200
    tokenizer: vocabulary
    resources: {ntasks_per_node: 2, cpus_per_task: 1}
  base:
    kind: pretrain
    data: corpus
    model: {preset: llama-mini}
    parallel: {tensor_model_parallel_size: 2}
    train_iters: 2
"""


def plan(folder: Path) -> Run:
    (folder / "a.txt").write_text("".join(f"{n} some words of a line\n" for n in range(50)))
    (folder / "p.yaml").write_text(TEXT)
    return plan_run(load_pipeline(folder / "p.yaml"), folder / "run")


def specs(run: Run, name: str) -> tuple[LaunchSpec, ...]:
    return launch_specs(next(task for task in run.tasks if task.name == name), "python")


def shape(found: tuple[LaunchSpec, ...]) -> list[tuple[int, str | None]]:
    return [(spec.world_size, spec.environment.get("TOOLKIT_PHASE")) for spec in found]


def test_a_stage_of_shards_has_a_job_for_each_phase_and_one_that_finishes(tmp_path: Path) -> None:
    run = plan(tmp_path)
    assert shape(specs(run, "corpus")) == [(2, "shards"), (1, "finish")]
    assert shape(specs(run, "vocabulary")) == [(1, None)]
    assert shape(specs(run, "base")) == [(2, None)]


def test_one_rank_does_all_phases_in_one_job(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    text = TEXT.replace("ntasks_per_node: 2, ", "")
    run = plan(tmp_path)
    (tmp_path / "p.yaml").write_text(text)
    run = plan_run(load_pipeline(tmp_path / "p.yaml"), tmp_path / "b" / "run")
    assert shape(specs(run, "corpus")) == [(1, None)]


def test_a_job_waits_for_no_stage_that_another_waits_for(tmp_path: Path) -> None:
    run = plan(tmp_path)
    needs = {"vocabulary": [], "corpus": ["vocabulary"], "base": ["vocabulary", "corpus"]}
    found = {spec.name: spec for spec in run_specs(run, needs, "python", chain=2)}
    assert list(found) == ["vocabulary", "corpus.shards", "corpus.finish", "base.1", "base.2"]
    assert found["base.2"].dependencies == ("corpus.finish",)
    assert found["base.2"].needs == (run.folder / "corpus",)
    done = Run(run.folder, tuple(replace(t, action="skip") for t in run.tasks[1:2]))
    done = Run(run.folder, (run.tasks[0], *done.tasks, run.tasks[2]))
    found = {spec.name: spec for spec in run_specs(done, needs, "python")}
    assert found["base"].dependencies == ("vocabulary",)  # corpus is there, and waits for nothing


def test_ranks_on_this_machine_share_the_shards(tmp_path: Path) -> None:
    from rich.console import Console

    run = plan(tmp_path)
    run = Run(run.folder, run.tasks[:2])
    with RunView(Console(quiet=True), run.tasks) as view:
        assert execute(run, view) == ExitCode.OK
    state = read_state(run.folder / "corpus")
    assert state.status == "complete"
    attempts = [(a["phase"], a["world_size"]) for a in state.attempts]
    assert attempts == [("shards", 2), ("finish", 1)]
    assert {path.name for path in (run.folder / "corpus" / "logs").iterdir()} == {
        "rank-0.log",
        "rank-1.log",
    }
