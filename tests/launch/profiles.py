"""Cluster profiles and a run for tests: nothing of this machine is in what they render."""

from pathlib import Path
from typing import Any

from toolkit.launch.cluster import Cluster
from toolkit.launch.render import Target, render_job
from toolkit.launch.rendered import RenderedJob
from toolkit.launch.spec import run_specs
from toolkit.pipeline.run import Run, fresh_tasks
from toolkit.plan.stages import load_checked

RUN = Path("/shared/runs/tiny")
TEXT = """\
name: tiny
stages:
  vocabulary: {kind: train-tokenizer, sources: [sample:python-docs], vocab_size: 300}
  corpus:
    kind: tokenize
    sources: [sample:python-docs]
    tokenizer: vocabulary
    resources: {nodes: 2, ntasks_per_node: 4}
  base:
    kind: pretrain
    data: corpus
    model: {preset: llama-mini}
    parallel: {tensor_model_parallel_size: 2}
    train_iters: 20
    global_batch_size: 64
    resources: {nodes: 2, ntasks_per_node: 8, time_limit: "1-12:00:00"}
"""
CPU: dict[str, Any] = {
    "scheduler": "slurm",
    "node": {"cpus": 64, "memory": "250G"},
    "time_limit": "2:00:00",
}
GPU: dict[str, Any] = CPU | {
    "partition": "batch",
    "account": "me",
    "node": {"cpus": 224, "memory": "2000G", "gpus": 8, "gpu_type": "h100"},
    "exclusive": True,
    "network": "infiniband",
}
IMAGE = {"image": "/images/toolkit.img", "mounts": ["/data:/data:ro"]}


def profile(base: dict[str, Any], **changes: Any) -> Cluster:
    """A profile with some settings changed."""
    return Cluster.model_validate(base | changes)


def rendered(folder: Path, cluster: Cluster, text: str = TEXT) -> dict[str, RenderedJob]:
    """Every job of a pipeline on a cluster, by name."""
    file = folder / "pipeline.yaml"
    file.write_text(text)
    loaded = load_checked(file)
    run = Run(RUN, tuple(fresh_tasks(loaded, RUN)))
    target = Target(cluster, "there", "tiny", RUN / "code" / "0123456789abcdef")
    specs = run_specs(run, loaded.graph.needs, "/venv/bin/python", chain=cluster.chain)
    return {spec.name: render_job(spec, target) for spec in specs}
