"""What would happen, stage by stage, and every layout that can't work: nothing is started."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.data.config import TrainTokenizerConfig
from toolkit.errors import Problem
from toolkit.megatron.config import PretrainConfig
from toolkit.megatron.convert.config import ExportConfig
from toolkit.megatron.layout import Layout, layout_of, padded_vocab_size
from toolkit.pipeline.loading import Loaded, load_pipeline
from toolkit.pipeline.registry import stage_kinds
from toolkit.pipeline.source import Source
from toolkit.plan.datasets import dataset_problems, export_problems
from toolkit.plan.describe import run_of
from toolkit.plan.layout import violations
from toolkit.plan.machine import this_machine
from toolkit.plan.shape import Machine
from toolkit.plan.stage_text import layers_text
from toolkit.stage import FINISH, StageConfig


@dataclass(frozen=True)
class StagePlan:
    """One row of the plan."""

    name: str
    kind: str
    takes: tuple[str, ...]
    makes: str
    ranks: int
    detail: dict[str, str]
    """The layout and the batch arithmetic, where there is one: a name and a sum each."""


def plan_stages(loaded: Loaded) -> list[StagePlan]:
    """The plan of every stage, in order of work."""
    return [_plan(loaded, name) for name in loaded.graph.order]


def load_checked(file: Path, overrides: Sequence[str] = ()) -> Loaded:
    """Load a pipeline whose layouts work, too.

    Raises:
        ConfigError: with every mistake of the file, and every layout that can't work.
    """
    return load_pipeline(file, overrides, stage_problems)


def stage_problems(
    name: str, config: StageConfig, source: Source, machine: Machine | None = None
) -> Iterator[Problem]:
    """What is wrong with a stage whose settings are valid one by one: its layout, its ranks.

    Args:
        name: the stage's.
        config: its settings.
        source: the pipeline file, for places.
        machine: where it will run; by default here, and what a GPU can't do is not looked for.
    """
    prefix = ("stages", name)
    if isinstance(config, PretrainConfig):
        run = run_of(config, config.world_size(), machine=machine or this_machine())
        for found in violations(run):
            place = (*prefix, *found.key.split("."))
            yield source.problem(place, found.message, f"rule {found.rule}: {found.source}")
        for key, message in dataset_problems(config, source.data["stages"]):
            yield source.problem((*prefix, *key.split(".")), message)
    if isinstance(config, ExportConfig):
        for key, message in export_problems(source.data["stages"], config.checkpoint):
            yield source.problem((*prefix, key), message)
    if stage_kinds()[config.kind].spread == "process" and config.world_size() > 1:
        message = f"a {config.kind} stage runs as one process, not as {config.world_size()} ranks"
        yield source.problem((*prefix, "resources"), message)


def _plan(loaded: Loaded, name: str) -> StagePlan:
    config = loaded.pipeline.stages[name]
    outside = loaded.graph.outside[name]
    return StagePlan(
        name=name,
        kind=config.kind,
        takes=(*loaded.graph.needs[name], *outside, *loaded.graph.names[name]),
        makes=config.artifact_type(),
        ranks=config.world_size(),
        detail=_detail(config, vocab_size(loaded, name)),
    )


def vocab_size(loaded: Loaded, name: str) -> int | None:
    """The vocabulary that a stage will see, where a stage of the same pipeline trains it."""
    for stage in loaded.graph.below([name]):
        config = loaded.pipeline.stages[stage]
        if isinstance(config, TrainTokenizerConfig):
            return config.vocab_size
    return None


def _detail(config: StageConfig, vocabulary: int | None) -> dict[str, str]:
    if stage_kinds()[config.kind].spread == "shards" and config.world_size() > 1:
        phases = " -> ".join((*config.phases(), FINISH))
        return {"phases": f"{phases} ({config.world_size()} ranks in each, one in {FINISH})"}
    if not isinstance(config, PretrainConfig):
        return {}
    layout, run = layout_of(config, config.world_size()), run_of(config, config.world_size())
    factors = {
        "tensor": layout.tensor_model_parallel_size,
        "pipeline": layout.pipeline_model_parallel_size,
        "context": layout.context_parallel_size,
        "data": layout.data_parallel_size,
    }
    ranks = " x ".join(
        f"{name} {size}" for name, size in factors.items() if name != "context" or size > 1
    )
    if layout.virtual_pipeline_model_parallel_size:
        ranks += f", {layout.virtual_pipeline_model_parallel_size} parts of the pipeline a rank"
    if config.model.num_moe_experts is not None:
        ranks += f"; of experts: {_expert_ranks(layout)}"
    step = config.global_batch_size * config.sequence
    found = {
        "ranks": f"{layout.world_size} = {ranks}",
        "layers": layers_text(run.model, run.layout),
        "batch": f"{config.global_batch_size} sequences = {config.micro_batch_size} per micro-batch"
        f" x {layout.data_parallel_size} data-parallel x {layout.num_microbatches} accumulated",
        "step": f"{step:,} tokens = {config.global_batch_size} x {config.sequence:,}",
        "training": f"{config.train_iters * step:,} tokens = {config.train_iters:,} steps",
    }
    if layout.pipeline_model_parallel_size == 1:
        del found["layers"]
    if vocabulary is not None:
        multiple = config.model.make_vocab_size_divisible_by
        padded = padded_vocab_size(vocabulary, multiple, layout.tensor_model_parallel_size)
        found["vocabulary"] = f"{vocabulary:,} tokens, {padded:,} rows in the embedding"
    return found


def _expert_ranks(layout: Layout) -> str:
    """The same ranks as the experts see them: ``tensor 1 x expert 8 x pipeline 2 x data 4``."""
    tensor, expert = layout.expert_tensor_parallel_size, layout.expert_model_parallel_size
    pipeline = layout.pipeline_model_parallel_size
    data = layout.world_size // (tensor * expert * pipeline)
    return f"tensor {tensor} x expert {expert} x pipeline {pipeline} x data {data}"
